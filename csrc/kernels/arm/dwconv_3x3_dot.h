// The common case of the depthwise convolution with sdot in assembly: 3x3, stride 1, symmetric
// weights, whole blocks of 16 channels, plain int8 out. Two output rows by two outputs, whose sums
// take half of the registers.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace defakeq {
namespace {

struct Dw3x3 {
  const int8_t* columns;  // [column][16][4 rows]
  const int8_t* weight;   // [3][2 halves][upper, lower output row][2 parts][16]
  const int32_t* start;
  const float *scale, *bias;
  int8_t *upper, *lower;  // the first output of both rows
  int64_t upper_stride, lower_stride;
  int16_t zero_point;
};

// Kernel column at byte `at` of the weights; x: two parts of a column of activations, y: of the
// next. sums p, q: upper row, first output; r, s: upper, second; t, u: lower, first; v, w: lower,
// second.
#define DQ_TAPS(at, next, x0, x1, y0, y1, p, q, r, s, t, u, v, w)                                  \
  "ldp q12, q13, [%[weight], #" #at                                                                \
  "]\n\t"                                                                                          \
  "ldp q14, q15, [%[weight], #" #next                                                              \
  "]\n\t"                                                                                          \
  "sdot v" #p ".4s, v" #x0 ".16b, v12.16b\n\tsdot v" #q ".4s, v" #x1 ".16b, v13.16b\n\tsdot v" #r  \
  ".4s, v" #y0 ".16b, v12.16b\n\tsdot v" #s ".4s, v" #y1 ".16b, v13.16b\n\tsdot v" #t ".4s, v" #x0 \
  ".16b, v14.16b\n\tsdot v" #u ".4s, v" #x1 ".16b, v15.16b\n\tsdot v" #v ".4s, v" #y0              \
  ".16b, v14.16b\n\tsdot v" #w ".4s, v" #y1 ".16b, v15.16b\n\t"
#define DQ_LOW(at, next, x0, x1, y0, y1) \
  DQ_TAPS(at, next, x0, x1, y0, y1, 16, 17, 20, 21, 24, 25, 28, 29)
#define DQ_HIGH(at, next, x0, x1, y0, y1) \
  DQ_TAPS(at, next, x0, x1, y0, y1, 18, 19, 22, 23, 26, 27, 30, 31)
#define DQ_COLUMNS(a, b, c, d)    \
  "ldp q4, q5, [%[columns], #" #a \
  "]\n\t"                         \
  "ldp q6, q7, [%[columns], #" #b \
  "]\n\t"                         \
  "ldp q8, q9, [%[columns], #" #c \
  "]\n\t"                         \
  "ldp q10, q11, [%[columns], #" #d "]\n\t"
#define DQ_START(a, b, c, d) \
  "ldp q" #a ", q" #b        \
  ", [%[start]]\n\t"         \
  "ldp q" #c ", q" #d ", [%[start], #32]\n\t"
#define DQ_FINISH(a, b, c, d, out, stride)                       \
  "ldp q4, q5, [%[bias]]\n\t"                                    \
  "ldp q6, q7, [%[bias], #32]\n\t"                               \
  "scvtf v" #a ".4s, v" #a ".4s\n\tscvtf v" #b ".4s, v" #b       \
  ".4s\n\t"                                                      \
  "scvtf v" #c ".4s, v" #c ".4s\n\tscvtf v" #d ".4s, v" #d       \
  ".4s\n\t"                                                      \
  "fmla v4.4s, v" #a ".4s, v0.4s\n\tfmla v5.4s, v" #b            \
  ".4s, v1.4s\n\t"                                               \
  "fmla v6.4s, v" #c ".4s, v2.4s\n\tfmla v7.4s, v" #d            \
  ".4s, v3.4s\n\t"                                               \
  "fcvtns v4.4s, v4.4s\n\tfcvtns v5.4s, v5.4s\n\t"               \
  "fcvtns v6.4s, v6.4s\n\tfcvtns v7.4s, v7.4s\n\t"               \
  "sqxtn v4.4h, v4.4s\n\tsqxtn v6.4h, v6.4s\n\t"                 \
  "sqxtn2 v4.8h, v5.4s\n\tsqxtn2 v6.8h, v7.4s\n\t"               \
  "sqadd v4.8h, v4.8h, v12.8h\n\tsqadd v6.8h, v6.8h, v12.8h\n\t" \
  "sqxtn v4.8b, v4.8h\n\tsqxtn2 v4.16b, v6.8h\n\t"               \
  "str q4, [%[" #out "]]\n\tadd %[" #out "], %[" #out "], %[" #stride "]\n\t"

// `pairs` > 0 pairs of outputs of both rows.
inline void dw_3x3_pairs(Dw3x3 k, int64_t pairs) {
  __asm__ volatile(
      "ldp q0, q1, [%[scale]]\n\t"
      "ldp q2, q3, [%[scale], #32]\n\t"
      "1:\n\t"
      DQ_START(16, 17, 18, 19) DQ_START(20, 21, 22, 23)
      DQ_START(24, 25, 26, 27) DQ_START(28, 29, 30, 31)
      DQ_COLUMNS(0, 64, 128, 192)
      DQ_LOW(0, 32, 4, 5, 6, 7) DQ_LOW(128, 160, 6, 7, 8, 9) DQ_LOW(256, 288, 8, 9, 10, 11)
      DQ_COLUMNS(32, 96, 160, 224)
      DQ_HIGH(64, 96, 4, 5, 6, 7) DQ_HIGH(192, 224, 6, 7, 8, 9) DQ_HIGH(320, 352, 8, 9, 10, 11)
      "dup v12.8h, %w[zero_point]\n\t"
      "add %[columns], %[columns], #128\n\t"
      "subs %[pairs], %[pairs], #1\n\t"
      DQ_FINISH(16, 17, 18, 19, upper, upper_stride) DQ_FINISH(20, 21, 22, 23, upper, upper_stride)
      DQ_FINISH(24, 25, 26, 27, lower, lower_stride) DQ_FINISH(28, 29, 30, 31, lower, lower_stride)
      "b.ne 1b\n\t"
      : [columns] "+&r"(k.columns), [upper] "+&r"(k.upper), [lower] "+&r"(k.lower),
        [pairs] "+&r"(pairs)
      : [weight] "r"(k.weight), [start] "r"(k.start), [scale] "r"(k.scale), [bias] "r"(k.bias),
        [upper_stride] "r"(k.upper_stride), [lower_stride] "r"(k.lower_stride),
        [zero_point] "r"(int64_t{k.zero_point})
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11",
        "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24",
        "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

#undef DQ_TAPS
#undef DQ_LOW
#undef DQ_HIGH
#undef DQ_COLUMNS
#undef DQ_START
#undef DQ_FINISH

}  // namespace
}  // namespace defakeq

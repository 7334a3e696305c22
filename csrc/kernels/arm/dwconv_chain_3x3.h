// The 3x3 case of the depthwise convolution by int16 chains in assembly: two output rows by two
// outputs of 16 channels, plain int8 out. GCC copies and reloads a quarter more.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/simd/math.h"

namespace defakeq {
namespace {

// In this order, which the assembly knows.
struct DwChain3x3 {
  int8_t weight[9][16];
  int32_t start[16];
  float scale[16];
  int16_t zero_point[8];
  int8_t lowest[16], highest[16];
  float bias[16];
};

struct DwChainRows {
  const int8_t* row[5];  // input rows' columns of the first output; the last one at a stride of 2
  int8_t* out[2];
  int64_t stride[2];  // between the outputs of a row
};

// v0-v8: weights, v9-v10: half of the starts, v16-v23: sums, v24-v27: scales, v28: zero point,
// v29-v30: bounds, or the other starts.
#define DQ_MULTIPLY(op, a, b, w, x) \
  op " v" #a ".8h, v" #w ".8b, v" #x ".8b\n\t" op "2 v" #b ".8h, v" #w ".16b, v" #x ".16b\n\t"
// A kernel row's weights w0-w2 with the columns x0-x2 of the first output and y0-y2 of the second;
// a, b and c, d: their sums.
#define DQ_KERNEL_ROW(op, a, b, c, d, w0, w1, w2, x0, x1, x2, y0, y1, y2) \
  DQ_MULTIPLY(op, a, b, w0, x0)                                           \
  DQ_MULTIPLY(op, c, d, w0, y0)                                           \
  DQ_MULTIPLY("smlal", a, b, w1, x1)                                      \
  DQ_MULTIPLY("smlal", c, d, w1, y1)                                      \
  DQ_MULTIPLY("smlal", a, b, w2, x2)                                      \
  DQ_MULTIPLY("smlal", c, d, w2, y2)
// The lists are one argument each until here.
#define DQ_EXPAND(...) DQ_KERNEL_ROW(__VA_ARGS__)
#define DQ_FIRST(sums, columns) DQ_EXPAND("smull", sums, 0, 1, 2, columns)
#define DQ_SECOND(sums, columns) DQ_EXPAND("smlal", sums, 3, 4, 5, columns)
#define DQ_THIRD(sums, columns) DQ_EXPAND("smlal", sums, 6, 7, 8, columns)
#define DQ_UPPER 16, 17, 18, 19
#define DQ_LOWER 20, 21, 22, 23
// Columns 0 to 3, or 0 to 4.
#define DQ_NEAR 13, 14, 15, 14, 15, 31
#define DQ_FAR 13, 14, 15, 15, 31, 12
#define DQ_LOAD_NEAR(row) "ldp q13, q14, [%[" #row "]], #32\n\tldp q15, q31, [%[" #row "]]\n\t"
#define DQ_LOAD_FAR(row)                                                                      \
  "ldp q13, q14, [%[" #row "]], #32\n\tldp q15, q31, [%[" #row "]], #32\n\tldr q12, [%[" #row \
  "]]\n\t"
#define DQ_HALF(a, b, s, t, to)                                          \
  "scvtf v" #a ".4s, v" #a ".4s\n\tscvtf v" #b ".4s, v" #b               \
  ".4s\n\t"                                                              \
  "fmla v15.4s, v" #a ".4s, v" #s ".4s\n\tfmla v31.4s, v" #b ".4s, v" #t \
  ".4s\n\t"                                                              \
  "fcvtns v15.4s, v15.4s\n\tfcvtns v31.4s, v31.4s\n\t"                   \
  "sqxtn v" #to ".4h, v15.4s\n\tsqxtn2 v" #to                            \
  ".8h, v31.4s\n\t"                                                      \
  "sqadd v" #to ".8h, v" #to ".8h, v28.8h\n\t"
// What v29 and v30 hold, how the upper half of the starts comes into which registers, and the
// bounds of an output. Without bounds there is room for the starts.
#define DQ_BARE "ldp q29, q30, [%[k], #176]\n\t", "", 29, 30, ""
#define DQ_BOUNDED \
  "ldp q29, q30, [%[k], #288]\n\t", "ldp q11, q12, [%[k], #176]\n\t", 11, 12, DQ_BOUNDS
#define DQ_BOUNDS "smax v13.16b, v13.16b, v29.16b\n\tsmin v13.16b, v13.16b, v30.16b\n\t"
#define DQ_OUT(a, b, out, stride, load, s, t, bounds)                                     \
  "saddw v13.4s, v9.4s, v" #a ".4h\n\tsaddw2 v14.4s, v10.4s, v" #a                        \
  ".8h\n\t"                                                                               \
  "ldp q15, q31, [%[k], #320]\n\t" DQ_HALF(13, 14, 24, 25, 13) load                       \
      "saddw v11.4s, v" #s ".4s, v" #b ".4h\n\tsaddw2 v12.4s, v" #t ".4s, v" #b           \
      ".8h\n\t"                                                                           \
      "ldp q15, q31, [%[k], #352]\n\t" DQ_HALF(                                           \
          11, 12, 26, 27, 14) "sqxtn v13.8b, v13.8h\n\tsqxtn2 v13.16b, v14.8h\n\t" bounds \
                              "st1 {v13.16b}, [%[" #out "]], %[" #stride "]\n\t"
#define DQ_OUT_OF(...) DQ_OUT(__VA_ARGS__)
#define DQ_PAIRS(...) DQ_PAIRS_OF(__VA_ARGS__)
#define DQ_PAIRS_OF(ROWS, HELD, ...)                                                               \
  __asm__ volatile(                                                                                \
      "ldp q0, q1, [%[k]]\n\tldp q2, q3, [%[k], #32]\n\tldp q4, q5, [%[k], #64]\n\t"               \
      "ldp q6, q7, [%[k], #96]\n\tldr q8, [%[k], #128]\n\tldp q9, q10, [%[k], #144]\n\t"           \
      "ldp q24, q25, [%[k], #208]\n\tldp q26, q27, [%[k], #240]\n\tldr q28, [%[k], #272]\n\t" HELD \
      "1:\n\t" ROWS "subs %[pairs], %[pairs], #1\n\t" DQ_OUT_OF(                                   \
          16, 17, out0, stride0, __VA_ARGS__) DQ_OUT_OF(18, 19, out0, stride0, __VA_ARGS__)        \
          DQ_OUT_OF(20, 21, out1, stride1, __VA_ARGS__)                                            \
              DQ_OUT_OF(22, 23, out1, stride1, __VA_ARGS__) "b.ne 1b\n\t"                          \
      : [r0] "+&r"(x.row[0]), [r1] "+&r"(x.row[1]), [r2] "+&r"(x.row[2]), [r3] "+&r"(x.row[3]),    \
        [r4] "+&r"(x.row[4]), [out0] "+&r"(x.out[0]), [out1] "+&r"(x.out[1]), [pairs] "+&r"(pairs) \
      : [k] "r"(&k), [stride0] "r"(x.stride[0]), [stride1] "r"(x.stride[1])                        \
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11",  \
        "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", \
        "v25", "v26", "v27", "v28", "v29", "v30", "v31")

#define DQ_ROWS_NEAR           \
  DQ_LOAD_NEAR(r0)             \
  DQ_FIRST(DQ_UPPER, DQ_NEAR)  \
  DQ_LOAD_NEAR(r1)             \
  DQ_SECOND(DQ_UPPER, DQ_NEAR) \
  DQ_FIRST(DQ_LOWER, DQ_NEAR)  \
  DQ_LOAD_NEAR(r2)             \
  DQ_THIRD(DQ_UPPER, DQ_NEAR)  \
  DQ_SECOND(DQ_LOWER, DQ_NEAR) DQ_LOAD_NEAR(r3) DQ_THIRD(DQ_LOWER, DQ_NEAR)
#define DQ_ROWS_FAR           \
  DQ_LOAD_FAR(r0)             \
  DQ_FIRST(DQ_UPPER, DQ_FAR)  \
  DQ_LOAD_FAR(r1)             \
  DQ_SECOND(DQ_UPPER, DQ_FAR) \
  DQ_LOAD_FAR(r2)             \
  DQ_THIRD(DQ_UPPER, DQ_FAR)  \
  DQ_FIRST(DQ_LOWER, DQ_FAR)  \
  DQ_LOAD_FAR(r3) DQ_SECOND(DQ_LOWER, DQ_FAR) DQ_LOAD_FAR(r4) DQ_THIRD(DQ_LOWER, DQ_FAR)

// `pairs` > 0 pairs of outputs of both rows; the pointers move on. kBare: the bounds are int8's.
template <int kStride, bool kBare>
DQ_INLINE void dw_chain_3x3(const DwChain3x3& k, DwChainRows& x, int64_t pairs) {
  if constexpr (kStride == 1) {
    if constexpr (kBare) {
      DQ_PAIRS(DQ_ROWS_NEAR, DQ_BARE);
    } else {
      DQ_PAIRS(DQ_ROWS_NEAR, DQ_BOUNDED);
    }
  } else if constexpr (kBare) {
    DQ_PAIRS(DQ_ROWS_FAR, DQ_BARE);
  } else {
    DQ_PAIRS(DQ_ROWS_FAR, DQ_BOUNDED);
  }
}

#undef DQ_MULTIPLY
#undef DQ_KERNEL_ROW
#undef DQ_EXPAND
#undef DQ_FIRST
#undef DQ_SECOND
#undef DQ_THIRD
#undef DQ_UPPER
#undef DQ_LOWER
#undef DQ_NEAR
#undef DQ_FAR
#undef DQ_LOAD_NEAR
#undef DQ_LOAD_FAR
#undef DQ_HALF
#undef DQ_OUT
#undef DQ_OUT_OF
#undef DQ_BARE
#undef DQ_BOUNDED
#undef DQ_BOUNDS
#undef DQ_PAIRS
#undef DQ_PAIRS_OF
#undef DQ_ROWS_NEAR
#undef DQ_ROWS_FAR

}  // namespace
}  // namespace defakeq

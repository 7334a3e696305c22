// The common case of the depthwise convolution with sdot in assembly: 3x3, stride 1, a column of
// padding on both sides, plain int8 out. 8 channels at a time through all rows, so that the weights
// of both output rows stay in registers; the columns of four input rows slide through them,
// interleaved to [channel][4 rows] as they are loaded.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/arm/dwconv.h"

namespace defakeq {
namespace {

// Two output rows and their four input rows at channel 0. What is missing lies in a row of its own,
// with a stride of 0.
struct DwRowPair {
  const int8_t* x[4];
  int64_t x_stride[4];
  int8_t* out[2];
  int64_t out_stride[2];
};

// In this order, which the assembly knows.
struct Dw3x3Constants {
  uint8_t index[2][16];  // from 8 bytes of the rows 1, 0, 2 and 3 each to [8 channels][4 rows]
  int8_t pad[2][16];
  int16_t pad_sum[2][8];  // of three rows
  int16_t zero_point[8];
  int16_t factor[8];
};

// How many outputs a row has decides how it ends.
struct Dw3x3 {
  const DwRowPair* rows;
  int64_t pairs;         // of output rows
  int64_t channel;       // of the first of 8
  int64_t full;          // pairs of outputs whose right column is not padding
  int64_t odd;           // 1: the last pair is one output
  const int8_t* weight;  // [3][2 halves][upper, lower output row][2 parts][16]
  const int32_t* start;
  const float *scale, *bias;
  const Dw3x3Constants* constants;
};

// v0-v11: weights, v12-v17: three columns, v18-v21: sums and loaded rows, v22-v27: the sums over
// three rows of three columns, each for the upper and the lower output row, or in v22 and v23
// scales, v28: zero point, v29: window factors, v30-v31: index.
#define DQ_LOAD                                                      \
  "ld1 {v18.8b}, [%[x1]], %[s1]\n\tld1 {v19.8b}, [%[x2]], %[s2]\n\t" \
  "ld1 {v18.d}[1], [%[x0]], %[s0]\n\tld1 {v19.d}[1], [%[x3]], %[s3]\n\t"
#define DQ_INTERLEAVE(a, b)                                  \
  "tbl v" #a ".16b, {v18.16b, v19.16b}, v30.16b\n\ttbl v" #b \
  ".16b, {v18.16b, v19.16b}, "                               \
  "v31.16b\n\t"
// Columns a, b with the sums e, f.
#define DQ_PLAIN_COLUMN(a, b, e, f) DQ_LOAD DQ_INTERLEAVE(a, b)
#define DQ_WINDOW_COLUMN(a, b, e, f)                        \
  DQ_LOAD "saddl v20.8h, v18.8b, v19.8b\n\t" DQ_INTERLEAVE( \
      a, b) "saddw2 v" #e ".8h, v20.8h, v18.16b\n\tsaddw2 v" #f ".8h, v20.8h, v19.16b\n\t"
#define DQ_PLAIN_PAD(a, b, e, f) "ldp q" #a ", q" #b ", [%[k], #32]\n\t"
#define DQ_WINDOW_PAD(a, b, e, f) DQ_PLAIN_PAD(a, b, e, f) "ldp q" #e ", q" #f ", [%[k], #64]\n\t"
#define DQ_ADD(a, b, c, d) \
  "add v" #a ".8h, v" #a ".8h, v" #c ".8h\n\tadd v" #b ".8h, v" #b ".8h, v" #d ".8h\n\t"
// Of the sums of three columns: the first two outputs' windows take the place of the first two.
#define DQ_PLAIN_FIRST(a, b, c, d, e, f)
#define DQ_WINDOW_FIRST(a, b, c, d, e, f) DQ_ADD(c, d, e, f) DQ_ADD(a, b, c, d)
#define DQ_PLAIN_SECOND(a, b, c, d)
#define DQ_WINDOW_SECOND(a, b, c, d) DQ_ADD(a, b, c, d)
#define DQ_PLAIN_START(e, f)
#define DQ_WINDOW_START(e, f)                                                                   \
  "smlal v18.4s, v" #e ".4h, v29.4h\n\tsmlal2 v19.4s, v" #e ".8h, v29.8h\n\tsmlal v20.4s, v" #f \
  ".4h, v29.4h\n\tsmlal2 v21.4s, v" #f ".8h, v29.8h\n\t"
// Kernel column of the weights u, v, w, x.
#define DQ_TAPS(a, b, u, v, w, x)                                           \
  "sdot v18.4s, v" #a ".16b, v" #u ".16b\n\tsdot v19.4s, v" #b ".16b, v" #v \
  ".16b\n\tsdot v20.4s, v" #a ".16b, v" #w ".16b\n\tsdot v21.4s, v" #b ".16b, v" #x ".16b\n\t"
#define DQ_PLAIN_SCALE(e, f)
#define DQ_WINDOW_SCALE(e, f) "ldp q" #e ", q" #f ", [%[scale]]\n\t"
#define DQ_PLAIN_SCALED(a, b, c, d, e, f) \
  "fmla v" #a ".4s, v" #c ".4s, v22.4s\n\tfmla v" #b ".4s, v" #d ".4s, v23.4s\n\t"
#define DQ_WINDOW_SCALED(a, b, c, d, e, f) \
  "fmla v" #a ".4s, v" #c ".4s, v" #e ".4s\n\tfmla v" #b ".4s, v" #d ".4s, v" #f ".4s\n\t"
#define DQ_SHORT(a, b) "uzp1 v" #a ".8h, v" #a ".8h, v" #b ".8h\n\t"
#define DQ_LONG(a, b) "sqxtn v" #a ".4h, v" #a ".4s\n\tsqxtn2 v" #a ".8h, v" #b ".4s\n\t"
// An output of both rows from three columns and the window sums g, h; the first column and the
// window sums are gone after it.
#define DQ_OUTPUT(KIND, NARROW, a, b, c, d, e, f, g, h)                                            \
  "ldp q18, q19, [%[start]]\n\tldp q20, q21, [%[start]]\n\t" DQ_##KIND##_START(g, h) DQ_TAPS(      \
      a, b, 0, 1, 2, 3) DQ_TAPS(c, d, 4, 5, 6, 7) DQ_TAPS(e, f, 8, 9, 10, 11)                      \
      DQ_##KIND##_SCALE(                                                                           \
          g,                                                                                       \
          h) "ldp q" #a ", q" #b                                                                   \
             ", [%[bias]]\n\t"                                                                     \
             "scvtf v18.4s, v18.4s\n\tscvtf v19.4s, v19.4s\n\tscvtf v20.4s, v20.4s\n\tscvtf "      \
             "v21.4s, v21.4s\n\t" DQ_##KIND##_SCALED(                                              \
                 a, b, 18, 19, g,                                                                  \
                 h) "ldp q18, q19, [%[bias]]\n\t" DQ_##KIND##_SCALED(18, 19, 20, 21, g,            \
                                                                     h) "fcvtns v" #a ".4s, v" #a  \
                                                                        ".4s\n\tfcvtns v" #b       \
                                                                        ".4s, v" #b                \
                                                                        ".4s\n\tfcvtns v18.4s, "   \
                                                                        "v18.4s\n\tfcvtns "        \
                                                                        "v19.4s, "                 \
                                                                        "v19.4s\n\t" DQ_##NARROW(  \
                                                                            a, b)                  \
                                                                            DQ_##NARROW(           \
                                                                                18,                \
                                                                                19) "sqadd v" #a   \
                                                                                    ".8h, v" #a    \
                                                                                    ".8h, "        \
                                                                                    "v28."         \
                                                                                    "8h\n\tsqadd " \
                                                                                    "v18.8h, "     \
                                                                                    "v18.8h, "     \
                                                                                    "v28.8h\n\t"   \
                                                                                    "sqxtn v" #a   \
                                                                                    ".8b, v" #a    \
                                                                                    ".8h\n\tsqxtn" \
                                                                                    " v18.8b, "    \
                                                                                    "v18.8h\n\t"   \
                                                                                    "st1 {v" #a    \
                                                                                    ".8b}, "       \
                                                                                    "[%[upper]], " \
                                                                                    "%[upper_"     \
                                                                                    "stride]"      \
                                                                                    "\n\tst1 "     \
                                                                                    "{v18.8b}, "   \
                                                                                    "[%[lower]], " \
                                                                                    "%[lower_"     \
                                                                                    "stride]\n\t"
#define DQ_SECOND_OUTPUT(KIND, NARROW, a, b, c, d, e, f, g, h, i, j) \
  DQ_##KIND##_SECOND(i, j, g, h) DQ_OUTPUT(KIND, NARROW, c, d, e, f, a, b, i, j)
// Columns and sums, of which the third is loaded, then the first again.
#define DQ_PAIR(KIND, NARROW, a, b, c, d, e, f, g, h, i, j, k, l)               \
  DQ_##KIND##_COLUMN(e, f, k, l) DQ_##KIND##_FIRST(g, h, i, j, k, l) DQ_OUTPUT( \
      KIND, NARROW, a, b, c, d, e, f, g, h) DQ_##KIND##_COLUMN(a, b, g, h)      \
      DQ_SECOND_OUTPUT(KIND, NARROW, a, b, c, d, e, f, g, h, i, j) "sub %[left], %[left], #1\n\t"
#define DQ_MOVE(a, b, c, d) "mov v" #a ".16b, v" #c ".16b\n\tmov v" #b ".16b, v" #d ".16b\n\t"
#define DQ_PLAIN_MOVE(a, b, c, d)
#define DQ_WINDOW_MOVE(a, b, c, d) DQ_MOVE(a, b, c, d)
#define DQ_PLAIN_HELD "ldp q22, q23, [%[scale]]\n\t"
#define DQ_WINDOW_HELD
// Three pairs of outputs a round. A row ends in the first pair's registers.
#define DQ_ROWS(KIND, NARROW) \
  __asm__ volatile( \
      "ldp q0, q1, [%[weight]]\n\tldp q2, q3, [%[weight], #32]\n\t" \
      "ldp q4, q5, [%[weight], #128]\n\tldp q6, q7, [%[weight], #160]\n\t" \
      "ldp q8, q9, [%[weight], #256]\n\tldp q10, q11, [%[weight], #288]\n\t" \
      "ldp q28, q29, [%[k], #96]\n\tldp q30, q31, [%[k]]\n\t" DQ_##KIND##_HELD \
      "1:\n\t" \
      "ldp %[x0], %[x1], [%[rows]], #96\n\tldp %[x2], %[x3], [%[rows], #-80]\n\t" \
      "ldp %[s0], %[s1], [%[rows], #-64]\n\tldp %[s2], %[s3], [%[rows], #-48]\n\t" \
      "ldp %[upper], %[lower], [%[rows], #-32]\n\tldp %[upper_stride], %[lower_stride], [%[rows], #-16]\n\t" \
      "add %[x0], %[x0], %[channel]\n\tadd %[x1], %[x1], %[channel]\n\tadd %[x2], %[x2], %[channel]\n\tadd %[x3], %[x3], %[channel]\n\t" \
      "add %[upper], %[upper], %[channel]\n\tadd %[lower], %[lower], %[channel]\n\tmov %[left], %[full]\n\t" \
      DQ_##KIND##_PAD(12, 13, 22, 23) DQ_##KIND##_COLUMN(14, 15, 24, 25) \
      "cbz %[left], 5f\n\t2:\n\t" \
      DQ_PAIR(KIND, NARROW, 12, 13, 14, 15, 16, 17, 22, 23, 24, 25, 26, 27) \
      "cbz %[left], 3f\n\t" \
      DQ_PAIR(KIND, NARROW, 16, 17, 12, 13, 14, 15, 26, 27, 22, 23, 24, 25) \
      "cbz %[left], 4f\n\t" \
      DQ_PAIR(KIND, NARROW, 14, 15, 16, 17, 12, 13, 24, 25, 26, 27, 22, 23) \
      "cbnz %[left], 2b\n\tb 5f\n\t" \
      "3:\n\t" DQ_MOVE(14, 15, 12, 13) DQ_MOVE(12, 13, 16, 17) DQ_##KIND##_MOVE(24, 25, 22, 23) DQ_##KIND##_MOVE(22, 23, 26, 27) \
      "b 5f\n\t" \
      "4:\n\t" DQ_MOVE(12, 13, 14, 15) DQ_MOVE(14, 15, 16, 17) DQ_##KIND##_MOVE(22, 23, 24, 25) DQ_##KIND##_MOVE(24, 25, 26, 27) \
      "5:\n\tcbnz %[odd], 6f\n\t" DQ_##KIND##_COLUMN(16, 17, 26, 27) "b 7f\n\t" \
      "6:\n\t" DQ_##KIND##_PAD(16, 17, 26, 27) \
      "7:\n\t" DQ_##KIND##_FIRST(22, 23, 24, 25, 26, 27) DQ_OUTPUT(KIND, NARROW, 12, 13, 14, 15, 16, 17, 22, 23) \
      "cbnz %[odd], 8f\n\t" DQ_##KIND##_PAD(12, 13, 22, 23) \
      DQ_SECOND_OUTPUT(KIND, NARROW, 12, 13, 14, 15, 16, 17, 22, 23, 24, 25) \
      "8:\n\tsubs %[pairs], %[pairs], #1\n\tb.ne 1b\n\t" \
      : [rows] "+&r"(d.rows), [pairs] "+&r"(d.pairs), [x0] "=&r"(x[0]), [x1] "=&r"(x[1]), \
        [x2] "=&r"(x[2]), [x3] "=&r"(x[3]), [s0] "=&r"(s[0]), [s1] "=&r"(s[1]), [s2] "=&r"(s[2]), \
        [s3] "=&r"(s[3]), [upper] "=&r"(out[0]), [lower] "=&r"(out[1]), \
        [upper_stride] "=&r"(t[0]), [lower_stride] "=&r"(t[1]), [left] "=&r"(left) \
      : [k] "r"(d.constants), [weight] "r"(d.weight), [start] "r"(d.start), [scale] "r"(d.scale), \
        [bias] "r"(d.bias), [channel] "r"(d.channel), [full] "r"(d.full), [odd] "r"(d.odd) \
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", \
        "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", \
        "v25", "v26", "v27", "v28", "v29", "v30", "v31")

// kWindow: with window factors. kShort: int16 holds every output before the zero point.
template <bool kWindow, bool kShort>
inline void dw_3x3_rows(Dw3x3 d) {
  const int8_t* x[4];
  int8_t* out[2];
  int64_t s[4], t[2], left;
  if constexpr (kWindow && kShort) {
    DQ_ROWS(WINDOW, SHORT);
  } else if constexpr (kWindow) {
    DQ_ROWS(WINDOW, LONG);
  } else if constexpr (kShort) {
    DQ_ROWS(PLAIN, SHORT);
  } else {
    DQ_ROWS(PLAIN, LONG);
  }
}

#undef DQ_LOAD
#undef DQ_INTERLEAVE
#undef DQ_PLAIN_COLUMN
#undef DQ_WINDOW_COLUMN
#undef DQ_PLAIN_PAD
#undef DQ_WINDOW_PAD
#undef DQ_ADD
#undef DQ_PLAIN_FIRST
#undef DQ_WINDOW_FIRST
#undef DQ_PLAIN_SECOND
#undef DQ_WINDOW_SECOND
#undef DQ_PLAIN_START
#undef DQ_WINDOW_START
#undef DQ_TAPS
#undef DQ_PLAIN_SCALE
#undef DQ_WINDOW_SCALE
#undef DQ_PLAIN_SCALED
#undef DQ_WINDOW_SCALED
#undef DQ_SHORT
#undef DQ_LONG
#undef DQ_OUTPUT
#undef DQ_SECOND_OUTPUT
#undef DQ_PAIR
#undef DQ_MOVE
#undef DQ_PLAIN_MOVE
#undef DQ_WINDOW_MOVE
#undef DQ_PLAIN_HELD
#undef DQ_WINDOW_HELD
#undef DQ_ROWS

DQ_INLINE bool dw_is_3x3(const DwS8Args& a) {
  return a.kernel[0] == 3 && a.kernel[1] == 3 && a.stride[0] == 1 && a.stride[1] == 1 &&
         a.dilation[0] == 1 && a.dilation[1] == 1 && a.padding[1] == 1;
}

// Of all rows, whichever of them are asked for.
inline size_t dw_3x3_scratch(const DwS8Args& a) {
  if (!dw_is_3x3(a)) return 0;
  const int64_t out_h = a.h + 2 * a.padding[0] - 2;
  return static_cast<size_t>((out_h + 1) / 2) * sizeof(DwRowPair) +
         static_cast<size_t>(2 * a.channels);
}

// The row pairs that are asked for, in scratch.
inline const DwRowPair* dw_row_pairs(const DwS8Args& a, void* scratch) {
  auto* pair = static_cast<DwRowPair*>(scratch);
  const DwRowPair* first = pair;
  auto* pad = reinterpret_cast<int8_t*>(pair + (a.oy1 - a.oy0 + 1) / 2);
  std::memset(pad, a.pad_value, static_cast<size_t>(a.channels));
  for (int64_t oy = a.oy0; oy < a.oy1; oy += 2, ++pair) {
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t y = oy - a.padding[0] + j;
      const bool there = y >= 0 && y < a.h;
      pair->x[j] = there ? a.x + y * a.w * a.x_stride : pad;
      pair->x_stride[j] = there ? a.x_stride : 0;
    }
    const int64_t row = a.out_w * a.out_stride;
    int8_t* out = static_cast<int8_t*>(a.out) + oy * row;
    const bool second = oy + 1 < a.oy1;
    pair->out[0] = out;
    pair->out[1] = second ? out + row : pad + a.channels;
    pair->out_stride[0] = a.out_stride;
    pair->out_stride[1] = second ? a.out_stride : 0;
  }
  return first;
}

// Whether every output rounds to int16 with its zero point, whatever the activations are.
inline bool dw_is_short(const DwBlock& k) {
  float32x4_t most = vdupq_n_f32(0.0f);
  for (int i = 0; i < kParts; ++i) {
    // in floats, since int32 may not hold it
    float32x4_t sum =
        vaddq_f32(vabsq_f32(vcvtq_f32_s32(vld1q_s32(k.start + i * 4))), vdupq_n_f32(9 * 128 * 128));
    sum = vfmaq_n_f32(sum, vabsq_f32(vcvtq_f32_s32(k.factor[i])), 9 * 128);
    const float32x4_t bias = vabsq_f32(vld1q_f32(k.bias + i * 4));
    most = vmaxq_f32(most, vfmaq_f32(bias, sum, vabsq_f32(vld1q_f32(k.scale + i * 4))));
  }
  return vmaxvq_f32(most) < 32600.0f;
}

alignas(16) constexpr uint8_t kRowsToFours[32] = {8,  0,  16, 24, 9,  1,  17, 25, 10, 2,  18,
                                                  26, 11, 3,  19, 27, 12, 4,  20, 28, 13, 5,
                                                  21, 29, 14, 6,  22, 30, 15, 7,  23, 31};

// A block of 8 or 16 channels, with weights as `Dw3x3` has them.
inline void dw_3x3(const DwBlock& k, const DwRowPair* rows, const int8_t* weight) {
  const DwS8Args& a = *k.a;
  Dw3x3Constants constants;
  std::memcpy(constants.index, kRowsToFours, sizeof(constants.index));
  vst1q_s8(constants.pad[0], vdupq_n_s8(a.pad_value));
  vst1q_s8(constants.pad[1], vdupq_n_s8(a.pad_value));
  vst1q_s16(constants.pad_sum[0], vdupq_n_s16(static_cast<int16_t>(3 * a.pad_value)));
  vst1q_s16(constants.pad_sum[1], vdupq_n_s16(static_cast<int16_t>(3 * a.pad_value)));
  vst1q_s16(constants.zero_point, vdupq_n_s16(k.int8.zero_point));
  const bool is_short = dw_is_short(k);
  for (int half = 0; half * 8 < k.n; ++half) {
    vst1q_s16(constants.factor,
              vcombine_s16(vmovn_s32(k.factor[2 * half]), vmovn_s32(k.factor[2 * half + 1])));
    const Dw3x3 d = {rows,
                     (a.oy1 - a.oy0 + 1) / 2,
                     k.c0 + half * 8,
                     (a.out_w - 1) / 2,
                     a.out_w % 2,
                     weight + half * 64,
                     k.start + half * 8,
                     k.scale + half * 8,
                     k.bias + half * 8,
                     &constants};
    if (a.window_factor != nullptr) {
      is_short ? dw_3x3_rows<true, true>(d) : dw_3x3_rows<true, false>(d);
    } else {
      is_short ? dw_3x3_rows<false, true>(d) : dw_3x3_rows<false, false>(d);
    }
  }
}

}  // namespace
}  // namespace defakeq

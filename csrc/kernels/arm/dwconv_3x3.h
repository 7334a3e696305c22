// The common case of the depthwise convolution in assembly: 3x3, stride 1, a column of padding on
// both sides, plain int8 out. 8 channels at a time through all rows, so that the weights stay in
// registers; two output rows at once, through whose three columns of four input rows each slides.
#pragma once

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

// How taps are multiplied: by sdot, columns interleaved to [8 channels][4 rows]; the same with the
// sums of the windows times the window factors; or in int16 by smlal, where weights and window
// factors are added up.
enum class Dw3x3Taps { kDot, kDotWindow, kWide };

// In this order, which the assembly knows.
struct Dw3x3Constants {
  uint8_t index[2][16];  // from 8 bytes of the rows 1, 0, 2 and 3 each to [8 channels][4 rows]
  int8_t pad[4][16];     // a column's registers
  int16_t zero_point[8];
  int16_t factor[8];
};

struct Dw3x3 {
  const DwRowPair* rows;
  int64_t pairs;       // of output rows
  int64_t channel;     // of the first of 8
  int64_t rounds;      // of three outputs, the first of them less `begin`; the last output is apart
  int64_t begin;       // where the first round begins
  const void* weight;  // sdot: [3 columns] of 128 bytes: [upper, lower output row][2 parts][16];
                       // smlal: [9 taps][8] int16
  const int32_t* start;
  const float *scale, *bias;
  const Dw3x3Constants* constants;
};

// v0-v11: weights and, for smlal, scales in v9 and v10; v12-v23: three columns of four registers;
// v24-v27: sums of the upper and the lower output and, before, what is loaded; v28: zero point.
// For sdot a column is two registers, the others are the sums of its upper and lower three rows, or
// the first column's hold scales; v29: window factors, v30-v31: index.
// clang-format off
#define DQ_DOT_LOAD \
  "ld1 {v24.8b}, [%[x1]], %[s1]\n\tld1 {v25.8b}, [%[x2]], %[s2]\n\t" \
  "ld1 {v24.d}[1], [%[x0]], %[s0]\n\tld1 {v25.d}[1], [%[x3]], %[s3]\n\t"
#define DQ_INTERLEAVE(a, b) \
  "tbl v" #a ".16b, {v24.16b, v25.16b}, v30.16b\n\t" \
  "tbl v" #b ".16b, {v24.16b, v25.16b}, v31.16b\n\t"
#define DQ_DOT_COLUMN(a, b, e, f) DQ_DOT_LOAD DQ_INTERLEAVE(a, b)
#define DQ_WINDOW_COLUMN(a, b, e, f) \
  DQ_DOT_LOAD "saddl v26.8h, v24.8b, v25.8b\n\t" DQ_INTERLEAVE(a, b) \
  "saddw2 v" #e ".8h, v26.8h, v24.16b\n\tsaddw2 v" #f ".8h, v26.8h, v25.16b\n\t"
#define DQ_WIDE_LOAD(a, x, s) "ld1 {v" #a ".8b}, [%[" #x "]], %[" #s "]\n\t"
#define DQ_WIDEN(a) "sxtl v" #a ".8h, v" #a ".8b\n\t"
#define DQ_WIDE_COLUMN(a, b, e, f) \
  DQ_WIDE_LOAD(a, x0, s0) DQ_WIDE_LOAD(b, x1, s1) DQ_WIDE_LOAD(e, x2, s2) DQ_WIDE_LOAD(f, x3, s3) \
  DQ_WIDEN(a) DQ_WIDEN(b) DQ_WIDEN(e) DQ_WIDEN(f)
#define DQ_DOT_PAD(a, b, e, f) "ldp q" #a ", q" #b ", [%[k], #32]\n\t"
#define DQ_WINDOW_PAD(a, b, e, f) DQ_DOT_PAD(a, b, e, f) "ldp q" #e ", q" #f ", [%[k], #64]\n\t"
#define DQ_WIDE_PAD(a, b, e, f) DQ_WINDOW_PAD(a, b, e, f)
// A column by the kernel column of the weights u, v, w, x.
#define DQ_DOT_TAPS(a, b, e, f, u, v, w, x) \
  "sdot v24.4s, v" #a ".16b, v" #u ".16b\n\tsdot v25.4s, v" #b ".16b, v" #v ".16b\n\t" \
  "sdot v26.4s, v" #a ".16b, v" #w ".16b\n\tsdot v27.4s, v" #b ".16b, v" #x ".16b\n\t"
#define DQ_MULTIPLY(p, q, a, w) \
  "smlal v" #p ".4s, v" #a ".4h, v" #w ".4h\n\tsmlal2 v" #q ".4s, v" #a ".8h, v" #w ".8h\n\t"
#define DQ_WIDE_TAPS(a, b, e, f, u, v, w) \
  DQ_MULTIPLY(24, 25, a, u) DQ_MULTIPLY(26, 27, b, u) DQ_MULTIPLY(24, 25, b, v) \
  DQ_MULTIPLY(26, 27, e, v) DQ_MULTIPLY(24, 25, e, w) DQ_MULTIPLY(26, 27, f, w)
#define DQ_START "ldp q24, q25, [%[start]]\n\tldp q26, q27, [%[start]]\n\t"
#define DQ_ADD(a, b, c, d) \
  "add v" #a ".8h, v" #a ".8h, v" #c ".8h\n\tadd v" #b ".8h, v" #b ".8h, v" #d ".8h\n\t"
// The sums of three columns; what the first one's lie in may be overwritten.
#define DQ_DOT_SUMS(a, b, e, f, c, d, g, h, i, j, k, l) \
  DQ_START DQ_DOT_TAPS(a, b, e, f, 0, 1, 2, 3) DQ_DOT_TAPS(c, d, g, h, 4, 5, 6, 7) \
  DQ_DOT_TAPS(i, j, k, l, 8, 9, 10, 11)
#define DQ_WINDOW_SUMS(a, b, e, f, c, d, g, h, i, j, k, l) \
  DQ_START DQ_ADD(e, f, g, h) DQ_ADD(e, f, k, l) \
  DQ_MULTIPLY(24, 25, e, 29) DQ_MULTIPLY(26, 27, f, 29) \
  DQ_DOT_TAPS(a, b, e, f, 0, 1, 2, 3) DQ_DOT_TAPS(c, d, g, h, 4, 5, 6, 7) \
  DQ_DOT_TAPS(i, j, k, l, 8, 9, 10, 11) "ldp q" #e ", q" #f ", [%[scale]]\n\t"
#define DQ_WIDE_SUMS(a, b, e, f, c, d, g, h, i, j, k, l) \
  DQ_START DQ_WIDE_TAPS(a, b, e, f, 0, 3, 6) DQ_WIDE_TAPS(c, d, g, h, 1, 4, 7) \
  DQ_WIDE_TAPS(i, j, k, l, 2, 5, 8)
#define DQ_SCALED(a, b, p, q, s, t) \
  "fmla v" #a ".4s, v" #p ".4s, v" #s ".4s\n\tfmla v" #b ".4s, v" #q ".4s, v" #t ".4s\n\t"
#define DQ_DOT_SCALED(a, b, p, q, e, f) DQ_SCALED(a, b, p, q, 14, 15)
#define DQ_WINDOW_SCALED(a, b, p, q, e, f) DQ_SCALED(a, b, p, q, e, f)
#define DQ_WIDE_SCALED(a, b, p, q, e, f) DQ_SCALED(a, b, p, q, 9, 10)
#define DQ_BIAS(a, b) "ldp q" #a ", q" #b ", [%[bias]]\n\t"
#define DQ_FLOATS(a, b) "scvtf v" #a ".4s, v" #a ".4s\n\tscvtf v" #b ".4s, v" #b ".4s\n\t"
#define DQ_ROUND(a, b) "fcvtns v" #a ".4s, v" #a ".4s\n\tfcvtns v" #b ".4s, v" #b ".4s\n\t"
#define DQ_SHORT(a, b) "uzp1 v" #a ".8h, v" #a ".8h, v" #b ".8h\n\t"
#define DQ_LONG(a, b) "sqxtn v" #a ".4h, v" #a ".4s\n\tsqxtn2 v" #a ".8h, v" #b ".4s\n\t"
// Both outputs of the sums; a, b: free, e, f: scales.
#define DQ_FINISH(KIND, NARROW, a, b, e, f) \
  DQ_BIAS(a, b) DQ_FLOATS(24, 25) DQ_FLOATS(26, 27) DQ_##KIND##_SCALED(a, b, 24, 25, e, f) \
  DQ_BIAS(24, 25) DQ_##KIND##_SCALED(24, 25, 26, 27, e, f) DQ_ROUND(a, b) DQ_ROUND(24, 25) \
  DQ_##NARROW(a, b) DQ_##NARROW(24, 25) \
  "sqadd v" #a ".8h, v" #a ".8h, v28.8h\n\tsqadd v24.8h, v24.8h, v28.8h\n\t" \
  "sqxtn v" #a ".8b, v" #a ".8h\n\tsqxtn v24.8b, v24.8h\n\t" \
  "st1 {v" #a ".8b}, [%[upper]], %[upper_stride]\n\tst1 {v24.8b}, [%[lower]], %[lower_stride]\n\t"
// An output of both rows: three columns, the last of which comes by LAST.
#define DQ_OUTPUT(LAST, KIND, NARROW, a, b, e, f, c, d, g, h, i, j, k, l) \
  DQ_##KIND##_##LAST(i, j, k, l) DQ_##KIND##_SUMS(a, b, e, f, c, d, g, h, i, j, k, l) \
  DQ_FINISH(KIND, NARROW, a, b, e, f)
// A column is one argument until here.
#define DQ_OUTPUT_OF(...) DQ_OUTPUT(__VA_ARGS__)
#define DQ_FIRST 12, 13, 14, 15
#define DQ_SECOND 16, 17, 18, 19
#define DQ_THIRD 20, 21, 22, 23
#define DQ_BEGIN(KIND, ...) DQ_##KIND##_PAD(__VA_ARGS__)
#define DQ_NEXT(KIND, ...) DQ_##KIND##_COLUMN(__VA_ARGS__)
#define DQ_DOT_HELD \
  "ldp q0, q1, [%[weight]]\n\tldp q2, q3, [%[weight], #32]\n\t" \
  "ldp q4, q5, [%[weight], #128]\n\tldp q6, q7, [%[weight], #160]\n\t" \
  "ldp q8, q9, [%[weight], #256]\n\tldp q10, q11, [%[weight], #288]\n\t" \
  "ldp q28, q29, [%[k], #96]\n\tldp q30, q31, [%[k]]\n\tldp q14, q15, [%[scale]]\n\t"
#define DQ_WINDOW_HELD DQ_DOT_HELD
#define DQ_WIDE_HELD \
  "ldp q0, q1, [%[weight]]\n\tldp q2, q3, [%[weight], #32]\n\tldp q4, q5, [%[weight], #64]\n\t" \
  "ldp q6, q7, [%[weight], #96]\n\tldr q8, [%[weight], #128]\n\tldp q9, q10, [%[scale]]\n\t" \
  "ldr q28, [%[k], #96]\n\t"
// Row pairs. A row begins at that output of the round from which on the last output finds its
// columns in DQ_FIRST and DQ_SECOND.
#define DQ_ROWS(KIND, NARROW) \
  __asm__ volatile( \
      DQ_##KIND##_HELD \
      "1:\n\t" \
      "ldp %[x0], %[x1], [%[rows]], #96\n\tldp %[x2], %[x3], [%[rows], #-80]\n\t" \
      "ldp %[s0], %[s1], [%[rows], #-64]\n\tldp %[s2], %[s3], [%[rows], #-48]\n\t" \
      "ldp %[upper], %[lower], [%[rows], #-32]\n\t" \
      "ldp %[upper_stride], %[lower_stride], [%[rows], #-16]\n\t" \
      "add %[x0], %[x0], %[channel]\n\tadd %[x1], %[x1], %[channel]\n\t" \
      "add %[x2], %[x2], %[channel]\n\tadd %[x3], %[x3], %[channel]\n\t" \
      "add %[upper], %[upper], %[channel]\n\tadd %[lower], %[lower], %[channel]\n\t" \
      "mov %[left], %[rounds]\n\t" \
      "cbnz %[begin], 2f\n\t" DQ_BEGIN(KIND, DQ_FIRST) DQ_NEXT(KIND, DQ_SECOND) \
      "cbnz %[left], 4f\n\tb 7f\n\t" \
      "2:\n\ttbnz %[begin], #1, 3f\n\t" \
      DQ_BEGIN(KIND, DQ_SECOND) DQ_NEXT(KIND, DQ_THIRD) "b 5f\n\t" \
      "3:\n\t" DQ_BEGIN(KIND, DQ_THIRD) DQ_NEXT(KIND, DQ_FIRST) "b 6f\n\t" \
      "4:\n\t" DQ_OUTPUT_OF(COLUMN, KIND, NARROW, DQ_FIRST, DQ_SECOND, DQ_THIRD) \
      "5:\n\t" DQ_OUTPUT_OF(COLUMN, KIND, NARROW, DQ_SECOND, DQ_THIRD, DQ_FIRST) \
      "6:\n\t" DQ_OUTPUT_OF(COLUMN, KIND, NARROW, DQ_THIRD, DQ_FIRST, DQ_SECOND) \
      "subs %[left], %[left], #1\n\tb.ne 4b\n\t" \
      "7:\n\t" DQ_OUTPUT_OF(PAD, KIND, NARROW, DQ_FIRST, DQ_SECOND, DQ_THIRD) \
      "subs %[pairs], %[pairs], #1\n\tb.ne 1b\n\t" \
      : [rows] "+&r"(d.rows), [pairs] "+&r"(d.pairs), [x0] "=&r"(x[0]), [x1] "=&r"(x[1]), \
        [x2] "=&r"(x[2]), [x3] "=&r"(x[3]), [s0] "=&r"(s[0]), [s1] "=&r"(s[1]), [s2] "=&r"(s[2]), \
        [s3] "=&r"(s[3]), [upper] "=&r"(out[0]), [lower] "=&r"(out[1]), \
        [upper_stride] "=&r"(t[0]), [lower_stride] "=&r"(t[1]), [left] "=&r"(left) \
      : [k] "r"(d.constants), [weight] "r"(d.weight), [start] "r"(d.start), [scale] "r"(d.scale), \
        [bias] "r"(d.bias), [channel] "r"(d.channel), [rounds] "r"(d.rounds), [begin] "r"(d.begin) \
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", \
        "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", \
        "v25", "v26", "v27", "v28", "v29", "v30", "v31")
// clang-format on

// kShort: int16 holds every output before the zero point.
template <Dw3x3Taps kTaps, bool kShort>
__attribute__((noinline)) inline void dw_3x3_rows(Dw3x3 d) {
  const int8_t* x[4];
  int8_t* out[2];
  int64_t s[4], t[2], left;
  if constexpr (kTaps == Dw3x3Taps::kDot && kShort) {
    DQ_ROWS(DOT, SHORT);
  } else if constexpr (kTaps == Dw3x3Taps::kDot) {
    DQ_ROWS(DOT, LONG);
  } else if constexpr (kTaps == Dw3x3Taps::kDotWindow && kShort) {
    DQ_ROWS(WINDOW, SHORT);
  } else if constexpr (kTaps == Dw3x3Taps::kDotWindow) {
    DQ_ROWS(WINDOW, LONG);
  } else if constexpr (kShort) {
    DQ_ROWS(WIDE, SHORT);
  } else {
    DQ_ROWS(WIDE, LONG);
  }
}

#undef DQ_DOT_LOAD
#undef DQ_INTERLEAVE
#undef DQ_DOT_COLUMN
#undef DQ_WINDOW_COLUMN
#undef DQ_WIDE_LOAD
#undef DQ_WIDEN
#undef DQ_WIDE_COLUMN
#undef DQ_DOT_PAD
#undef DQ_WINDOW_PAD
#undef DQ_WIDE_PAD
#undef DQ_DOT_TAPS
#undef DQ_MULTIPLY
#undef DQ_WIDE_TAPS
#undef DQ_START
#undef DQ_ADD
#undef DQ_DOT_SUMS
#undef DQ_WINDOW_SUMS
#undef DQ_WIDE_SUMS
#undef DQ_SCALED
#undef DQ_DOT_SCALED
#undef DQ_WINDOW_SCALED
#undef DQ_WIDE_SCALED
#undef DQ_BIAS
#undef DQ_FLOATS
#undef DQ_ROUND
#undef DQ_SHORT
#undef DQ_LONG
#undef DQ_FINISH
#undef DQ_OUTPUT
#undef DQ_OUTPUT_OF
#undef DQ_FIRST
#undef DQ_SECOND
#undef DQ_THIRD
#undef DQ_BEGIN
#undef DQ_NEXT
#undef DQ_DOT_HELD
#undef DQ_WINDOW_HELD
#undef DQ_WIDE_HELD
#undef DQ_ROWS

DQ_INLINE bool dw_is_3x3(const DwS8Args& a) {
  return a.kernel[0] == 3 && a.kernel[1] == 3 && a.stride[0] == 1 && a.stride[1] == 1 &&
         a.dilation[0] == 1 && a.dilation[1] == 1 && a.padding[1] == 1;
}

// Of all rows, whichever of them are asked for; a multiple of 64 bytes.
inline size_t dw_3x3_scratch(const DwS8Args& a) {
  if (!dw_is_3x3(a)) return 0;
  const int64_t out_h = a.h + 2 * a.padding[0] - 2;
  const size_t pairs = static_cast<size_t>((out_h + 1) / 2) * sizeof(DwRowPair);
  return (pairs + static_cast<size_t>(2 * a.channels) + 63) / 64 * 64;
}

// The row pairs that are asked for, in scratch, which then begins behind them; null when the kernel
// is another.
inline const DwRowPair* dw_row_pairs(DwS8Args& a) {
  if (!dw_is_3x3(a)) return nullptr;
  auto* pair = static_cast<DwRowPair*>(a.scratch);
  a.scratch = static_cast<char*>(a.scratch) + dw_3x3_scratch(a);
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

DQ_INLINE bool dw_takes_3x3(const DwBlock& k, const DwRowPair* rows) {
  return rows != nullptr && k.n % 8 == 0 && dw_finish_of(k) == DwFinish::kBareInt8;
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

// A block of 8 or 16 channels that dw_takes_3x3. The second half's weights lie half_bytes behind.
template <Dw3x3Taps kTaps>
inline void dw_3x3(const DwBlock& k, const DwRowPair* rows, const void* weight,
                   int64_t half_bytes) {
  const DwS8Args& a = *k.a;
  const int8x16_t bytes = vdupq_n_s8(a.pad_value);
  const int8x16_t sums = vreinterpretq_s8_s16(
      vdupq_n_s16(static_cast<int16_t>(kTaps == Dw3x3Taps::kWide ? a.pad_value : 3 * a.pad_value)));
  Dw3x3Constants constants;
  std::memcpy(constants.index, kRowsToFours, sizeof(constants.index));
  for (int i = 0; i < 4; ++i) {
    vst1q_s8(constants.pad[i], kTaps == Dw3x3Taps::kWide || i >= 2 ? sums : bytes);
  }
  vst1q_s16(constants.zero_point, vdupq_n_s16(k.int8.zero_point));
  const bool is_short = dw_is_short(k);
  const int64_t steps = a.out_w - 1;
  for (int half = 0; half * 8 < k.n; ++half) {
    vst1q_s16(constants.factor,
              vcombine_s16(vmovn_s32(k.factor[2 * half]), vmovn_s32(k.factor[2 * half + 1])));
    const Dw3x3 d = {rows,
                     (a.oy1 - a.oy0 + 1) / 2,
                     k.c0 + half * 8,
                     (steps + 2) / 3,
                     (3 - steps % 3) % 3,
                     static_cast<const char*>(weight) + half * half_bytes,
                     k.start + half * 8,
                     k.scale + half * 8,
                     k.bias + half * 8,
                     &constants};
    is_short ? dw_3x3_rows<kTaps, true>(d) : dw_3x3_rows<kTaps, false>(d);
  }
  dw_replace_outputs(k);
}

}  // namespace
}  // namespace defakeq

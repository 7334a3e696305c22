// usmmla: 2 rows by 2 outputs by 8 positions an instruction, unsigned codes as they are. Codes are
// arranged by pairs of steps to [8 pairs of outputs][2 outputs][8]; the last step of an odd run
// stays [16][4].
#include "kernels/arm/finish.h"
#include "kernels/arm/kernels.h"
#include "kernels/simd/tiles.h"

namespace defakeq::i8mm {

namespace {

constexpr int kRows = 4;
constexpr int kPairs = kBlock / 2;

// Two rows of 8 activations each, the second one zero when there is none.
template <int R>
DQ_INLINE void pair_rows(const int8x16_t (&v)[R], int8x16_t (&low)[(R + 1) / 2],
                         int8x16_t (&high)[(R + 1) / 2]) {
  const auto wide = [](int8x16_t x) { return vreinterpretq_s64_s8(x); };
#pragma GCC unroll 2
  for (int p = 0; p < (R + 1) / 2; ++p) {
    const int64x2_t a = wide(v[2 * p]);
    const int64x2_t b = 2 * p + 1 < R ? wide(v[2 * p + 1 < R ? 2 * p + 1 : 0]) : vdupq_n_s64(0);
    low[p] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
    high[p] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
  }
}

template <int P>
DQ_INLINE void add_eight(const uint8_t* w, const int8x16_t (&x)[P], int32x4_t (&acc)[P][kPairs]) {
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i) {
    const uint8x16_t wv = vld1q_u8(w + i * 16);
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      // the left operand is unsigned: lanes are output 0 of both rows, output 1 of both rows
      __asm__("usmmla %0.4s, %1.16b, %2.16b" : "+w"(acc[p][i]) : "w"(wv), "w"(x[p]));
    }
  }
}

// The last 4 positions of an odd run, their codes as [16][4].
template <int R>
DQ_INLINE void add_four(const uint8_t* w, const int8_t* const (&x)[R], int64_t k,
                        int32x4_t (&acc)[(R + 1) / 2][kPairs]) {
  constexpr int P = (R + 1) / 2;
  int8x16_t v[R], low[P], high[P];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    int32_t four;
    std::memcpy(&four, x[r] + k, 4);
    v[r] = vreinterpretq_s8_s32(vsetq_lane_s32(four, vdupq_n_s32(0), 0));
  }
  pair_rows<R>(v, low, high);
  uint8_t wide[kPairs * 16];
  const uint32x4_t zero = vdupq_n_u32(0);
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const uint32x4_t fours = vreinterpretq_u32_u8(vld1q_u8(w + i * 16));
    vst1q_u8(wide + i * 32, vreinterpretq_u8_u32(vzip1q_u32(fours, zero)));
    vst1q_u8(wide + i * 32 + 16, vreinterpretq_u8_u32(vzip2q_u32(fours, zero)));
  }
  add_eight<P>(wide, low, acc);
}

// Bytes of a tile's rows that are brought into pairs beforehand, for both blocks of a strip.
constexpr int64_t kPanel = 24 * 1024;

// Whether every tap is whole eights, and the rows of a tile fit.
DQ_INLINE bool pairs_ahead(const GemmS8Args& a) {
  return a.blocks > 1 && a.steps % 2 == 0 && a.taps * a.steps * 4 * kRows <= kPanel;
}

// All taps of R rows as [eight positions][pair of rows][16].
template <int R>
DQ_INLINE void pair_ahead(const GemmS8Args& a, int64_t row, int8_t* panel) {
  constexpr int P = (R + 1) / 2;
  const int64_t length = a.steps * 4;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    int8x16_t v[R], low[P], high[P];
    int64_t k = 0;
    for (; k + 16 <= length; k += 16, panel += 2 * P * 16) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) v[r] = vld1q_s8(x[r] + k);
      pair_rows<R>(v, low, high);
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        vst1q_s8(panel + p * 16, low[p]);
        vst1q_s8(panel + (P + p) * 16, high[p]);
      }
    }
    if (k < length) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) v[r] = vcombine_s8(vld1_s8(x[r] + k), vdup_n_s8(0));
      pair_rows<R>(v, low, high);
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) vst1q_s8(panel + p * 16, low[p]);
      panel += P * 16;
    }
  }
}

template <int R>
using PairSums = int32x4_t[(R + 1) / 2][kPairs];

// The whole reduction of rows that are paired.
template <int R>
DQ_INLINE void sum_pairs(const GemmS8Args& a, const uint8_t* w, const int8_t* panel,
                         PairSums<R>& acc) {
  constexpr int P = (R + 1) / 2;
  int64_t eights = a.taps * a.steps / 2;
  const auto add = [&]() __attribute__((always_inline)) {
    int8x16_t x[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) x[p] = vld1q_s8(panel + p * 16);
    add_eight<P>(w, x, acc);
    panel += P * 16;
    w += 128;
  };
  for (; eights >= 4; eights -= 4) {
    add();
    add();
    add();
    add();
  }
  for (; eights > 0; --eights) add();
}

// The whole reduction of rows as they are.
template <int R>
DQ_INLINE void sum_rows(const GemmS8Args& a, int64_t row, const uint8_t* w, PairSums<R>& acc) {
  constexpr int P = (R + 1) / 2;
  const int64_t length = a.steps * 4;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    int64_t k = 0;
    for (; k + 16 <= length; k += 16, w += 256) {
      int8x16_t v[R], low[P], high[P];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) v[r] = vld1q_s8(x[r] + k);
      pair_rows<R>(v, low, high);
      add_eight<P>(w, low, acc);
      add_eight<P>(w + 128, high, acc);
    }
    if (k + 8 <= length) {
      int8x16_t v[R], low[P], high[P];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) v[r] = vcombine_s8(vld1_s8(x[r] + k), vdup_n_s8(0));
      pair_rows<R>(v, low, high);
      add_eight<P>(w, low, acc);
      k += 8;
      w += 128;
    }
    if (k < length) {
      add_four<R>(w, x, k, acc);
      w += 64;
    }
  }
}

// `panel`: the rows in pairs, or null.
template <int R>
DQ_INLINE void tile(const GemmS8Args& a, const Finish& f, int64_t row, int block,
                    const int8_t* panel) {
  PairSums<R> acc;
#pragma GCC unroll 2
  for (auto& pair : acc) {
#pragma GCC unroll 8
    for (auto& sum : pair) sum = vdupq_n_s32(0);
  }
  const uint8_t* w = a.w + block * a.w_stride;
  panel != nullptr ? sum_pairs<R>(a, w, panel, acc) : sum_rows<R>(a, row, w, acc);
  const int32_t* start = start_of(a, f, block);
  int32x4_t rows[R][kParts];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const int32x4_t even = acc[r / 2][2 * i], odd = acc[r / 2][2 * i + 1];
      const int32x4_t sum = r % 2 == 0 ? vuzp1q_s32(even, odd) : vuzp2q_s32(even, odd);
      rows[r][i] = vaddq_s32(sum, vld1q_s32(start + i * 4));
    }
  }
  finish_tile<R>(a, f, row, block, rows);
}

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  const Finish f = finish_of(a, 0);
  alignas(64) int8_t panel[kPanel];
  const bool ahead = pairs_ahead(a);
  simd::for_tiles<kRows>(a.m, [&]<int R>(int64_t row) {
    if (ahead) pair_ahead<R>(a, row, panel);
    for (int b = 0; b < a.blocks; ++b) tile<R>(a, f, row, b, ahead ? panel : nullptr);
  });
  if (f.int8_only) replace_outputs(a.post, a.out, a.out_stride, a.m, a.n);
}

void arrange_codes(uint8_t* codes, int, int64_t steps, int64_t) {
  for (int64_t s = 0; s + 2 <= steps; s += 2, codes += 128) {
    uint32x4_t first[kParts], second[kParts];
    for (int i = 0; i < kParts; ++i) {
      first[i] = vreinterpretq_u32_u8(vld1q_u8(codes + i * 16));
      second[i] = vreinterpretq_u32_u8(vld1q_u8(codes + 64 + i * 16));
    }
    for (int i = 0; i < kParts; ++i) {
      vst1q_u8(codes + i * 32, vreinterpretq_u8_u32(vzip1q_u32(first[i], second[i])));
      vst1q_u8(codes + i * 32 + 16, vreinterpretq_u8_u32(vzip2q_u32(first[i], second[i])));
    }
  }
}

}  // namespace defakeq::i8mm

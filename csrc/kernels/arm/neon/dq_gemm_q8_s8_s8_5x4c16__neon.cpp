// Without a dot product: 16 positions of a row times 16 positions of an output are smull and smlal2
// into eight int16 lanes. Codes are arranged as code - 2^(bits - 1) by fours of steps to
// [16 outputs][16 positions]; the rest of a run becomes [16 outputs][rest].
//
// |w x| <= 2^(bits - 1) 2^7, so 2^(9 - bits) - 1 products fit an int16 lane. Low-bit weights add up
// that many before sadalp widens them. 8-bit weights add up two, which overflows only where two
// codes that meet are both 0 (w = -128): fours of outputs with such codes are found first and widen
// every product.
#include "kernels/arm/finish.h"
#include "kernels/arm/kernels.h"
#include "kernels/arm/neon/sum_chains.h"
#include "kernels/arm/neon/sum_pairs.h"
#include "kernels/simd/tiles.h"

namespace defakeq::neon {

namespace {

constexpr int kOutputs = 4;     // of a tile
constexpr int64_t kGroup = 16;  // positions

template <int R>
using Sums = int32x4_t[R][kOutputs];

// The `count` < 16 positions from p on, then zeros. count is a multiple of 4.
DQ_INLINE int8x16_t load_rest(const int8_t* p, int64_t count) {
  uint64_t low = 0;
  uint32_t four = 0;
  if (count >= 8) {
    std::memcpy(&low, p, 8);
    if (count > 8) std::memcpy(&four, p + 8, 4);
  } else {
    std::memcpy(&four, p, 4);
    low = four;
    four = 0;
  }
  return vreinterpretq_s8_u64(vcombine_u64(vcreate_u64(low), vcreate_u64(four)));
}

DQ_INLINE int16x8_t product(int8x16_t w, int8x16_t x) {
  return vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x);
}

// One group of 16 positions, widened at once: both halves together (kPaired) or each.
template <bool kPaired, int R>
DQ_INLINE void add_widened(const int8x16_t (&w)[kOutputs], const int8x16_t (&x)[R], Sums<R>& acc) {
#pragma GCC unroll 4
  for (int n = 0; n < kOutputs; ++n) {
#pragma GCC unroll 5
    for (int r = 0; r < R; ++r) {
      if constexpr (kPaired) {
        acc[r][n] = vpadalq_s16(acc[r][n], product(w[n], x[r]));
      } else {
        acc[r][n] = vpadalq_s16(acc[r][n], vmull_s8(vget_low_s8(w[n]), vget_low_s8(x[r])));
        acc[r][n] = vpadalq_s16(acc[r][n], vmull_high_s8(w[n], x[r]));
      }
    }
  }
}

// Outputs [4 q, 4 q + 4) of a block.
template <bool kPaired, int R>
DQ_INLINE void sum_widened(const GemmS8Args& a, int64_t row, const int8_t* w, int q, Sums<R>& acc) {
  const int64_t length = a.steps * 4;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 5
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    int64_t k = 0;
    for (; k + kGroup <= length; k += kGroup, w += kBlock * kGroup) {
      int8x16_t wv[kOutputs], xv[R];
#pragma GCC unroll 4
      for (int n = 0; n < kOutputs; ++n) wv[n] = vld1q_s8(w + (q * kOutputs + n) * kGroup);
#pragma GCC unroll 5
      for (int r = 0; r < R; ++r) xv[r] = vld1q_s8(x[r] + k);
      add_widened<kPaired, R>(wv, xv, acc);
    }
    if (const int64_t rest = length - k; rest > 0) {
      int8x16_t wv[kOutputs], xv[R];
      for (int n = 0; n < kOutputs; ++n) wv[n] = load_rest(w + (q * kOutputs + n) * rest, rest);
      for (int r = 0; r < R; ++r) xv[r] = load_rest(x[r] + k, rest);
      add_widened<kPaired, R>(wv, xv, acc);
      w += kBlock * rest;
    }
  }
}

// What is left of each tap after its whole groups, for full tiles, whose groups go in assembly.
template <int R>
DQ_INLINE void add_rests(const GemmS8Args& a, const int8_t* const* rows, const int8_t* w, int q,
                         Sums<R>& acc) {
  const int64_t whole = a.steps / 4 * kGroup, rest = a.steps * 4 - whole;
  for (int t = 0; rest > 0 && t < a.taps; ++t) {
    const int8_t* from = w + t * a.steps * 64 + whole * kBlock;
    int8x16_t wv[kOutputs], xv[R];
    for (int n = 0; n < kOutputs; ++n) wv[n] = load_rest(from + (q * kOutputs + n) * rest, rest);
    for (int r = 0; r < R; ++r) {
      xv[r] = load_rest(rows[r] + a.tap_offset[t] + whole, rest);
    }
    add_widened<true, R>(wv, xv, acc);
  }
}

template <int R>
DQ_INLINE void clear(Sums<R>& acc) {
#pragma GCC unroll 5
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kOutputs; ++n) acc[r][n] = vdupq_n_s32(0);
  }
}

DQ_INLINE int32x4_t across(const int32x4_t (&acc)[kOutputs]) {
  return vpaddq_s32(vpaddq_s32(acc[0], acc[1]), vpaddq_s32(acc[2], acc[3]));
}

// One or two rows: for more GCC spills sums.
template <int R>
__attribute__((noinline)) void sum_extremes(const GemmS8Args& a, int64_t row, const int8_t* w,
                                            int q, int32x4_t (*sums)[kOutputs]) {
  Sums<R> acc;
  clear<R>(acc);
  sum_widened<false, R>(a, row, w, q, acc);
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < kOutputs; ++n) sums[r][n] = acc[r][n];
  }
}

// `extremes`: a bit for each four of outputs that has them.
template <int R>
DQ_INLINE void tile(const GemmS8Args& a, const Finish& f, int64_t row, int block,
                    unsigned extremes) {
  const auto* w = reinterpret_cast<const int8_t*>(a.w + block * a.w_stride);
  const int32_t* start = start_of(a, f, block);
  int32x4_t rows[R][kParts];
  for (int q = 0; q < kParts; ++q) {
    Sums<R> acc;
    if ((extremes >> q & 1) != 0) {
      for (int r = 0; r + 2 <= R; r += 2) sum_extremes<2>(a, row + r, w, q, acc + r);
      if constexpr (R % 2 != 0) sum_extremes<1>(a, row + R - 1, w, q, acc + R - 1);
    } else if constexpr (R == 4) {
      add_pairs(a, row, w, q, acc);
      if (a.steps % 2 != 0) add_rests<R>(a, a.rows + row, w, q, acc);
    } else {
      clear<R>(acc);
      sum_widened<true, R>(a, row, w, q, acc);
    }
#pragma GCC unroll 5
    for (int r = 0; r < R; ++r) rows[r][q] = vaddq_s32(across(acc[r]), vld1q_s32(start + q * 4));
  }
  finish_tile<R>(a, f, row, block, rows);
}

constexpr int kChainRows = 5;
// Bytes of rows that are copied to lie in one piece, so that no tap is begun for every four
// outputs.
constexpr int64_t kPanel = 24 * 1024;

// The rows' taps one after the other, 16 bytes or more each.
void gather(const GemmS8Args& a, const int8_t* (&rows)[kChainRows], int8_t* panel) {
  const int64_t length = a.steps * 4;
  for (const int8_t*& row : rows) {
    const int8_t* from = row;
    row = panel;
    for (int t = 0; t < a.taps; ++t) {
      const int8_t* x = from + a.tap_offset[t];
      int64_t k = 0;
      for (; k + 64 <= length; k += 64, panel += 64) vst1q_s8_x4(panel, vld1q_s8_x4(x + k));
      for (; k < length; k += 16, panel += 16) vst1q_s8(panel, vld1q_s8(x + k));
    }
  }
}

// Low-bit weights: int16 sums of `most` groups stay in registers. The rows after the last one are
// the last one again, and are not stored.
void sum_low_bits(const GemmS8Args& a, int64_t most, const Finish& f) {
  alignas(64) int8_t panel[kPanel];
  const bool whole = a.steps % 4 == 0;
  const bool gathers = a.taps > 1 && whole && a.taps * a.steps * 4 * kChainRows <= kPanel;
  const int64_t none = 0;
  for (int64_t row = 0; row < a.m; row += kChainRows) {
    const int64_t left = a.m - row, count = left < kChainRows ? left : kChainRows;
    ChainRows x = {{}, a.tap_offset, a.taps, a.steps / 4, a.steps % 4 * 64, a.steps % 4 == 2};
    for (int64_t r = 0; r < kChainRows; ++r) x.rows[r] = a.rows[row + (r < count ? r : count - 1)];
    if (gathers) {
      gather(a, x.rows, panel);
      x.tap_offset = &none;
      x.taps = 1;
      x.groups *= a.taps;
    }
    for (int b = 0; b < a.blocks; ++b) {
      const auto* w = reinterpret_cast<const int8_t*>(a.w + b * a.w_stride);
      const int32_t* start = start_of(a, f, b);
      int32x4_t sums[kChainRows][kParts];
      for (int q = 0; q < kParts; ++q) {
        sum_chains(x, most, w, q, start + q * 4, &sums[0][q]);
        if (a.steps % 2 != 0) {
          Sums<kChainRows> acc;
          clear<kChainRows>(acc);
          add_rests<kChainRows>(a, x.rows, w, q, acc);
          for (int r = 0; r < kChainRows; ++r) sums[r][q] = vaddq_s32(sums[r][q], across(acc[r]));
        }
      }
      simd::with_rows<kChainRows>(static_cast<int>(count), [&]<int R>() {
        finish_tile<R>(a, f, row, b, reinterpret_cast<const int32x4_t(&)[R][kParts]>(sums));
      });
    }
  }
}

// The fours of outputs where some two codes that one smull and smlal2 add up are both -128.
unsigned paired_extremes(const GemmS8Args& a, int block) {
  const auto* w = reinterpret_cast<const int8_t*>(a.w + block * a.w_stride);
  const int64_t length = a.steps * 4;
  const int8x16_t lowest = vdupq_n_s8(-128);
  uint8x8_t found[kParts] = {vdup_n_u8(0), vdup_n_u8(0), vdup_n_u8(0), vdup_n_u8(0)};
  const auto look = [&](int q, int8x16_t v) __attribute__((always_inline)) {
    const uint8x16_t extreme = vceqq_s8(v, lowest);
    found[q] = vorr_u8(found[q], vand_u8(vget_low_u8(extreme), vget_high_u8(extreme)));
  };
  for (int t = 0; t < a.taps; ++t) {
    const int64_t groups = length / kGroup, rest = length % kGroup;
    for (int64_t g = 0; g < groups; ++g, w += kBlock * kGroup) {
#pragma GCC unroll 16
      for (int n = 0; n < kBlock; ++n) look(n / kOutputs, vld1q_s8(w + n * kGroup));
    }
    for (int n = 0; n < kBlock && rest > 8; ++n) {
      look(n / kOutputs, load_rest(w + n * rest, rest));
    }
    w += kBlock * rest;
  }
  unsigned fours = 0;
  for (unsigned q = 0; q < kParts; ++q) {
    fours |= vget_lane_u64(vreinterpret_u64_u8(found[q]), 0) != 0 ? 1u << q : 0u;
  }
  return fours;
}

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  const Finish f = finish_of(a, 1 << (a.bits - 1));
  // groups of two products a lane
  const int64_t most = a.bits == 8 ? 1 : ((int64_t{1} << (9 - a.bits)) - 1) / 2;
  if (most > 1) {  // even where it can be: groups go in twos
    sum_low_bits(a, most & ~int64_t{1}, f);
  } else {
    for (int b = 0; b < a.blocks; ++b) {
      const unsigned extremes = a.bits == 8 ? paired_extremes(a, b) : 0;
      simd::for_tiles<4>(a.m, [&]<int R>(int64_t row) { tile<R>(a, f, row, b, extremes); });
    }
  }
  if (f.int8_only) replace_outputs(a.post, a.out, a.out_stride, a.m, a.n);
}

void finish_s8(const GemmS8Args& a) {
  const Finish f = finish_of(a, 0);
  for (int b = 0; b < a.blocks; ++b) {
    int32x4_t start[kParts];
    for (int i = 0; i < kParts; ++i) start[i] = vld1q_s32(start_of(a, f, b) + i * 4);
    simd::for_tiles<4>(a.m, [&]<int R>(int64_t row) {
      int32x4_t acc[R][kParts];
      const int32_t* sums = a.sums + row * a.sums_stride + b * kBlock;
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) {
          acc[r][i] = vaddq_s32(start[i], vld1q_s32(sums + r * a.sums_stride + i * 4));
        }
      }
      finish_tile<R>(a, f, row, b, acc);
    });
  }
  if (f.int8_only) replace_outputs(a.post, a.out, a.out_stride, a.m, a.n);
}

void arrange_codes(uint8_t* codes, int bits, int64_t steps, int64_t length) {
  const auto offset = static_cast<uint8_t>(1 << (bits - 1));
  for (int64_t i = 0; i < steps * 64; i += 16) {
    vst1q_u8(codes + i, vsubq_u8(vld1q_u8(codes + i), vdupq_n_u8(offset)));
  }
  for (int64_t k = length; k < steps * 4; ++k) {
    for (int n = 0; n < kBlock; ++n) codes[(k / 4 * kBlock + n) * 4 + k % 4] = 0;
  }
  for (; steps >= 4; steps -= 4, codes += 256) {
    uint32x4x4_t v[kParts];
    for (int i = 0; i < kParts; ++i) {
      for (int s = 0; s < 4; ++s) {
        v[i].val[s] = vreinterpretq_u32_u8(vld1q_u8(codes + s * 64 + i * 16));
      }
    }
    for (int i = 0; i < kParts; ++i) vst4q_u32(reinterpret_cast<uint32_t*>(codes + i * 64), v[i]);
  }
  if (steps > 0) {
    uint8_t plain[3 * 64];
    std::memcpy(plain, codes, static_cast<size_t>(steps * 64));
    for (int64_t s = 0; s < steps; ++s) {
      for (int64_t n = 0; n < kBlock; ++n) {
        std::memcpy(codes + (n * steps + s) * 4, plain + (s * kBlock + n) * 4, 4);
      }
    }
  }
}

}  // namespace defakeq::neon

// Few rows, with sdot: the codes are expanded in registers and never stored.
#pragma once

#include "kernels/arm/expand.h"
#include "kernels/arm/finish.h"
#include "kernels/arm/rows.h"
#include "kernels/simd/tiles.h"

namespace defakeq {
namespace {

template <int kBits, int v, int R>
DQ_INLINE void gemv_step(const uint8_t* w, const int8x16_t (&x)[R][2],
                         int32x4_t (&acc)[R][kParts]) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    uint8x16_t codes = codes_of<kBits, v>(w, i);
    if constexpr (kBits == 8) codes = veorq_u8(codes, vdupq_n_u8(128));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      acc[r][i] = vdotq_laneq_s32(acc[r][i], vreinterpretq_s8_u8(codes), x[r][v / 4], v % 4);
    }
  }
}

// sums[r]: 128 times the sum of row r, which 8-bit codes read as code - 128 lack.
template <int kBits, int R>
DQ_INLINE void gemv_tile(const GemmS8Args& a, const Finish& f, int64_t row, int block,
                         const int32_t* sums) {
  int32x4_t acc[R][kParts];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      acc[r][i] = vaddq_s32(vld1q_s32(start_of(a, f, block) + i * 4), vdupq_n_s32(sums[r]));
    }
  }
  const uint8_t* w = a.w + block * a.w_stride;
  for (int64_t k = 0; k < a.steps * 4; k += 4 * kPlaneSteps) {
    int8x16_t x[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const int8_t* from = a.rows[row + r] + a.tap_offset[0] + k;
      x[r][0] = vld1q_s8(from);
      x[r][1] = vld1q_s8(from + 16);
    }
    gemv_step<kBits, 0, R>(w, x, acc);
    gemv_step<kBits, 1, R>(w, x, acc);
    gemv_step<kBits, 2, R>(w, x, acc);
    gemv_step<kBits, 3, R>(w, x, acc);
    gemv_step<kBits, 4, R>(w, x, acc);
    gemv_step<kBits, 5, R>(w, x, acc);
    gemv_step<kBits, 6, R>(w, x, acc);
    gemv_step<kBits, 7, R>(w, x, acc);
    w += kBits * 64;
  }
  finish_tile<R>(a, f, row, block, acc);
}

inline void gemv_dot(const GemmS8Args& a) {
  const Finish f = finish_of(a, 0);
  simd::with_bits(a.bits, [&]<int kBits>() {
    simd::for_tiles<kGemvRows>(a.m, [&]<int R>(int64_t row) {
      int32_t sums[R] = {};
      if constexpr (kBits == 8) {
        row_sums_of(a.rows + row, R, a.tap_offset, 1, a.steps * 4, sums);
        for (int32_t& sum : sums) sum *= 128;
      }
      for (int b = 0; b < a.blocks; ++b) gemv_tile<kBits, R>(a, f, row, b, sums);
    });
  });
  if (f.int8_only) replace_outputs(a.post, a.out, a.out_stride, a.m, a.n);
}

}  // namespace
}  // namespace defakeq

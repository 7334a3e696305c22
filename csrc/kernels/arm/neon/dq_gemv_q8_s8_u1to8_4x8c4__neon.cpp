// Few rows: the codes are expanded in registers and never stored. Products of 4 positions of two
// outputs take the eight int16 lanes of one smlal, which hold 2^(8 - bits) products of unsigned
// codes below 2^bits.
#include "kernels/arm/expand.h"
#include "kernels/arm/finish.h"
#include "kernels/arm/kernels.h"
#include "kernels/arm/rows.h"
#include "kernels/simd/tiles.h"

namespace defakeq::neon {

namespace {

// Part i of the sums of outputs 4 i .. + 3, two lanes an output.
template <int R>
using Sums = int32x4_t[R][2];

template <int kBits>
constexpr int kSteps = 1 << (8 - kBits);

template <int kBits, int v, int R>
DQ_INLINE void add_step(const uint8_t* w, int part, const int8_t* const (&x)[R],
                        int16x8_t (&sum)[R][2], Sums<R>& acc) {
  constexpr int kRun = kSteps<kBits> < kPlaneSteps ? kSteps<kBits> : kPlaneSteps;
  uint8x16_t codes = codes_of<kBits, v>(w, part);
  if constexpr (kBits == 8) codes = veorq_u8(codes, vdupq_n_u8(128));
  const int8x16_t wv = vreinterpretq_s8_u8(codes);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    int32_t four;
    std::memcpy(&four, x[r] + v * 4, 4);
    const int8x16_t xv = vreinterpretq_s8_s32(vdupq_n_s32(four));
    if constexpr (v % kRun == 0) {
      sum[r][0] = vmull_s8(vget_low_s8(wv), vget_low_s8(xv));
      sum[r][1] = vmull_high_s8(wv, xv);
    } else {
      sum[r][0] = vmlal_s8(sum[r][0], vget_low_s8(wv), vget_low_s8(xv));
      sum[r][1] = vmlal_high_s8(sum[r][1], wv, xv);
    }
    if constexpr (v % kRun == kRun - 1) {
      acc[r][0] = vpadalq_s16(acc[r][0], sum[r][0]);
      acc[r][1] = vpadalq_s16(acc[r][1], sum[r][1]);
    }
  }
}

// The 4 outputs of part `part` of a block.
template <int kBits, int R>
DQ_INLINE void sum_part(const GemmS8Args& a, int64_t row, const uint8_t* w, int part,
                        Sums<R>& acc) {
  const int8_t* x[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    x[r] = a.rows[row + r] + a.tap_offset[0];
    acc[r][0] = acc[r][1] = vdupq_n_s32(0);
  }
  for (int64_t s = 0; s < a.steps; s += kPlaneSteps, w += kBits * 64) {
    int16x8_t sum[R][2];
    add_step<kBits, 0, R>(w, part, x, sum, acc);
    add_step<kBits, 1, R>(w, part, x, sum, acc);
    add_step<kBits, 2, R>(w, part, x, sum, acc);
    add_step<kBits, 3, R>(w, part, x, sum, acc);
    add_step<kBits, 4, R>(w, part, x, sum, acc);
    add_step<kBits, 5, R>(w, part, x, sum, acc);
    add_step<kBits, 6, R>(w, part, x, sum, acc);
    add_step<kBits, 7, R>(w, part, x, sum, acc);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) x[r] += 4 * kPlaneSteps;
  }
}

// sums[r]: 128 times the sum of row r, which 8-bit codes read as code - 128 lack.
template <int kBits, int R>
DQ_INLINE void tile(const GemmS8Args& a, const Finish& f, int64_t row, int block,
                    const int32_t* sums) {
  int32x4_t rows[R][kParts];
  for (int i = 0; i < kParts; ++i) {
    Sums<R> acc;
    sum_part<kBits, R>(a, row, a.w + block * a.w_stride, i, acc);
    for (int r = 0; r < R; ++r) {
      const int32x4_t start = vld1q_s32(start_of(a, f, block) + i * 4);
      rows[r][i] =
          vaddq_s32(vaddq_s32(vpaddq_s32(acc[r][0], acc[r][1]), start), vdupq_n_s32(sums[r]));
    }
  }
  finish_tile<R>(a, f, row, block, rows);
}

}  // namespace

void gemv_s8(const GemmS8Args& a) {
  const Finish f = finish_of(a, 0);
  simd::with_bits(a.bits, [&]<int kBits>() {
    simd::for_tiles<kGemvRows>(a.m, [&]<int R>(int64_t row) {
      int32_t sums[R] = {};
      if constexpr (kBits == 8) {
        row_sums_of(a.rows + row, R, a.tap_offset, 1, a.steps * 4, sums);
        for (int32_t& sum : sums) sum *= 128;
      }
      for (int b = 0; b < a.blocks; ++b) tile<kBits, R>(a, f, row, b, sums);
    });
  });
  if (f.int8_only) replace_outputs(a.post, a.out, a.out_stride, a.m, a.n);
}

void expand_codes(const uint8_t* planes, int bits, int64_t steps, uint8_t* codes) {
  expand_all(planes, bits, steps, codes);
}

}  // namespace defakeq::neon

// Sums, shuffles and look-ups of bytes, for every ARM tier.
#pragma once

#include "kernels/arm/finish.h"

namespace defakeq {
namespace {

DQ_INLINE int32x4_t add_bytes(int32x4_t sum, int8x16_t x) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, x, vdupq_n_s8(1));
#else
  return vpadalq_s16(sum, vpaddlq_s8(x));
#endif
}

inline void row_sums_of(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
                        int64_t length, int32_t* sums) {
  if (taps == 1 && length % 16 == 0 && length <= 64) {  // pixels
    for (int64_t r = 0; r < m; ++r) {
      const int8_t* x = rows[r] + tap_offset[0];
      int32x4_t sum = vdupq_n_s32(0);
      for (const int8_t* end = x + length; x < end; x += 16) sum = add_bytes(sum, vld1q_s8(x));
      sums[r] = vaddvq_s32(sum);
    }
    return;
  }
  for (int64_t r = 0; r < m; ++r) {
    int32x4_t sum = vdupq_n_s32(0), other = sum;
    for (int t = 0; t < taps; ++t) {
      const int8_t* x = rows[r] + tap_offset[t];
      int64_t k = 0;
      for (; k + 64 <= length; k += 64) {
        const int8x16x4_t v = vld1q_s8_x4(x + k);
        sum = add_bytes(add_bytes(sum, v.val[0]), v.val[1]);
        other = add_bytes(add_bytes(other, v.val[2]), v.val[3]);
      }
      for (; k + 16 <= length; k += 16) sum = add_bytes(sum, vld1q_s8(x + k));
      if (k < length) other = add_bytes(other, load_bytes(x + k, length - k));
    }
    sums[r] = vaddvq_s32(vaddq_s32(sum, other));
  }
}

// Block after block, so that masks stay in registers while the rows pass. kSources: 1, 2 or 0 for
// any number; kWhole: n is 16.
template <int kSources, bool kWhole>
inline void shuffle_block(const ShuffleSource* sources, int count, const uint8_t* fill,
                          const uint8_t* src, int64_t src_stride, int64_t rows, uint8_t* dst,
                          int64_t dst_stride, int64_t n) {
  const uint8x16_t start = vld1q_u8(fill);
  constexpr int kHeld = kSources == 0 ? 1 : kSources;
  uint8x16_t mask[kHeld];
  const uint8_t* from[kHeld];
  for (int s = 0; s < kSources; ++s) {
    mask[s] = vld1q_u8(sources[s].mask);
    from[s] = src + sources[s].offset;
  }
  for (int64_t r = 0; r < rows; ++r) {
    uint8x16_t bytes = start;
    if constexpr (kSources == 0) {
      for (int s = 0; s < count; ++s) {
        bytes = vqtbx1q_u8(bytes, vld1q_u8(src + r * src_stride + sources[s].offset),
                           vld1q_u8(sources[s].mask));
      }
    } else {
#pragma GCC unroll 2
      for (int s = 0; s < kSources; ++s) {
        bytes = vqtbx1q_u8(bytes, vld1q_u8(from[s]), mask[s]);
        from[s] += src_stride;
      }
    }
    store_bytes(reinterpret_cast<int8_t*>(dst), kWhole ? kBlock : n, vreinterpretq_s8_u8(bytes));
    dst += dst_stride;
  }
}

inline void shuffle_rows(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride,
                         int64_t rows, uint8_t* dst, int64_t dst_stride) {
  for (int64_t b = 0; b * kBlock < plan.length; ++b) {
    const ShuffleSource* sources = plan.sources + plan.first[b];
    const int count = plan.first[b + 1] - plan.first[b];
    const int64_t left = plan.length - b * kBlock, n = left < kBlock ? left : kBlock;
    const auto run = [&]<int kSources>() {
      return n == kBlock ? shuffle_block<kSources, true> : shuffle_block<kSources, false>;
    };
    const auto block = count == 1   ? run.template operator()<1>()
                       : count == 2 ? run.template operator()<2>()
                                    : run.template operator()<0>();
    block(sources, count, plan.fill + b * kBlock, src, src_stride, rows, dst + b * kBlock,
          dst_stride, n);
  }
}

}  // namespace
}  // namespace defakeq

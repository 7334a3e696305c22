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

DQ_INLINE int8x16_t load_bytes(const int8_t* x, int64_t count) {
  int8_t bytes[16] = {};
  std::memcpy(bytes, x, static_cast<size_t>(count));
  return vld1q_s8(bytes);
}

inline void row_sums_of(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
                        int64_t length, int32_t* sums) {
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

inline void shuffle_rows(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride,
                         int64_t rows, uint8_t* dst, int64_t dst_stride) {
  const int64_t whole = plan.length / kBlock, tail = plan.length % kBlock;
  for (int64_t r = 0; r < rows; ++r) {
    const auto block = [&](int64_t b) __attribute__((always_inline)) {
      uint8x16_t bytes = vld1q_u8(plan.fill + b * kBlock);
      for (int32_t s = plan.first[b]; s < plan.first[b + 1]; ++s) {
        const ShuffleSource& source = plan.sources[s];
        bytes = vqtbx1q_u8(bytes, vld1q_u8(src + source.offset), vld1q_u8(source.mask));
      }
      return bytes;
    };
    for (int64_t b = 0; b < whole; ++b) vst1q_u8(dst + b * kBlock, block(b));
    if (tail != 0) {
      uint8_t last[kBlock];
      vst1q_u8(last, block(whole));
      std::memcpy(dst + whole * kBlock, last, static_cast<size_t>(tail));
    }
    src += src_stride;
    dst += dst_stride;
  }
}

}  // namespace
}  // namespace defakeq

#include <cstring>

#include "kernels/scalar/kernels.h"

namespace defakeq::scalar {

void row_sums(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
              int64_t length, int32_t* sums) {
  for (int64_t r = 0; r < m; ++r) {
    int32_t sum = 0;
    for (int t = 0; t < taps; ++t) {
      const int8_t* x = rows[r] + tap_offset[t];
      for (int64_t k = 0; k < length; ++k) sum += x[k];
    }
    sums[r] = sum;
  }
}

void shuffle(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows,
             uint8_t* dst, int64_t dst_stride) {
  const int64_t blocks = (plan.length + kBlock - 1) / kBlock;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t bytes[kBlock];
      std::memcpy(bytes, plan.fill + b * kBlock, kBlock);
      for (int32_t s = plan.first[b]; s < plan.first[b + 1]; ++s) {
        const ShuffleSource& source = plan.sources[s];
        for (int i = 0; i < kBlock; ++i) {
          if (source.mask[i] < kBlock) bytes[i] = src[source.offset + source.mask[i]];
        }
      }
      const int64_t left = plan.length - b * kBlock;
      std::memcpy(dst + b * kBlock, bytes, static_cast<size_t>(left < kBlock ? left : kBlock));
    }
    src += src_stride;
    dst += dst_stride;
  }
}

}  // namespace defakeq::scalar

#include <cstring>

#include "kernels/simd/math.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"

namespace defakeq::avx2 {

namespace {

// Lanes of 4 bytes summed: pairs of int8 fit int16, pairs of those int32.
DQ_INLINE __m256i sum_fours(__m256i x) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), x), _mm256_set1_epi16(1));
}

DQ_INLINE int32_t sum_lanes(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
  return _mm_cvtsi128_si32(s);
}

}  // namespace

void row_sums(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
              int64_t length, int32_t* sums) {
  for (int64_t r = 0; r < m; ++r) {
    __m256i sum = _mm256_setzero_si256();
    for (int t = 0; t < taps; ++t) {
      const int8_t* x = rows[r] + tap_offset[t];
      int64_t k = 0;
      for (; k + 32 <= length; k += 32) sum = _mm256_add_epi32(sum, sum_fours(Vec::load_i(x + k)));
      if (k < length) {
        int8_t tail[32] = {};
        std::memcpy(tail, x + k, static_cast<size_t>(length - k));
        sum = _mm256_add_epi32(sum, sum_fours(Vec::load_i(tail)));
      }
    }
    sums[r] = sum_lanes(sum);
  }
}

void shuffle(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows,
             uint8_t* dst, int64_t dst_stride) {
  const int64_t whole = plan.length / kBlock;
  const int64_t tail = plan.length % kBlock;
  const auto block = [&](int64_t b) __attribute__((always_inline)) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(plan.fill + b * kBlock));
    for (int32_t s = plan.first[b]; s < plan.first[b + 1]; ++s) {
      const ShuffleSource& source = plan.sources[s];
      const __m128i from = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + source.offset));
      const __m128i mask = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source.mask));
      bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(from, mask));
    }
    return bytes;
  };
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < whole; ++b) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + b * kBlock), block(b));
    }
    if (tail != 0) {
      uint8_t last[kBlock];
      _mm_storeu_si128(reinterpret_cast<__m128i*>(last), block(whole));
      std::memcpy(dst + whole * kBlock, last, static_cast<size_t>(tail));
    }
    src += src_stride;
    dst += dst_stride;
  }
}

}  // namespace defakeq::avx2

#include "kernels/simd/math.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

void row_sums(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
              int64_t length, int32_t* sums) {
  const __m512i ones = _mm512_set1_epi8(1);
  const int64_t tail = length % 64;
  const __mmask64 mask = (__mmask64{1} << tail) - 1;
  for (int64_t r = 0; r < m; ++r) {
    __m512i sum = _mm512_setzero_si512();
    for (int t = 0; t < taps; ++t) {
      const int8_t* x = rows[r] + tap_offset[t];
      int64_t k = 0;
      for (; k + 64 <= length; k += 64) {
        sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(x + k));
      }
      if (tail != 0) sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(mask, x + k));
    }
    sums[r] = _mm512_reduce_add_epi32(sum);
  }
}

void shuffle(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows,
             uint8_t* dst, int64_t dst_stride) {
  const int64_t blocks = (plan.length + kBlock - 1) / kBlock;
  const int64_t tail = plan.length % kBlock;
  const __mmask16 last = tail == 0 ? 0xffff : static_cast<__mmask16>((1 << tail) - 1);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < blocks; ++b) {
      __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(plan.fill + b * kBlock));
      for (int32_t s = plan.first[b]; s < plan.first[b + 1]; ++s) {
        const ShuffleSource& source = plan.sources[s];
        const __m128i from = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + source.offset));
        const __m128i mask = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source.mask));
        bytes = _mm_or_si128(bytes, _mm_shuffle_epi8(from, mask));
      }
      _mm_mask_storeu_epi8(dst + b * kBlock, b + 1 < blocks ? 0xffff : last, bytes);
    }
    src += src_stride;
    dst += dst_stride;
  }
}

}  // namespace defakeq::avx512vnni

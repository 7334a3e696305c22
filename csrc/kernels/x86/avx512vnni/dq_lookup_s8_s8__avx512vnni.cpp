// 256 entries as two 128-byte tables of vpermi2b, chosen by the sign.
#include "kernels/simd/math.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out) {
  const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64);
  const __m512i t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
  const auto look = [&](__m512i v) __attribute__((always_inline)) {
    // bit 7 is ignored by the permutes: values below 0 index table + 0, the others table + 128
    const __m512i negative = _mm512_permutex2var_epi8(t0, v, t1);
    const __m512i positive = _mm512_permutex2var_epi8(t2, v, t3);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), positive, negative);
  };
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    _mm512_storeu_si512(out + i, look(_mm512_loadu_si512(x + i)));
  }
  if (i < count) {
    const __mmask64 tail = (__mmask64{1} << (count - i)) - 1;
    _mm512_mask_storeu_epi8(out + i, tail, look(_mm512_maskz_loadu_epi8(tail, x + i)));
  }
}

}  // namespace defakeq::avx512vnni

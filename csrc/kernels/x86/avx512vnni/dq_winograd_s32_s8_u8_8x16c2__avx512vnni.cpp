// vpdpwssd takes two channels of 16 outputs at a time.
#include "kernels/simd/winograd.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"
#include "kernels/x86/winograd_pairs.h"

namespace defakeq::avx512vnni {

namespace {

struct Winograd {
  using Vec = defakeq::Vec;
  using Short = __m512i;
  static constexpr int kShorts = 32;
  static constexpr bool kMultipliesAndAdds = false;
  static constexpr int kTiles = 8;

  static Short zero() { return _mm512_setzero_si512(); }
  static Short load(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Short load_part(const int8_t* p, int64_t n) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((__mmask32{1} << n) - 1, p));
  }
  // Stores and goes on to the next position.
  static void store_next(int16_t*& p, int64_t stride, Short v) {
    _mm512_storeu_si512(p, v);
    p += stride;
  }
  static Short add(Short a, Short b) { return _mm512_add_epi16(a, b); }
  static Short sub(Short a, Short b) { return _mm512_sub_epi16(a, b); }
  template <int kBits>
  static Short add_shifted(Short a, Short b) {
    return add(a, _mm512_slli_epi16(b, kBits));
  }
  template <int kBits>
  static Short sub_shifted(Short a, Short b) {
    return sub(a, _mm512_slli_epi16(b, kBits));
  }
  static void store_i(int32_t* p, __m512i v) { _mm512_storeu_si512(p, v); }
  template <int kBits>
  static __m512i sra(__m512i v) {
    return _mm512_srai_epi32(v, kBits);
  }

  // Channels 0 and 1 of each output, 2 and 3 of each.
  static void load_codes(const uint8_t* step, Short (&q)[2]) {
    const __m512i v = _mm512_loadu_si512(step);
    const __m512i first =
        _mm512_set4_epi32(static_cast<int>(0x800d800c), static_cast<int>(0x80098008),
                          static_cast<int>(0x80058004), static_cast<int>(0x80018000));
    q[0] = _mm512_shuffle_epi8(v, first);
    q[1] = _mm512_shuffle_epi8(v, _mm512_add_epi8(first, _mm512_set1_epi16(2)));
  }
  static void load_zero_points(const int32_t* zero_point, Short (&zero)[2]) {
    const __m512i v = _mm512_loadu_si512(zero_point);
    zero[0] = zero[1] =
        _mm512_or_si512(_mm512_and_si512(v, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(v, 16));
  }

  static Short load_pairs(const int16_t* p) { return _mm512_loadu_si512(p); }
  static __m512i multiply_add(__m512i sum, Short a, Short b) {
    return _mm512_dpwssd_epi32(sum, a, b);
  }

  template <int R>
  DQ_MEMBER static void products(const int16_t* v, int64_t tile_stride, const int16_t* u,
                                 int64_t steps, int32_t* out) {
    simd::multiply_pairs<Winograd, R>(v, tile_stride, u, steps, out);
  }
};

}  // namespace

DQ_DEFINE_WINOGRAD(Winograd);

}  // namespace defakeq::avx512vnni

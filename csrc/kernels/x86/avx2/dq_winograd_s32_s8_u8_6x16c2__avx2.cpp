// vpmaddwd takes two channels of 8 outputs at a time.
#include "kernels/simd/winograd.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"
#include "kernels/x86/winograd_pairs.h"

namespace defakeq::avx2 {

namespace {

constexpr int kParts = kBlock / Vec::W;

struct Winograd {
  using Vec = defakeq::Vec;
  using Short = __m256i;
  static constexpr int kShorts = 16;
  static constexpr bool kMultipliesAndAdds = false;
  static constexpr int kTiles = 6;

  static Short zero() { return _mm256_setzero_si256(); }
  static Short load(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Short load_part(const int8_t* p, int64_t n) {
    int8_t bytes[kShorts] = {};
    std::memcpy(bytes, p, static_cast<size_t>(n));
    return load(bytes);
  }
  // Stores and goes on to the next position.
  static void store_next(int16_t*& p, int64_t stride, Short v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
    p += stride;
  }
  static Short add(Short a, Short b) { return _mm256_add_epi16(a, b); }
  static Short sub(Short a, Short b) { return _mm256_sub_epi16(a, b); }
  template <int kBits>
  static Short add_shifted(Short a, Short b) {
    return add(a, _mm256_slli_epi16(b, kBits));
  }
  template <int kBits>
  static Short sub_shifted(Short a, Short b) {
    return sub(a, _mm256_slli_epi16(b, kBits));
  }
  static void store_i(int32_t* p, __m256i v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  template <int kBits>
  static __m256i sra(__m256i v) {
    return _mm256_srai_epi32(v, kBits);
  }

  // Channels 0 and 1 of each output, 2 and 3 of each.
  static void load_codes(const uint8_t* step, Short (&q)[4]) {
    const __m256i first =
        _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 0, -1, 1, -1, 4,
                         -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
    const __m256i second = _mm256_add_epi8(first, _mm256_set1_epi16(2));
    for (int i = 0; i < kParts; ++i) {
      const __m256i v = Vec::load_i(step + i * 32);
      q[i] = _mm256_shuffle_epi8(v, first);
      q[kParts + i] = _mm256_shuffle_epi8(v, second);
    }
  }
  static void load_zero_points(const int32_t* zero_point, Short (&zero)[4]) {
    for (int i = 0; i < kParts; ++i) {
      const __m256i v = Vec::load_i(zero_point + i * Vec::W);
      zero[i] = zero[kParts + i] =
          _mm256_or_si256(_mm256_and_si256(v, Vec::set1_i(0xffff)), _mm256_slli_epi32(v, 16));
    }
  }

  static Short load_pairs(const int16_t* p) { return Vec::load_i(p); }
  static __m256i multiply_add(__m256i sum, Short a, Short b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    __asm__("" : "+x"(sum));  // GCC also stores it every step otherwise
    return sum;
  }

  template <int R>
  DQ_MEMBER static void products(const int16_t* v, int64_t tile_stride, const int16_t* u,
                                 int64_t steps, int32_t* out) {
    simd::multiply_pairs<Winograd, R>(v, tile_stride, u, steps, out);
  }
};

}  // namespace

DQ_DEFINE_WINOGRAD(Winograd);

}  // namespace defakeq::avx2

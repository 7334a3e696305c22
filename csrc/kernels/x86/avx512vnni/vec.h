#pragma once

// GCC 12 takes the undefined pass-through operand of its own AVX-512 intrinsics for a mistake of
// ours; the pragma must stand before the header that defines them.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

namespace defakeq {
namespace {

// A table of 256 bytes in registers: bytes q become table[q + 128].
struct Lookup {
  __m512i low[2], high[2];

  explicit Lookup(const int8_t* table)
      : low{_mm512_loadu_si512(table), _mm512_loadu_si512(table + 64)},
        high{_mm512_loadu_si512(table + 128), _mm512_loadu_si512(table + 192)} {}

  // vpermi2b reads the low 7 bits of q; its sign chooses the half.
  __m512i operator()(__m512i q) const {
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(q),
                                  _mm512_permutex2var_epi8(high[0], q, high[1]),
                                  _mm512_permutex2var_epi8(low[0], q, low[1]));
  }
};

inline __mmask64 first_bytes(int64_t count) {
  return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
}

struct Vec {
  static constexpr int W = 16;
  using F = __m512;
  using I = __m512i;
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  // The first n < 16 lanes, the others 0.
  static F load_part(const float* p, int n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << n) - 1), p);
  }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static I load_i(const int32_t* p) { return _mm512_loadu_si512(p); }
  static I set1_i(int32_t v) { return _mm512_set1_epi32(v); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F copysign(F a, F s) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(s), _mm512_castps_si512(a), 0xca));
  }
  // lanes i and i + 8, i + 4, i + 2, i + 1
  static float sum(F v) {
    const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float largest(F v) {
    const __m256 y = _mm256_max_ps(_mm512_extractf32x8_ps(v, 1), _mm512_castps512_ps256(v));
    __m128 x = _mm_max_ps(_mm256_extractf128_ps(y, 1), _mm256_castps256_ps128(y));
    x = _mm_max_ps(_mm_movehl_ps(x, x), x);
    return _mm_cvtss_f32(_mm_max_ss(_mm_movehdup_ps(x), x));
  }
  static I rne(F v) {
    return _mm512_cvt_roundps_epi32(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static F to_f(I v) { return _mm512_cvtepi32_ps(v); }
  static I add_i(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub_i(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I mul_i(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static F scale2(F v, I n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(n, 23)));
  }
  static I load_s8(const int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_s8(int8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
  // The first n <= 16 B bytes as floats less an integer, the others anything. A byte below the
  // leading bits of 2^23 is the float 2^23 + byte.
  template <int B>
  static void load_floats(const int8_t* p, int n, int32_t less, F (&y)[B]) {
    const __m512i bytes =
        _mm512_xor_si512(_mm512_maskz_loadu_epi8(first_bytes(n), p), _mm512_set1_epi8(-128));
    const F base = _mm512_set1_ps(static_cast<float>((1 << 23) + 128 + less));
    const __m512i place = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int i = 0; i < B; ++i) {
      const __m512i raised =
          _mm512_mask_permutexvar_epi8(_mm512_set1_epi32(0x4b000000), 0x1111111111111111u,
                                       _mm512_add_epi32(place, _mm512_set1_epi32(16 * i)), bytes);
      y[i] = _mm512_sub_ps(_mm512_castsi512_ps(raised), base);
    }
  }
  // Stores the first n <= 16 B of y rounded, plus an integer of at most 8 bits; clamped to 8 bits.
  // |y| < 2^30.
  template <int B>
  static void store_rounded(int8_t* p, int n, int32_t plus, const F (&y)[B]) {
    __m512i q[4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < B; ++i) q[i] = rne(y[i]);
    const __m512i more = _mm512_set1_epi16(static_cast<int16_t>(plus));
    const __m512i bytes =
        _mm512_packs_epi16(_mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), more),
                           _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), more));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_mask_storeu_epi8(p, first_bytes(n), _mm512_permutexvar_epi32(order, bytes));
  }
  static I lookup(const int8_t* table, I v) {
    const __m512i bytes = Lookup(table)(_mm512_zextsi128_si512(_mm512_cvtepi32_epi8(v)));
    return _mm512_cvtepi8_epi32(_mm512_castsi512_si128(bytes));
  }
};

// The lower half of a Vec.
struct NarrowVec {
  static constexpr int W = 8;
  using F = __m256;
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static void widen(F v, Vec::F (&wide)[1]) { wide[0] = _mm512_zextps256_ps512(v); }
};

}  // namespace
}  // namespace defakeq

// vpdpwssd takes two channels of 16 outputs at a time: transformed weights in memory, transformed
// activations broadcast from it.
#include "kernels/simd/winograd.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

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

  // [R][16] of one position.
  template <int R>
  DQ_MEMBER static void products(const int16_t* v, int64_t tile_stride, const int16_t* u,
                                 int64_t steps, int32_t* out) {
    constexpr int kBases = (R + 2) / 3;
    const int64_t stride = tile_stride * 2;
    const char* base[kBases];  // of three tiles, which x86 can address from it
#pragma GCC unroll 8
    for (int i = 0; i < kBases; ++i) base[i] = reinterpret_cast<const char*>(v) + 3 * i * stride;
    __m512i acc[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_si512();
    for (int64_t s = 0; s < steps; ++s, u += 4 * kBlock) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i weights = _mm512_loadu_si512(u + half * 2 * kBlock);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          int32_t pair;
          std::memcpy(&pair, base[r / 3] + r % 3 * stride + half * 4, sizeof(pair));
          acc[r] = _mm512_dpwssd_epi32(acc[r], weights, _mm512_set1_epi32(pair));
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kBases; ++i) {
        base[i] += 8;
        asm("" : "+r"(base[i]));  // a pointer of its own
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) _mm512_storeu_si512(out + r * kBlock, acc[r]);
  }
};

}  // namespace

DQ_DEFINE_WINOGRAD(Winograd);

}  // namespace defakeq::avx512vnni

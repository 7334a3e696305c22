// Plane block -> 8 vectors of codes, in registers.
#pragma once

#include "kernels/simd/math.h"
#include "kernels/simd/planes.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq {
namespace {

template <int kBits>
DQ_INLINE void expand_block(const uint8_t* planes, __m512i (&codes)[kPlaneSteps]) {
  constexpr simd::Planes kPlanes = simd::planes_of(kBits);
  if constexpr (kBits == 8) {
#pragma GCC unroll 8
    for (int v = 0; v < kPlaneSteps; ++v) codes[v] = _mm512_loadu_si512(planes + v * 64);
    return;
  }
  if constexpr (kPlanes.four) {
    const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i p = _mm512_loadu_si512(planes + i * 64);
      codes[2 * i] = _mm512_and_si512(p, mask);
      codes[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(p, 4), mask);
    }
  }
  if constexpr (kPlanes.two) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(3 << kPlanes.shift_two));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m512i p = _mm512_loadu_si512(planes + (kPlanes.offset_two + i) * 64);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const int shift = kPlanes.shift_two - 2 * j;
        const __m512i s = shift > 0   ? _mm512_slli_epi16(p, static_cast<unsigned>(shift))
                          : shift < 0 ? _mm512_srli_epi16(p, static_cast<unsigned>(-shift))
                                      : p;
        __m512i& c = codes[4 * i + j];
        // c | (s & mask)
        c = kPlanes.four ? _mm512_ternarylogic_epi32(c, s, mask, 0xf8) : _mm512_and_si512(s, mask);
      }
    }
  }
  if constexpr (kPlanes.one) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(1 << kPlanes.shift_one));
    const __m512i p = _mm512_loadu_si512(planes + kPlanes.offset_one * 64);
#pragma GCC unroll 8
    for (int v = 0; v < kPlaneSteps; ++v) {
      const int shift = kPlanes.shift_one - v;
      const __m512i s = shift > 0   ? _mm512_slli_epi16(p, static_cast<unsigned>(shift))
                        : shift < 0 ? _mm512_srli_epi16(p, static_cast<unsigned>(-shift))
                                    : p;
      codes[v] = kBits == 1 ? _mm512_and_si512(s, mask)
                            : _mm512_ternarylogic_epi32(codes[v], s, mask, 0xf8);
    }
  }
}

}  // namespace
}  // namespace defakeq

// Plane block -> 8 vectors of codes, in registers.
#pragma once

#include <utility>

#include "kernels/simd/math.h"
#include "kernels/simd/planes.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq {
namespace {

template <int kShift>
DQ_INLINE __m512i shifted(__m512i v) {
  if constexpr (kShift > 0) return _mm512_slli_epi16(v, static_cast<unsigned>(kShift));
  if constexpr (kShift < 0) return _mm512_srli_epi16(v, static_cast<unsigned>(-kShift));
  return v;
}

// codes | (v & mask)
DQ_INLINE __m512i with_bits_of(__m512i codes, __m512i v, __m512i mask) {
  return _mm512_ternarylogic_epi32(codes, v, mask, 0xf8);
}

// The codes of step kStep of a plane block.
template <int kBits, int kStep>
DQ_INLINE __m512i expand_step(const uint8_t* planes) {
  constexpr simd::Planes kPlanes = simd::planes_of(kBits);
  if constexpr (kBits == 8) return _mm512_loadu_si512(planes + kStep * 64);
  __m512i codes = _mm512_setzero_si512();
  if constexpr (kPlanes.four) {
    const __m512i v = _mm512_loadu_si512(planes + kStep / 2 * 64);
    codes = _mm512_and_si512(shifted<-4 * (kStep % 2)>(v), _mm512_set1_epi8(15));
  }
  if constexpr (kPlanes.two) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(3 << kPlanes.shift_two));
    const __m512i v = shifted<kPlanes.shift_two - 2 * (kStep % 4)>(
        _mm512_loadu_si512(planes + (kPlanes.offset_two + kStep / 4) * 64));
    codes = kPlanes.four ? with_bits_of(codes, v, mask) : _mm512_and_si512(v, mask);
  }
  if constexpr (kPlanes.one) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(1 << kPlanes.shift_one));
    const __m512i v =
        shifted<kPlanes.shift_one - kStep>(_mm512_loadu_si512(planes + kPlanes.offset_one * 64));
    codes = kBits == 1 ? _mm512_and_si512(v, mask) : with_bits_of(codes, v, mask);
  }
  return codes;
}

// The same of a step that is only known now.
template <int kBits>
DQ_INLINE __m512i expand_step(const uint8_t* planes, int step) {
  constexpr simd::Planes kPlanes = simd::planes_of(kBits);
  const auto part = [&](int vector, int shift, int bits, int to) __attribute__((always_inline)) {
    const __m512i v =
        _mm512_srl_epi16(_mm512_loadu_si512(planes + vector * 64), _mm_cvtsi32_si128(shift));
    const __m512i codes = _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>((1 << bits) - 1)));
    return _mm512_slli_epi16(codes, static_cast<unsigned>(to));
  };
  __m512i codes = _mm512_setzero_si512();
  if constexpr (kPlanes.four) codes = part(step / 2, step % 2 * 4, 4, 0);
  if constexpr (kPlanes.two) {
    codes = _mm512_or_si512(
        codes, part(kPlanes.offset_two + step / 4, step % 4 * 2, 2, kPlanes.shift_two));
  }
  if constexpr (kPlanes.one) {
    codes = _mm512_or_si512(codes, part(kPlanes.offset_one, step, 1, kPlanes.shift_one));
  }
  return codes;
}

template <int kBits>
DQ_INLINE void expand_block(const uint8_t* planes, __m512i (&codes)[kPlaneSteps]) {
  const auto set = [&]<int... kSteps>(std::integer_sequence<int, kSteps...>)
                       __attribute__((always_inline)) {
                         ((codes[kSteps] = expand_step<kBits, kSteps>(planes)), ...);
                       };
  set(std::make_integer_sequence<int, kPlaneSteps>{});
}

}  // namespace
}  // namespace defakeq

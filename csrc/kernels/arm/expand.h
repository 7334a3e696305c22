// Planes of 1 to 7 bits to codes, 16 codes (4 outputs of one step) at a time.
#pragma once

#include <arm_neon.h>

#include "kernels/simd/planes.h"

namespace defakeq {
namespace {

// kLeft > 0: shifts left, else right; then keeps the bits of `mask`.
template <int kLeft>
DQ_INLINE uint8x16_t move_bits(uint8x16_t v, int mask) {
  if constexpr (kLeft > 0) {
    v = vshlq_n_u8(v, kLeft);
  } else if constexpr (kLeft < 0) {
    v = vshrq_n_u8(v, -kLeft);
  }
  return vandq_u8(v, vdupq_n_u8(static_cast<uint8_t>(mask)));
}

// Part `part` (outputs 4 part .. + 3) of step v of a plane block.
template <int kBits, int v>
DQ_INLINE uint8x16_t codes_of(const uint8_t* planes, int part) {
  constexpr simd::Planes p = simd::planes_of(kBits);
  const auto plane = [&](int i) __attribute__((always_inline)) {
    return vld1q_u8(planes + i * 64 + part * 16);
  };
  if constexpr (kBits == 8) {
    return plane(v);
  } else {
    uint8x16_t code = vdupq_n_u8(0);
    if constexpr (p.four) {
      code = v % 2 != 0 ? vshrq_n_u8(plane(v / 2), 4) : vandq_u8(plane(v / 2), vdupq_n_u8(15));
    }
    if constexpr (p.two) {
      const uint8x16_t bits =
          move_bits<p.shift_two - v % 4 * 2>(plane(p.offset_two + v / 4), 3 << p.shift_two);
      code = p.four ? vorrq_u8(code, bits) : bits;
    }
    if constexpr (p.one) {
      const uint8x16_t bits = move_bits<p.shift_one - v>(plane(p.offset_one), 1 << p.shift_one);
      code = kBits == 1 ? bits : vorrq_u8(code, bits);
    }
    return code;
  }
}

template <int kBits>
void expand_planes(const uint8_t* planes, int64_t steps, uint8_t* codes) {
  const auto store = [&]<int v>() __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const uint8x16_t values = codes_of<kBits, v>(planes, part);
      vst1q_u8(codes + v * 64 + part * 16, values);
    }
  };
  for (; steps > 0; steps -= kPlaneSteps) {
    store.template operator()<0>();
    if (steps > 1) store.template operator()<1>();
    if (steps > 2) store.template operator()<2>();
    if (steps > 3) store.template operator()<3>();
    if (steps > 4) store.template operator()<4>();
    if (steps > 5) store.template operator()<5>();
    if (steps > 6) store.template operator()<6>();
    if (steps > 7) store.template operator()<7>();
    planes += kBits * 64;
    codes += kPlaneSteps * 64;
  }
}

inline void expand_all(const uint8_t* planes, int bits, int64_t steps, uint8_t* codes) {
  simd::with_bits(bits, [&]<int kBits>() { expand_planes<kBits>(planes, steps, codes); });
}

}  // namespace
}  // namespace defakeq

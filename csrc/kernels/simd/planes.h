// Bit planes: a b-bit code is one 4-, one 2- and one 1-bit plane, low bits first (3 = 2 + 1,
// 5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1; 8 is stored whole). A plane block covers kPlaneSteps vectors
// of 64 codes; within it come the 4-bit plane's 4 vectors, the 2-bit plane's 2, the 1-bit
// plane's 1.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/simd/math.h"

namespace defakeq::simd {

struct Planes {
  bool four, two, one;
  int shift_two, shift_one;    // where the plane's bits sit in a code
  int offset_two, offset_one;  // in vectors of 64 bytes
};

constexpr Planes planes_of(int bits) {
  const bool four = (bits & 4) != 0;
  const bool two = (bits & 2) != 0;
  const bool one = (bits & 1) != 0;
  // 1-bit codes stand for -1 and +1, q = 2 * code - 1: they are expanded doubled.
  return {four,
          two,
          one,
          four ? 4 : 0,
          bits == 1 ? 1 : (four ? 4 : 0) + (two ? 2 : 0),
          four ? 4 : 0,
          (four ? 4 : 0) + (two ? 2 : 0)};
}

// Turns a width into a template argument: fn.operator()<bits>().
template <class Fn>
DQ_INLINE void with_bits(int bits, Fn&& fn) {
  switch (bits) {
    case 1:
      return fn.template operator()<1>();
    case 2:
      return fn.template operator()<2>();
    case 3:
      return fn.template operator()<3>();
    case 4:
      return fn.template operator()<4>();
    case 5:
      return fn.template operator()<5>();
    case 6:
      return fn.template operator()<6>();
    case 7:
      return fn.template operator()<7>();
    default:
      return fn.template operator()<8>();
  }
}

}  // namespace defakeq::simd

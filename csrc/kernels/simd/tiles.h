// Cuts m rows into tiles of nearly equal height, so that no tile is left with a single row, and
// turns the height into a template argument.
#pragma once

#include <cstdint>

#include "kernels/simd/math.h"

namespace defakeq::simd {

template <int kMax, class Fn>
DQ_INLINE void with_rows(int rows, Fn&& fn) {
  if constexpr (kMax == 1) {
    fn.template operator()<1>();
  } else {
    if (rows == kMax) {
      fn.template operator()<kMax>();
    } else {
      with_rows<kMax - 1>(rows, fn);
    }
  }
}

// fn.operator()<rows>(first_row)
template <int kMax, class Fn>
DQ_INLINE void for_tiles(int64_t m, Fn&& fn) {
  if (m <= 0) return;
  const int64_t tiles = (m + kMax - 1) / kMax;
  const int64_t base = m / tiles;
  const int64_t larger = m % tiles;
  int64_t row = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int rows = static_cast<int>(base + (t < larger ? 1 : 0));
    with_rows<kMax>(rows, [&]<int R>() { fn.template operator()<R>(row); });
    row += rows;
  }
}

}  // namespace defakeq::simd

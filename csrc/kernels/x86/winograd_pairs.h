// The products of one position of some tiles by 16 outputs, two channels at a time: transformed
// weights in memory, transformed activations broadcast from it. V::multiply_add is vpdpwssd or what
// stands for it.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/kernel_table.h"
#include "kernels/simd/math.h"

namespace defakeq::simd {

// out: [R][16] sums of `steps` steps of 4 channels.
template <class V, int R>
DQ_INLINE void multiply_pairs(const int16_t* v, int64_t tile_stride, const int16_t* u,
                              int64_t steps, int32_t* out) {
  using Vec = typename V::Vec;
  constexpr int kParts = kBlock / Vec::W, kBases = (R + 2) / 3;
  const int64_t stride = tile_stride * 2;
  const char* base[kBases];  // of three tiles, which x86 can address from it
#pragma GCC unroll 4
  for (int i = 0; i < kBases; ++i) base[i] = reinterpret_cast<const char*>(v) + 3 * i * stride;
  typename Vec::I acc[R][kParts];
#pragma GCC unroll 16
  for (int i = 0; i < R * kParts; ++i) acc[i / kParts][i % kParts] = Vec::set1_i(0);
  for (int64_t s = 0; s < steps; ++s, u += 4 * kBlock) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      typename V::Short weights[kParts];
#pragma GCC unroll 2
      for (int i = 0; i < kParts; ++i) {
        weights[i] = V::load_pairs(u + half * 2 * kBlock + i * V::kShorts);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t pair;
        std::memcpy(&pair, base[r / 3] + r % 3 * stride + half * 4, sizeof(pair));
#pragma GCC unroll 2
        for (int i = 0; i < kParts; ++i) {
          acc[r][i] = V::multiply_add(acc[r][i], weights[i], Vec::set1_i(pair));
        }
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kBases; ++i) {
      base[i] += 8;
      asm("" : "+r"(base[i]));  // a pointer of its own
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R * kParts; ++i) {
    V::store_i(out + i * Vec::W, acc[i / kParts][i % kParts]);
  }
}

}  // namespace defakeq::simd

// Activations as the weight operand of gemm_s8.
#pragma once

#include <cstring>

#include "kernels/node_args.h"
#include "kernels/simd/math.h"

namespace defakeq::simd {

// Outputs are rows: their reduction is contiguous.
template <class V>
void pack_rows(const PackCodesArgs& g) {
  const int64_t steps = (g.length + 3) / 4, whole = g.length / 4;
  const int64_t blocks = (g.outputs + kBlock - 1) / kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    uint8_t* codes = g.codes + b * steps * 64;
    const int64_t valid = g.outputs - b * kBlock < kBlock ? g.outputs - b * kBlock : kBlock;
    if (valid < kBlock) std::memset(codes, 0, static_cast<size_t>(steps * 64));
    for (int64_t n = 0; n < kBlock; ++n) {
      if (n >= valid) {
        g.sums[b * kBlock + n] = 0;
        continue;
      }
      const int8_t* x = g.x + (b * kBlock + n) * g.row_stride;
      for (int64_t s = 0; s < whole; ++s) {
        uint32_t four;
        std::memcpy(&four, x + 4 * s, 4);
        four ^= 0x80808080u;
        std::memcpy(codes + s * 64 + n * 4, &four, 4);
      }
      if (whole < steps) {
        uint8_t last[4] = {};
        for (int64_t i = 4 * whole; i < g.length; ++i) {
          last[i - 4 * whole] = static_cast<uint8_t>(x[i] + 128);
        }
        std::memcpy(codes + whole * 64 + n * 4, last, 4);
      }
      int32_t sum = 0;
      for (int64_t i = 0; i < g.length; ++i) sum += x[i];
      g.sums[b * kBlock + n] = sum + 128 * static_cast<int32_t>(g.length);
    }
  }
}

// Outputs are columns: reduction position k of all outputs is contiguous.
template <class V>
void pack_columns(const PackCodesArgs& g) {
  const int64_t steps = (g.length + 3) / 4;
  const int64_t blocks = (g.outputs + kBlock - 1) / kBlock;
  static constexpr int8_t kAbsent[kBlock] = {-128, -128, -128, -128, -128, -128, -128, -128,
                                             -128, -128, -128, -128, -128, -128, -128, -128};
  for (int64_t b = 0; b < blocks; ++b) {
    uint8_t* codes = g.codes + b * steps * 64;
    const int64_t valid = g.outputs - b * kBlock < kBlock ? g.outputs - b * kBlock : kBlock;
    int32_t sums[kBlock] = {};
    for (int64_t s = 0; s < steps; ++s) {
      int8_t rows[4][kBlock];
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t k = 4 * s + j;
        std::memcpy(rows[j], kAbsent, kBlock);
        if (k >= g.length) continue;
        const int8_t* from = g.x + k * g.row_stride + b * kBlock;
        if (valid == kBlock) {
          std::memcpy(rows[j], from, kBlock);
        } else {
          std::memcpy(rows[j], from, static_cast<size_t>(valid));
        }
      }
      uint8_t* to = codes + s * 64;
      for (int n = 0; n < kBlock; ++n) {
        for (int j = 0; j < 4; ++j) {
          const auto code = static_cast<uint8_t>(rows[j][n] ^ -128);
          to[n * 4 + j] = code;
          sums[n] += code;
        }
      }
    }
    std::memcpy(g.sums + b * kBlock, sums, sizeof(sums));
  }
}

}  // namespace defakeq::simd

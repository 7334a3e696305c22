#include <cstring>

#include "kernels/scalar/kernels.h"
#include "kernels/scalar/vec.h"
#include "kernels/simd/epilogue.h"
#include "kernels/simd/planes.h"

namespace defakeq::scalar {

namespace {

void dot(const int8_t* x, const uint8_t* w, int64_t steps, int32_t (&acc)[kBlock]) {
  for (int64_t s = 0; s < steps; ++s) {
    for (int n = 0; n < kBlock; ++n) {
      for (int j = 0; j < 4; ++j) {
        acc[n] = Vec::add_i(acc[n], static_cast<int32_t>(w[n * 4 + j]) * x[s * 4 + j]);
      }
    }
    w += kBlock * 4;
  }
}

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  for (int64_t row = 0; row < a.m; ++row) {
    for (int b = 0; b < a.blocks; ++b) {
      int32_t acc[kBlock] = {};
      for (int t = 0; t < a.taps; ++t) {
        dot(a.rows[row] + a.tap_offset[t], a.w + b * a.w_stride + t * a.steps * kBlock * 4, a.steps,
            acc);
      }
      simd::finish_acc<Vec>(a, row, b, acc);
    }
  }
}

void expand_codes(const uint8_t* planes, int bits, int64_t steps, uint8_t* codes) {
  if (bits == 8) {
    std::memcpy(codes, planes, static_cast<size_t>(steps * kBlock * 4));
    return;
  }
  const simd::Planes p = simd::planes_of(bits);
  for (int64_t s = 0; s < steps; s += kPlaneSteps) {
    for (int v = 0; v < kPlaneSteps && s + v < steps; ++v) {
      for (int i = 0; i < 64; ++i) {
        int code = 0;
        if (p.four) code |= (planes[v / 2 * 64 + i] >> (v % 2 * 4)) & 15;
        if (p.two) {
          code |= ((planes[(p.offset_two + v / 4) * 64 + i] >> (v % 4 * 2)) & 3) << p.shift_two;
        }
        if (p.one) code |= ((planes[p.offset_one * 64 + i] >> v) & 1) << p.shift_one;
        codes[(s + v) * 64 + i] = static_cast<uint8_t>(code);
      }
    }
    planes += bits * 64;
  }
}

void gemv_s8(const GemmS8Args& a) {
  uint8_t codes[kPlaneSteps * 64];
  for (int64_t row = 0; row < a.m; ++row) {
    for (int b = 0; b < a.blocks; ++b) {
      int32_t acc[kBlock] = {};
      const uint8_t* w = a.w + b * a.w_stride;
      for (int64_t s = 0; s < a.steps; s += kPlaneSteps) {
        if (a.bits == 8) {
          dot(a.rows[row] + a.tap_offset[0] + s * 4, w, kPlaneSteps, acc);
        } else {
          expand_codes(w, a.bits, kPlaneSteps, codes);
          dot(a.rows[row] + a.tap_offset[0] + s * 4, codes, kPlaneSteps, acc);
        }
        w += a.bits * 64;
      }
      simd::finish_acc<Vec>(a, row, b, acc);
    }
  }
}

}  // namespace defakeq::scalar

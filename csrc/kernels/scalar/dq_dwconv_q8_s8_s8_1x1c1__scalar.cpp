#include "kernels/scalar/kernels.h"
#include "kernels/scalar/vec.h"
#include "kernels/simd/epilogue.h"

namespace defakeq::scalar {

size_t dw_s8_scratch(const DwS8Args&) { return 0; }

void dw_s8(const DwS8Args& a) {
  const int row_groups = (a.kernel[0] + 3) / 4;
  for (int64_t c0 = 0; c0 < a.channels; c0 += kBlock) {
    const int n = static_cast<int>(a.channels - c0 < kBlock ? a.channels - c0 : kBlock);
    const int8_t* weight = a.weight + c0 * row_groups * a.kernel[1] * 4;
    for (int64_t oy = a.oy0; oy < a.oy1; ++oy) {
      for (int64_t ox = 0; ox < a.out_w; ++ox) {
        float y[kBlock] = {};
        for (int c = 0; c < n; ++c) {
          int32_t acc = a.correction[c0 + c];
          int32_t window = 0;
          for (int ky = 0; ky < a.kernel[0]; ++ky) {
            const int64_t iy = oy * a.stride[0] - a.padding[0] + int64_t{ky} * a.dilation[0];
            for (int kx = 0; kx < a.kernel[1]; ++kx) {
              const int64_t ix = ox * a.stride[1] - a.padding[1] + int64_t{kx} * a.dilation[1];
              const bool inside = iy >= 0 && iy < a.h && ix >= 0 && ix < a.w;
              const int32_t x =
                  128 + (inside ? a.x[(iy * a.w + ix) * a.x_stride + c0 + c] : a.pad_value);
              const int64_t at = ((ky / 4 * a.kernel[1] + kx) * kBlock + c) * 4 + ky % 4;
              acc += x * weight[at];
              window += x;
            }
          }
          if (a.window_factor != nullptr) acc += window * a.window_factor[c0 + c];
          float f = static_cast<float>(acc);
          if (a.has_row_scale) f *= a.row_scale;
          y[c] = std::fma(f, a.scale[c0 + c], a.bias[c0 + c]);
        }
        simd::finish_block<Vec>(a.post, a.out, a.out_stride, oy * a.out_w + ox, c0, n, y);
      }
    }
  }
}

}  // namespace defakeq::scalar

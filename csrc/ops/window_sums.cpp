#include "ops/window_sums.h"

#include <algorithm>

#include "ops/tasks.h"

namespace defakeq {

bool WindowSums::pays() const {
  const int64_t window = int64_t{layer_.kernel[0]} * layer_.kernel[1];
  // A pixel of few channels costs as much as a whole kernel row.
  return layer_.kind == LayerKind::kConv2d && layer_.groups == 1 && layer_.pieces == 1 &&
         layer_.stored_inputs >= kBlock &&
         2 * activations_.height() * activations_.width() <= images_.out_h * images_.out_w * window;
}

void WindowSums::place(Arena& arena, int64_t chunk, int tasks) {
  pixel_sum_ = arena.take<int32_t>(chunk * activations_.height() * activations_.width());
  pixels_ = arena.take<const int8_t*>(activations_.width() * tasks);
}

void WindowSums::prepare(int64_t count, Parallel& parallel) {
  const int64_t width = activations_.width(), pitch = activations_.pixel_pitch();
  const int64_t no_offset = 0;
  for_tasks(parallel, count * activations_.height(), [&](int64_t task, int64_t begin, int64_t end) {
    const int8_t** pixels = pixels_ + task * width;
    for (int64_t y = begin; y < end; ++y) {
      const int8_t* row = activations_.int8_base() + y * width * pitch;
      for (int64_t x = 0; x < width; ++x) pixels[x] = row + x * pitch;
      kernels_.row_sums(pixels, width, &no_offset, 1, layer_.stored_inputs, pixel_sum_ + y * width);
    }
  });
}

void WindowSums::sum(int64_t begin, int64_t end, int32_t* sums) const {
  const int64_t width = activations_.width(), stride = layer_.stride[1];
  std::fill_n(sums, end - begin, 0);
  for (int64_t row = begin; row < end;) {
    const int64_t line = row / images_.out_w, x0 = row % images_.out_w;
    const int64_t count = std::min(end - row, images_.out_w - x0);
    const int64_t y =
        line / images_.out_h * activations_.height() + line % images_.out_h * layer_.stride[0];
    for (int ky = 0; ky < layer_.kernel[0]; ++ky) {
      for (int kx = 0; kx < layer_.kernel[1]; ++kx) {
        const int32_t* from = pixel_sum_ + (y + int64_t{ky} * layer_.dilation[0]) * width +
                              x0 * stride + int64_t{kx} * layer_.dilation[1];
        if (stride == 1) {
          for (int64_t x = 0; x < count; ++x) sums[x] += from[x];
        } else {
          for (int64_t x = 0; x < count; ++x) sums[x] += from[x * stride];
        }
      }
    }
    row += count;
    sums += count;
  }
}

}  // namespace defakeq

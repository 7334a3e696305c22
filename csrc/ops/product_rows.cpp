#include "ops/product_rows.h"

#include <algorithm>

namespace defakeq {

namespace {

// Pointers to `count` rows that lie `pitch` apart.
template <class T>
void point(const T* first, int64_t pitch, int64_t count, const T** rows) {
  for (int64_t r = 0; r < count; ++r, first += pitch) rows[r] = first;
}

}  // namespace

void ProductRows::place(Arena& arena, int64_t chunk, int tasks) {
  const int64_t rows = chunk * images_.out_h * images_.out_w;
  const bool weight_only = layer_.act_mode == ActMode::kNone;
  tap_offset_ = arena.take<int64_t>(int64_t{layer_.taps} * layer_.groups);
  piece_offset = arena.take<int64_t>(layer_.pieces);
  if (direct_ && !weight_only) bytes = arena.take<const int8_t*>(rows);
  if (activations_.makes_float()) floats = arena.take<const float*>(rows);
  if (layer_.half_inputs > 0) {
    halves = arena.take<const float*>(rows);
    half_tap_offset = arena.take<int64_t>(layer_.taps);
  }
  if (direct_ && layer_.int_blocks > 0 && !weight_only) {
    sums_ = arena.take<int32_t>(rows * std::max(layer_.groups, layer_.pieces));
    if (window_sums_.pays()) window_sums_.place(arena, chunk, tasks);
  }
  if (layer_.act_mode == ActMode::kDynamicRow || layer_.act_mode == ActMode::kDynamicTensor) {
    scales_ = arena.take<float>(rows);
  }
}

void ProductRows::find_taps(int64_t rows) {
  m_ = rows;
  const int64_t pitch = activations_.pixel_pitch(), width = activations_.width();
  const int64_t group_inputs = layer_.stored_inputs / layer_.groups;
  const int64_t per_row = layer_.merged_row ? 1 : layer_.kernel[1];
  for (int64_t t = 0; t < layer_.taps; ++t) {
    const int64_t pixel =
        t / per_row * layer_.dilation[0] * width + t % per_row * layer_.dilation[1];
    for (int64_t g = 0; g < layer_.groups; ++g) {
      tap_offset_[g * layer_.taps + t] = pixel * pitch + g * group_inputs;
    }
    if (half_tap_offset != nullptr) half_tap_offset[t] = pixel * layer_.half_inputs;
  }
  for (int64_t p = 0; p < layer_.pieces; ++p) {
    piece_offset[p] =
        tap_offset_[p / layer_.pieces_per_tap] + p % layer_.pieces_per_tap * layer_.group_size;
  }
}

void ProductRows::sum_pixels(int64_t count, Parallel& parallel) {
  if (sums_ != nullptr && window_sums_.pays()) window_sums_.prepare(count, parallel);
}

void ProductRows::find(int64_t begin, int64_t end) {
  if (bytes == nullptr && floats == nullptr && halves == nullptr && scales_ == nullptr) return;
  const int64_t pitch = activations_.pixel_pitch();
  const int64_t width = activations_.width(), height = activations_.height();
  const int8_t* int8_base = activations_.int8_base();
  const float* float_base = activations_.float_base();
  const float* half_base = activations_.half_base();
  const float* image_scale = activations_.image_scale();
  if (scales_ == nullptr && layer_.stride[0] == 1 && layer_.stride[1] == 1 &&
      images_.out_h == height && images_.out_w == width) {
    // a row is a pixel
    const int64_t count = end - begin, inputs = layer_.half_inputs;
    if (bytes != nullptr) point(int8_base + begin * pitch, pitch, count, bytes + begin);
    if (floats != nullptr) point(float_base + begin * pitch, pitch, count, floats + begin);
    if (halves != nullptr) point(half_base + begin * inputs, inputs, count, halves + begin);
    return;
  }
  const int64_t per_image = images_.out_h * images_.out_w;
  int64_t n = begin / per_image, x = begin % images_.out_w;
  int64_t y = begin % per_image / images_.out_w;
  for (int64_t r = begin; r < end;) {
    const int64_t count = std::min(end - r, images_.out_w - x);
    const int64_t first = (n * height + y * layer_.stride[0]) * width + x * layer_.stride[1];
    const int64_t step = layer_.stride[1];
    if (bytes != nullptr) point(int8_base + first * pitch, step * pitch, count, bytes + r);
    if (floats != nullptr) point(float_base + first * pitch, step * pitch, count, floats + r);
    if (halves != nullptr) {
      const int64_t inputs = layer_.half_inputs;
      point(half_base + first * inputs, step * inputs, count, halves + r);
    }
    if (scales_ != nullptr) std::fill_n(scales_ + r, count, image_scale[n]);
    r += count;
    x = 0;
    if (++y == images_.out_h) {
      y = 0;
      ++n;
    }
  }
}

void ProductRows::sum(int64_t begin, int64_t end) {
  if (sums_ == nullptr) return;
  if (window_sums_.pays()) return window_sums_.sum(begin, end, sums_ + begin);
  if (layer_.pieces > 1) {
    for (int64_t p = 0; p < layer_.pieces; ++p) {
      const int64_t start = p % layer_.pieces_per_tap * layer_.group_size;
      const int64_t length = std::min<int64_t>(layer_.group_size, layer_.tap_length - start);
      kernels_.row_sums(bytes + begin, end - begin, piece_offset + p, 1, length,
                        sums_ + p * m_ + begin);
    }
    return;
  }
  for (int g = 0; g < layer_.groups; ++g) {
    kernels_.row_sums(bytes + begin, end - begin, taps_of(g), layer_.taps, layer_.tap_length,
                      sums_ + g * m_ + begin);
  }
}

}  // namespace defakeq

#include "ops/activations.h"

#include <algorithm>
#include <cstring>

#include "ops/tasks.h"

namespace defakeq {

namespace {

// Readers take whole steps past a row's end; the codes there are zero, the bytes must exist.
constexpr int64_t kSlack = 64;
// Calls cost little beside so many pixels.
constexpr int64_t kLinePixels = 64;

float scale_of_max(float max) { return max > 0.0f ? max / 127.0f : 1.0f; }

}  // namespace

float dynamic_scale(const KernelTable& kernels, const float* x, int64_t rows, int64_t row_length,
                    int64_t stride) {
  float max = 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    const float m = kernels.abs_max(x + r * stride, row_length);
    max = m > max ? m : max;
  }
  return scale_of_max(max);
}

Activations::Activations(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                         const Images& images, bool padded, int64_t read_multiple)
    : layer_(layer), kernels_(kernels), args_(args), images_(images) {
  if (padded) {
    pad_y_ = layer.padding[0];
    pad_x_ = layer.padding[1];
  }
  width_ = images.w + 2 * pad_x_;
  height_ = images.h + 2 * pad_y_;
  make_int8_ = layer.act_mode != ActMode::kNone;
  const bool bytes_serve = make_int8_ && kernels.gemm_f32_turned != nullptr && layer.groups == 1 &&
                           layer.strategy != Strategy::kDepthwise;
  make_float_ = layer.needs_float_rows != 0 && !bytes_serve;
  const bool rearranged = layer.gathers() || pad_x_ > 0 || pad_y_ > 0;
  const bool whole_steps = layer.tap_length % read_multiple == 0;
  // the float32 copy is made from whole int8 rows
  const bool gaps = make_float_ && images.x_stride != layer.in_channels;
  copy_int8_ =
      make_int8_ && (rearranged || !whole_steps || gaps || args.x_dtype == DType::kFloat32);
  copy_float_ = make_float_ && (rearranged || make_int8_);
  // Pixels that are prepared alike are prepared in one go.
  const bool alike = pad_x_ == 0 && pad_y_ == 0 && layer.act_mode != ActMode::kDynamicRow;
  line_ = alike ? kLinePixels : images.w;
  whole_rows_ = !alike;
  copy_half_ = layer.half_inputs > 0 && (args.half_input == nullptr || pad_x_ > 0 || pad_y_ > 0);
  const bool reads_x = make_int8_ ? !copy_int8_ : !copy_float_;
  pitch_ = reads_x ? images.x_stride : layer.stored_inputs;
  float_pitch_ = pitch_;
  if (layer.strategy == Strategy::kDepthwise && layer.gathers()) {
    if (make_int8_) pitch_ = line_pitch(pitch_);
    float_first_ = make_int8_ ? int64_t{layer.int_blocks} * kBlock : 0;
    float_pitch_ -= float_first_;
  }
}

int64_t Activations::bytes_per_image() const {
  const int64_t pixels = width_ * height_;
  return pixels * ((copy_int8_ ? pitch_ : 0) + (copy_float_ ? 4 * float_pitch_ : 0) +
                   (copy_half_ ? layer_.half_inputs * 4 : 0)) +
         images_.out_h * images_.out_w * 32;
}

void Activations::place(Arena& arena, int64_t chunk, int tasks) {
  const int64_t pixels = chunk * width_ * height_;
  if (copy_int8_) int8_copy_ = arena.take<int8_t>(pixels * pitch_ + kSlack);
  if (copy_float_) float_copy_ = arena.take<float>(pixels * float_pitch_ + kSlack);
  if (copy_half_) half_copy_ = arena.take<float>(pixels * layer_.half_inputs + kSlack);
  if (make_int8_ && layer_.act_mode != ActMode::kStatic) scales_ = arena.take<float>(chunk);
  temporary_bytes_ = 0;
  if (copy_int8_ && layer_.gathers() &&
      (args_.x_dtype == DType::kFloat32 || layer_.in_channels < kBlock)) {
    temporary_bytes_ = (line_ * layer_.in_channels + kSlack + 63) / 64 * 64;
    temporary_ = arena.take<int8_t>(temporary_bytes_ * tasks);
  }
}

const void* Activations::x_at(int64_t pixel) const {
  const int64_t at = pixel * images_.x_stride;
  if (args_.x_dtype == DType::kFloat32) return static_cast<const float*>(args_.x) + at;
  return static_cast<const int8_t*>(args_.x) + at;
}

// Line i of the images from `first` on, of which there are `count`.
Activations::Line Activations::line(int64_t i, int64_t first, int64_t count) const {
  if (!whole_rows_) {
    const int64_t pixel = i * line_;
    return {0, pixel, first * images_.h * images_.w + pixel,
            std::min(line_, count * images_.h * images_.w - pixel)};
  }
  const int64_t image = i / height_, y = i % height_ - pad_y_;
  const bool inside = y >= 0 && y < images_.h;
  return {image, i * width_, inside ? ((first + image) * images_.h + y) * images_.w : -1,
          images_.w};
}

int64_t Activations::lines(int64_t count) const {
  if (whole_rows_) return count * height_;
  return (count * images_.h * images_.w + line_ - 1) / line_;
}

// count adjacent pixels of x -> stored inputs, int8
void Activations::quantize_pixels(const void* x, int64_t count, float inv_scale, int8_t* out,
                                  int8_t* temporary) const {
  const int64_t channels = layer_.in_channels;
  const auto* bytes = static_cast<const int8_t*>(x);
  int64_t stride = images_.x_stride;
  if (args_.x_dtype == DType::kFloat32) {
    const float zero = static_cast<float>(layer_.act.zero_point);
    const float half = static_cast<float>(1 << (layer_.act.bits - 1));
    int8_t* to = layer_.gathers() ? temporary : out;
    const auto* floats = static_cast<const float*>(x);
    const auto convert = [&](const float* from, int64_t n, int8_t* into) {
      kernels_.quantize(from, n, inv_scale, layer_.act.zero_point, -half - zero, half - 1.0f - zero,
                        into);
    };
    if (stride == channels) {
      convert(floats, count * channels, to);
    } else {
      for (int64_t p = 0; p < count; ++p) convert(floats + p * stride, channels, to + p * channels);
    }
    if (!layer_.gathers()) return;
    bytes = temporary;
    stride = channels;
  } else if (!layer_.gathers()) {
    if (stride == channels) {
      std::memcpy(out, bytes, static_cast<size_t>(count * channels));
    } else {
      for (int64_t p = 0; p < count; ++p) {
        std::memcpy(out + p * channels, bytes + p * stride, static_cast<size_t>(channels));
      }
    }
    return;
  } else if (channels < kBlock) {
    for (int64_t p = 0; p < count; ++p) {
      std::memcpy(temporary + p * channels, bytes + p * stride, static_cast<size_t>(channels));
    }
    bytes = temporary;
    stride = channels;
  }
  kernels_.shuffle(layer_.plan_at(layer_.gather), reinterpret_cast<const uint8_t*>(bytes), stride,
                   count, reinterpret_cast<uint8_t*>(out), pitch_);
}

void Activations::int8_line(const Line& l, float inv_scale, int8_t* out, int8_t* temporary) const {
  const int zero = layer_.act.zero_point;
  if (l.source < 0) {
    std::memset(out, zero, static_cast<size_t>(width_ * pitch_));
    return;
  }
  const auto pad = static_cast<size_t>(pad_x_ * pitch_);
  std::memset(out, zero, pad);
  quantize_pixels(x_at(l.source), l.count, inv_scale, out + pad, temporary);
  std::memset(out + (pad_x_ + l.count) * pitch_, zero, pad);
}

void Activations::float_line(const Line& l, float* out) const {
  std::fill_n(out, (l.count + 2 * pad_x_) * pitch_, 0.0f);
  if (l.source < 0) return;
  const auto* x = static_cast<const float*>(x_at(l.source));
  const int32_t* index = layer_.gathers() ? layer_.at<int32_t>(layer_.in_index) : nullptr;
  for (int64_t p = 0; p < l.count; ++p) {
    float* to = out + (pad_x_ + p) * pitch_;
    const float* from = x + p * images_.x_stride;
    for (int64_t c = 0; c < layer_.stored_inputs; ++c) {
      to[c] = from[index != nullptr ? index[c] : c];
    }
  }
}

// int8 pixels, as they are stored -> float32
void Activations::floats_of(const int8_t* from, int64_t count, float* out) const {
  if (float_pitch_ == pitch_) {
    return kernels_.to_f32(from, count * pitch_, layer_.act.zero_point, out);
  }
  for (int64_t p = 0; p < count; ++p) {
    kernels_.to_f32(from + p * pitch_ + float_first_, float_pitch_, layer_.act.zero_point,
                    out + p * float_pitch_);
  }
}

void Activations::half_line(const Line& l, float* out) const {
  const int64_t channels = layer_.half_inputs;
  const int64_t pad = pad_x_ * channels, length = l.count * channels;
  if (l.source < 0) {
    std::fill_n(out, length + 2 * pad, 0.0f);
    return;
  }
  std::fill_n(out, pad, 0.0f);
  out += pad;
  std::fill_n(out + length, pad, 0.0f);
  if (args_.half_input != nullptr) {
    std::memcpy(out, args_.half_input + l.source * channels,
                static_cast<size_t>(length) * sizeof(float));
    return;
  }
  const int32_t* index = layer_.at<int32_t>(layer_.half_in_index);
  const auto* from = static_cast<const float*>(x_at(l.source));
  for (int64_t p = 0; p < l.count; ++p) {
    for (int64_t c = 0; c < channels; ++c) out[c] = from[index[c]];
    out += channels;
    from += images_.x_stride;
  }
}

void Activations::prepare(int64_t first, int64_t count, float tensor_scale, Parallel& parallel) {
  const int64_t first_pixel = first * images_.h * images_.w;
  if (scales_ != nullptr) {
    if (layer_.act_mode == ActMode::kDynamicTensor) {
      std::fill_n(scales_, count, tensor_scale);
    } else {
      for_tasks(parallel, count, [&](int64_t, int64_t begin, int64_t end) {
        const int64_t pixels = images_.h * images_.w;
        for (int64_t i = begin; i < end; ++i) {
          scales_[i] =
              dynamic_scale(kernels_, static_cast<const float*>(x_at(first_pixel + i * pixels)),
                            pixels, layer_.in_channels, images_.x_stride);
        }
      });
    }
  }
  if (copy_int8_ || copy_float_ || copy_half_) {
    for_tasks(parallel, lines(count), [&](int64_t task, int64_t begin, int64_t end) {
      int8_t* temporary = temporary_ + task * temporary_bytes_;
      for (int64_t i = begin; i < end; ++i) {
        const Line l = line(i, first, count);
        int8_t* bytes = copy_int8_ ? int8_copy_ + l.pixel * pitch_ : nullptr;
        if (copy_int8_) {
          const float inv = scales_ != nullptr ? 1.0f / scales_[l.image] : layer_.act_inv_scale;
          int8_line(l, inv, bytes, temporary);
        }
        if (copy_float_) {
          float* out = float_copy_ + l.pixel * float_pitch_;
          if (!make_int8_) {
            float_line(l, out);
          } else {
            const int8_t* from = copy_int8_ ? bytes : static_cast<const int8_t*>(x_at(l.source));
            floats_of(from, l.count + 2 * pad_x_, out);
          }
        }
        if (copy_half_) half_line(l, half_copy_ + l.pixel * layer_.half_inputs);
      }
    });
  }
  if (make_int8_) {
    int8_ = copy_int8_ ? int8_copy_ : static_cast<const int8_t*>(x_at(first_pixel));
  }
  if (make_float_) {
    float_ = copy_float_ ? float_copy_ : static_cast<const float*>(x_at(first_pixel));
  }
  if (layer_.half_inputs > 0) {
    half_ = copy_half_ ? half_copy_ : args_.half_input + first_pixel * layer_.half_inputs;
  }
}

}  // namespace defakeq

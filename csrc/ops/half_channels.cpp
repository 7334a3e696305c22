#include "ops/half_channels.h"

#include <algorithm>

#include "ops/post.h"
#include "ops/tasks.h"

namespace defakeq {

HalfChannels::HalfChannels(const PackedLayer& layer, const KernelTable& kernels,
                           const Images& images, const Activations& activations)
    : layer_(layer), kernels_(kernels), images_(images), activations_(activations) {
  if (!layer.patched) return;
  const auto* block = layer.at<PackedBlock>(layer.block_table);
  for (int b = layer.int_blocks; b < layer.blocks; ++b) channels_ += block[b].lanes;
  const int64_t most = std::max<int64_t>(kBlock / channels_, 1);
  band_rows_ = (images.out_h + most - 1) / most;
  bands_ = (images.out_h + band_rows_ - 1) / band_rows_;
  lanes_ = (channels_ * bands_ + kBlock - 1) / kBlock * kBlock;
  taps_ = int64_t{layer.kernel[0]} * layer.kernel[1];
}

void HalfChannels::place(Arena& arena, int tasks, DType residual) {
  parameters_ = arena.take<float>((2 + taps_) * lanes_);
  x_floats_ = input_rows(band_rows_) * images_.w * lanes_;
  out_values_ = band_rows_ * images_.out_w * lanes_;
  x_ = arena.take<float>(x_floats_ * tasks);
  out_ = arena.take<char>(out_values_ * size_of(layer_.out_dtype) * tasks);
  residual_ = arena.take<char>(out_values_ * size_of(residual) * tasks);
}

void HalfChannels::repeat_parameters(float* parameters) const {
  const auto* block = layer_.at<PackedBlock>(layer_.block_table);
  const int64_t slot = int64_t{layer_.int_blocks} * kBlock;
  float* weight = parameters + 2 * lanes_;
  for (int64_t l = 0; l < lanes_; ++l) {
    const bool used = l < channels_ * bands_;
    const int64_t c = l % channels_;
    parameters[l] = used ? layer_.at<float>(layer_.scale)[slot + c] : 0.0f;
    parameters[lanes_ + l] = used ? layer_.at<float>(layer_.bias)[slot + c] : 0.0f;
    const float* from = layer_.at<float>(block[layer_.int_blocks + c / kBlock].weight) + c % kBlock;
    float* to = weight + l / kBlock * taps_ * kBlock + l % kBlock;
    for (int64_t t = 0; t < taps_; ++t) to[t * kBlock] = used ? from[t * kBlock] : 0.0f;
  }
}

// What output rows [first, first + rows) of every band read, with zeros above and below the image:
// they leave a sum as it is, as if they were passed over.
void HalfChannels::read_band_rows(int64_t first, int64_t rows, float* x) const {
  const int32_t* channel =
      layer_.at<int32_t>(layer_.slot_channel) + int64_t{layer_.int_blocks} * kBlock;
  const int64_t pitch = activations_.pixel_pitch();
  const int zero = layer_.act.zero_point;
  for (int64_t r = 0; r < input_rows(rows); ++r) {
    float* to = x + r * images_.w * lanes_;
    std::fill_n(to, images_.w * lanes_, 0.0f);
    for (int64_t l = 0; l < channels_ * bands_; ++l) {
      const int64_t row = l / channels_ * band_rows_ + first;
      const int64_t y = row * layer_.stride[0] - layer_.padding[0] + r;
      if (y < 0 || y >= images_.h) continue;
      const int8_t* from =
          activations_.int8_base() + y * images_.w * pitch + channel[l % channels_];
      for (int64_t i = 0; i < images_.w; ++i) {
        to[i * lanes_ + l] = static_cast<float>(from[i * pitch] - zero);
      }
    }
  }
}

// fn(element of the output, element of the lanes) of output rows [first, first + rows) of every
// band
template <class Fn>
void HalfChannels::each_place(int64_t first, int64_t rows, Fn&& fn) const {
  const int32_t* channel =
      layer_.at<int32_t>(layer_.slot_channel) + int64_t{layer_.int_blocks} * kBlock;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t l = 0; l < channels_ * bands_; ++l) {
      const int64_t y = l / channels_ * band_rows_ + first + r;
      if (y >= images_.out_h) continue;
      const int64_t to = y * images_.out_w * layer_.out_channels + channel[l % channels_];
      const int64_t from = r * images_.out_w * lanes_ + l;
      for (int64_t i = 0; i < images_.out_w; ++i) {
        fn(to + i * layer_.out_channels, from + i * lanes_);
      }
    }
  }
}

void HalfChannels::run(const Post& post, void* out, Parallel& parallel) const {
  repeat_parameters(parameters_);
  for_tasks(parallel, band_rows_, [&](int64_t task, int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    DwF32Args a{};
    a.h = input_rows(rows);
    a.w = images_.w;
    a.x_stride = lanes_;
    a.out_w = images_.out_w;
    a.oy1 = rows;
    for (int d = 0; d < 2; ++d) {
      a.kernel[d] = layer_.kernel[d];
      a.stride[d] = layer_.stride[d];
      a.padding[d] = d == 0 ? 0 : layer_.padding[d];
      a.dilation[d] = layer_.dilation[d];
    }
    a.channels = lanes_;
    a.last_lanes = static_cast<int>((channels_ * bands_ - 1) % kBlock + 1);
    a.scale = parameters_;
    a.bias = parameters_ + lanes_;
    a.weight = parameters_ + 2 * lanes_;
    a.has_row_scale = activations_.image_scale() != nullptr;
    a.row_scale = a.has_row_scale ? activations_.image_scale()[0] : 1.0f;
    float* x = x_ + task * x_floats_;
    read_band_rows(begin, rows, x);
    a.x = x;
    char* own = out_ + task * out_values_ * size_of(layer_.out_dtype);
    a.out = own;
    a.out_stride = lanes_;
    a.post = post;
    const auto gather = [&](const auto* from, auto* to) {
      std::fill_n(to, rows * images_.out_w * lanes_, *from);
      each_place(begin, rows, [&](int64_t there, int64_t here) { to[here] = from[there]; });
    };
    if (post.residual != nullptr) {
      char* near = residual_ + task * out_values_ * size_of(post.residual_dtype);
      if (post.residual_dtype == DType::kFloat32) {
        gather(static_cast<const float*>(post.residual), reinterpret_cast<float*>(near));
      } else {
        gather(static_cast<const int8_t*>(post.residual), reinterpret_cast<int8_t*>(near));
      }
      a.post.residual = near;
      a.post.residual_stride = lanes_;
    }
    kernels_.dw_f32(a);
    const auto scatter = [&](const auto* from, auto* to) {
      each_place(begin, rows, [&](int64_t there, int64_t here) { to[there] = from[here]; });
    };
    if (layer_.out_dtype == DType::kFloat32) {
      scatter(reinterpret_cast<const float*>(own), static_cast<float*>(out));
    } else {
      scatter(reinterpret_cast<const int8_t*>(own), static_cast<int8_t*>(out));
    }
  });
}

}  // namespace defakeq

#include "defakeq/ops.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#include "dispatch/dispatch.h"
#include "ops/post.h"
#include "ops/product.h"
#include "pack/packed_layer.h"

namespace defakeq {

namespace {

// Below this many operations a second thread costs more than it brings.
constexpr int64_t kSerialMacs = 64 * 1024;

bool too_small_to_share(const PackedLayer& layer, const Images& images) {
  const int64_t taps = int64_t{layer.kernel[0]} * layer.kernel[1];
  return images.n * images.out_h * images.out_w * taps * layer.stored_outputs *
             (layer.in_channels / layer.groups) <
         kSerialMacs;
}

// Has threads to plan for, and never runs.
class Planned final : public Parallel {
 public:
  explicit Planned(int threads) : threads_(threads) {}
  int threads() const override { return threads_; }
  void run(int64_t, Body, void*) override {}

 private:
  int threads_;
};

// Enough for any number of threads up to `threads`.
size_t scratch_bytes(const PackedLayer& layer, const OpArgs& args, const Images& images,
                     int threads) {
  size_t most = 0;
  for (int t = 1; t <= (too_small_to_share(layer, images) ? 1 : threads); ++t) {
    Planned parallel(t);
    most = std::max(most, layer.strategy == Strategy::kDepthwise
                              ? depthwise_scratch(layer, kernels(), args, images, parallel)
                              : product_scratch(layer, kernels(), args, images, parallel));
  }
  return most;
}

// A convolution as it runs.
struct Conv2d {
  const PackedLayer& layer;
  Images images;
};

Images conv2d_images(const PackedLayer& layer, int64_t n, int64_t h, int64_t w) {
  return {n,
          h,
          w,
          layer.in_channels,
          conv_out_size(h, layer.kernel[0], layer.stride[0], layer.padding[0], layer.dilation[0]),
          conv_out_size(w, layer.kernel[1], layer.stride[1], layer.padding[1], layer.dilation[1])};
}

// With several pixels as one, where the layer and the image's width allow it.
Conv2d conv2d_of(const PackedLayer& layer, int64_t n, int64_t h, int64_t w) {
  const bool joins = layer.joined_pixels > 1 && w % layer.joined_pixels == 0;
  const auto& used = joins ? *layer.at<PackedLayer>(layer.joined) : layer;
  return {used, conv2d_images(used, n, h, joins ? w / layer.joined_pixels : w)};
}

void run(const PackedLayer& layer, const OpArgs& args, const Images& images, Parallel& parallel,
         Scratch& scratch) {
  Serial serial;
  Parallel& chosen = too_small_to_share(layer, images) ? serial : parallel;
  if (layer.strategy == Strategy::kDepthwise) {
    run_depthwise(layer, kernels(), args, images, chosen, scratch);
  } else {
    run_product(layer, kernels(), args, images, chosen, scratch);
  }
}

}  // namespace

Parallel::~Parallel() = default;
Serial::~Serial() = default;
Scratch::~Scratch() = default;

GrowingScratch::~GrowingScratch() { std::free(data_); }

void* GrowingScratch::get(size_t bytes) {
  if (bytes > bytes_) {
    std::free(data_);
    bytes_ = 0;
    const size_t rounded = (bytes + 63) / 64 * 64;
    data_ = std::aligned_alloc(64, rounded);
    if (data_ == nullptr) throw std::bad_alloc();
    bytes_ = rounded;
  }
  return data_;
}

int64_t conv_out_size(int64_t in, int32_t kernel, int32_t stride, int32_t padding,
                      int32_t dilation) {
  const int64_t span = int64_t{dilation} * (kernel - 1) + 1;
  const int64_t padded = in + 2 * int64_t{padding};
  return padded < span ? 0 : (padded - span) / stride + 1;
}

void linear(const OpArgs& args, int64_t rows, int64_t x_stride, Parallel& parallel,
            Scratch& scratch) {
  const PackedLayer& layer = packed_layer(args.blob, args.blob_bytes);
  if (layer.kind != LayerKind::kLinear) {
    throw std::invalid_argument("packed: found a conv2d layer, accepted: a linear layer");
  }
  if (rows < 0) {
    throw std::invalid_argument("rows: found " + std::to_string(rows) + ", accepted: 0 or more");
  }
  check_args(layer, args, rows == 0);
  if (rows == 0) return;
  if (x_stride < layer.in_channels) {
    throw std::invalid_argument("x_stride: found " + std::to_string(x_stride) +
                                ", accepted: at least " + std::to_string(layer.in_channels));
  }
  run(layer, args, Images{rows, 1, 1, x_stride, 1, 1}, parallel, scratch);
}

void conv2d(const OpArgs& args, int64_t n, int64_t h, int64_t w, Parallel& parallel,
            Scratch& scratch) {
  const PackedLayer& layer = packed_layer(args.blob, args.blob_bytes);
  if (layer.kind != LayerKind::kConv2d) {
    throw std::invalid_argument("packed: found a linear layer, accepted: a conv2d layer");
  }
  if (n < 0 || h < 1 || w < 1) {
    throw std::invalid_argument("x: found " + std::to_string(n) + " images of " +
                                std::to_string(h) + "x" + std::to_string(w) +
                                ", accepted: 0 or more images of at least 1x1");
  }
  const Images images = conv2d_images(layer, n, h, w);
  if (images.out_h < 1 || images.out_w < 1) {
    throw std::invalid_argument("x: found an image of " + std::to_string(h) + "x" +
                                std::to_string(w) + ", accepted: one that the kernel fits into");
  }
  check_args(layer, args, n == 0);
  if (n == 0) return;
  const Conv2d conv = conv2d_of(layer, n, h, w);
  run(conv.layer, args, conv.images, parallel, scratch);
}

size_t linear_scratch_bytes(const OpArgs& args, int64_t rows, int64_t x_stride, int threads) {
  const PackedLayer& layer = packed_layer(args.blob, args.blob_bytes);
  return scratch_bytes(layer, args, Images{rows, 1, 1, x_stride, 1, 1}, threads);
}

size_t conv2d_scratch_bytes(const OpArgs& args, int64_t n, int64_t h, int64_t w, int threads) {
  const PackedLayer& layer = packed_layer(args.blob, args.blob_bytes);
  const Conv2d conv = conv2d_of(layer, n, h, w);
  return scratch_bytes(conv.layer, args, conv.images, threads);
}

bool conv2d_uses_winograd(const OpArgs& args, int64_t n, int64_t h, int64_t w) {
  const Conv2d conv = conv2d_of(packed_layer(args.blob, args.blob_bytes), n, h, w);
  return conv.layer.winograd != 0 && uses_winograd(conv.layer, kernels(), args, conv.images);
}

bool conv2d_joins_pixels(const OpArgs& args, int64_t w) {
  const PackedLayer& layer = packed_layer(args.blob, args.blob_bytes);
  return layer.joined_pixels > 1 && w % layer.joined_pixels == 0;
}

void quantize(const float* x, int64_t count, const Quantization& q, int8_t* out) {
  const float half = static_cast<float>(1 << (q.bits - 1));
  const float zero = static_cast<float>(q.zero_point);
  kernels().quantize(x, count, 1.0f / q.scale, q.zero_point, -half - zero, half - 1.0f - zero, out);
}

void dequantize(const int8_t* x, int64_t count, const Quantization& q, float* out) {
  kernels().dequantize(x, count, q.scale, q.zero_point, out);
}

}  // namespace defakeq

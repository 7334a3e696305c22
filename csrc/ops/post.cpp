#include "ops/post.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace defakeq {

Post raw_post() { return Post{}; }

Post make_post(const PackedLayer& layer, const OpArgs& args) {
  Post post;
  post.activation = layer.activation;
  post.out_dtype = layer.out_dtype;
  if (layer.out_dtype == DType::kInt8) {
    const int32_t half = 1 << (layer.out.bits - 1);
    post.inv_scale = layer.out_inv_scale;
    post.zero_point = layer.out.zero_point;
    post.low = static_cast<float>(-half - layer.out.zero_point);
    post.high = static_cast<float>(half - 1 - layer.out.zero_point);
  }
  post.table = args.table;
  if (args.residual != nullptr) {
    post.residual = args.residual;
    post.residual_stride = layer.out_channels;
    post.residual_dtype = args.residual_dtype;
    const bool quantized = args.residual_dtype == DType::kInt8;
    post.residual_scale =
        (quantized ? args.residual_quantization.scale : 1.0f) * layer.residual_factor;
    post.residual_zero_point = args.residual_quantization.zero_point;
  }
  return post;
}

void check_args(const PackedLayer& layer, const OpArgs& args, bool empty) {
  if (!empty && (args.x == nullptr || args.out == nullptr)) {
    throw std::invalid_argument("x: found a null pointer, accepted: data of the stated shape");
  }
  if (args.x_dtype == DType::kInt8 && layer.act_mode != ActMode::kStatic) {
    throw std::invalid_argument(
        "x: found int8, accepted: float32 (only statically quantized layers read int8)");
  }
  if (args.table != nullptr &&
      (layer.out_dtype != DType::kInt8 || layer.activation != Activation::kNone)) {
    throw std::invalid_argument(
        std::string("table: found one for a layer with ") +
        (layer.out_dtype != DType::kInt8 ? "float32 output" : "an activation") +
        ", accepted: one for a layer with int8 output and no activation");
  }
  if (layer.half_inputs > 0 && args.x_dtype == DType::kInt8 && args.half_input == nullptr) {
    throw std::invalid_argument(
        "half_input: found nothing, accepted: the float32 values of the half-precision inputs, "
        "since x is int8");
  }
  if (args.residual != nullptr && args.residual_dtype == DType::kInt8 &&
      !(std::isfinite(args.residual_quantization.scale) &&
        args.residual_quantization.scale > 0.0f)) {
    throw std::invalid_argument("residual_scale: found " +
                                std::to_string(args.residual_quantization.scale) +
                                ", accepted: a finite positive number for an int8 residual");
  }
}

const uint8_t* scatter_fill(const PackedLayer& layer, const int8_t* table, uint8_t* fill) {
  if (layer.scatter.first == 0) return nullptr;
  const auto* own = layer.at<uint8_t>(layer.scatter.fill);
  if (table == nullptr) return own;
  const int32_t* slot = layer.at<int32_t>(layer.channel_slot);
  std::memset(fill, 0, static_cast<size_t>(fill_bytes(layer)));
  for (int64_t c = 0; c < layer.out_channels; ++c) {
    if (slot[c] < 0) fill[c] = static_cast<uint8_t>(table[layer.out.zero_point + 128]);
  }
  return fill;
}

void scatter_rows(const PackedLayer& layer, const KernelTable& kernels, const uint8_t* fill,
                  const void* tmp, int64_t stride, int64_t rows, void* out) {
  if (layer.out_dtype == DType::kInt8) {
    ShufflePlan plan = layer.plan_at(layer.scatter);
    plan.fill = fill;
    kernels.shuffle(plan, static_cast<const uint8_t*>(tmp), stride, rows,
                    static_cast<uint8_t*>(out), layer.out_channels);
    return;
  }
  const int32_t* slot = layer.at<int32_t>(layer.channel_slot);
  const auto* from = static_cast<const float*>(tmp);
  auto* to = static_cast<float*>(out);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < layer.out_channels; ++c) to[c] = slot[c] >= 0 ? from[slot[c]] : 0.0f;
    from += stride;
    to += layer.out_channels;
  }
}

void gather_residual(const PackedLayer& layer, const KernelTable& kernels, DType dtype,
                     const void* residual, int64_t rows, void* out) {
  if (dtype == DType::kInt8 && layer.residual.first != 0) {
    return kernels.shuffle(layer.plan_at(layer.residual), static_cast<const uint8_t*>(residual),
                           layer.out_channels, rows, static_cast<uint8_t*>(out), layer.slots());
  }
  const int32_t* channel = layer.at<int32_t>(layer.slot_channel);
  const int64_t slots = layer.slots();
  const auto move = [&](const auto* from, auto* to) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = 0; s < slots; ++s) {
        to[r * slots + s] = channel[s] >= 0 ? from[r * layer.out_channels + channel[s]] : 0;
      }
    }
  };
  if (dtype == DType::kFloat32) {
    move(static_cast<const float*>(residual), static_cast<float*>(out));
  } else {
    move(static_cast<const int8_t*>(residual), static_cast<int8_t*>(out));
  }
}

namespace {

// fn(row's element, lane's element) of each channel of each row
template <class Row, class Own, class Fn>
void each_channel(Row* rows, int64_t stride, int64_t count, const int32_t* channel, int64_t lanes,
                  Own* own, Fn&& fn) {
  for (int64_t r = 0; r < count; ++r, rows += stride, own += lanes) {
    for (int64_t l = 0; l < lanes; ++l) {
      if (channel[l] >= 0) fn(rows[channel[l]], own[l]);
    }
  }
}

}  // namespace

void pick_channels(DType dtype, const void* rows, int64_t stride, int64_t count,
                   const int32_t* channel, int64_t lanes, void* own) {
  const auto pick = [&](const auto* from, auto* to) {
    each_channel(from, stride, count, channel, lanes, to, [](auto x, auto& y) { y = x; });
  };
  if (dtype == DType::kFloat32) {
    pick(static_cast<const float*>(rows), static_cast<float*>(own));
  } else {
    pick(static_cast<const int8_t*>(rows), static_cast<int8_t*>(own));
  }
}

void put_channels(DType dtype, const void* own, int64_t count, const int32_t* channel,
                  int64_t lanes, void* rows, int64_t stride) {
  const auto put = [&](const auto* from, auto* to) {
    each_channel(to, stride, count, channel, lanes, from, [](auto& x, auto y) { x = y; });
  };
  if (dtype == DType::kFloat32) {
    put(static_cast<const float*>(own), static_cast<float*>(rows));
  } else {
    put(static_cast<const int8_t*>(own), static_cast<int8_t*>(rows));
  }
}

}  // namespace defakeq

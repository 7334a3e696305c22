#include "pack/check_layer.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "pack/refuse.h"

namespace defakeq {

namespace {

void check_index(const std::string& field, const int32_t* index, int64_t count, int64_t limit) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < 0 || index[i] >= limit) {
      refuse(field + "[" + std::to_string(i) + "]", std::to_string(index[i]),
             "0 to " + std::to_string(limit - 1));
    }
    if (i > 0 && index[i] <= index[i - 1]) {
      refuse(field + "[" + std::to_string(i) + "]", std::to_string(index[i]),
             "strictly increasing values");
    }
  }
}

void check_quantization(const std::string& field, const Quantization& q) {
  check_range((field + ".bits").c_str(), q.bits, 2, 8);
  const int64_t half = int64_t{1} << (q.bits - 1);
  check_range((field + ".zero_point").c_str(), q.zero_point, -half, half - 1);
  if (!(q.scale > 0.0f) || !std::isfinite(q.scale) || !std::isfinite(1.0f / q.scale)) {
    refuse(field + ".scale", std::to_string(q.scale), "a finite positive number");
  }
}

// The sum of level * (x - zero point of x) over the whole reduction must fit int32.
void check_sums(const std::string& name, const SegmentSpec& g, const LayerExtents& shape) {
  const int64_t top = g.bits == 1 ? 2 : (1 << g.bits) - 1;
  int64_t low = 1 << (g.bits - 1), high = low;
  if (g.zero_point != nullptr) {
    const auto [least, most] =
        std::minmax_element(g.zero_point, g.zero_point + g.count * shape.pieces);
    low = *least;
    high = *most;
  }
  const int64_t level = std::max(std::abs(high), std::abs(top - low));
  const int64_t longest = ((int64_t{1} << 31) - 1) / (std::max<int64_t>(level, 1) * 255);
  if (shape.reduction > longest) {
    refuse(name + ": reduction length", std::to_string(shape.reduction),
           "at most " + std::to_string(longest) + " for int32 sums of these codes");
  }
}

}  // namespace

LayerExtents check_layer(const LayerSpec& s) {
  LayerExtents shape;
  constexpr int64_t kMax = int64_t{1} << 24;
  check_range("out_channels", s.out_channels, 1, kMax);
  check_range("in_channels", s.in_channels, 1, kMax);
  for (int d = 0; d < 2; ++d) {
    check_range("kernel", s.kernel[d], 1, 4096);
    check_range("stride", s.stride[d], 1, 4096);
    check_range("padding", s.padding[d], 0, 4096);
    check_range("dilation", s.dilation[d], 1, 4096);
  }
  check_range("groups", s.groups, 1, s.in_channels);
  if (s.in_channels % s.groups != 0 || s.out_channels % s.groups != 0) {
    refuse("groups", std::to_string(s.groups), "a divisor of both channel counts");
  }
  const bool plain = s.kernel[0] == 1 && s.kernel[1] == 1 && s.stride[0] == 1 && s.stride[1] == 1 &&
                     s.padding[0] == 0 && s.padding[1] == 0 && s.groups == 1;
  if (s.kind == LayerKind::kLinear && !plain) {
    refuse("kernel", "a spatial geometry", "none for a linear layer");
  }
  shape.depthwise = s.groups > 1 && s.groups == s.in_channels;
  shape.kernel_taps = int64_t{s.kernel[0]} * s.kernel[1];
  shape.group_outputs = s.out_channels / s.groups;
  if (s.groups > 1 && (s.in_index != nullptr || s.half_in_count != 0)) {
    refuse("in_index", "pruned or half-precision inputs of a grouped convolution", "all inputs");
  }
  if (s.in_index != nullptr) check_index("in_index", s.in_index, s.in_count, s.in_channels);
  check_index("half_in_index", s.half_in_index, s.half_in_count, s.in_channels);
  shape.group_inputs = s.in_index != nullptr ? s.in_count : s.in_channels / s.groups;
  if (s.half_in_count > 0) {
    if (s.half_in_weight == nullptr) refuse("half_in_weight", "nothing", "one row an output");
    std::vector<int32_t> both(s.half_in_index, s.half_in_index + s.half_in_count);
    for (int64_t i = 0; i < shape.group_inputs; ++i) {
      const int32_t c = s.in_index != nullptr ? s.in_index[i] : static_cast<int32_t>(i);
      if (std::binary_search(both.begin(), both.end(), c)) {
        refuse("half_in_index", "channel " + std::to_string(c) + " also in in_index",
               "channels in one of the two");
      }
    }
  }
  shape.reduction = shape.kernel_taps * shape.group_inputs;
  if (s.group_size != 0) {
    if (s.group_size < 4 || s.group_size % 4 != 0) {
      refuse("group_size", std::to_string(s.group_size), "0 or a positive multiple of 4");
    }
    if (s.groups > 1) {
      refuse("group_size", std::to_string(s.group_size), "0 for a grouped convolution");
    }
    shape.pieces_per_tap =
        std::max<int64_t>(1, (shape.group_inputs + s.group_size - 1) / s.group_size);
    shape.pieces = shape.pieces_per_tap * shape.kernel_taps;
  }
  std::vector<bool> seen(static_cast<size_t>(s.out_channels));
  for (size_t i = 0; i < s.segments.size(); ++i) {
    const SegmentSpec& g = s.segments[i];
    const std::string name = "segments[" + std::to_string(i) + "]";
    if (g.bits != 16) check_range((name + ".bits").c_str(), g.bits, 1, 8);
    check_range((name + ".count").c_str(), g.count, 0, s.out_channels);
    check_index(name + ".out_index", g.out_index, g.count, s.out_channels);
    for (int64_t n = 0; n < g.count; ++n) {
      const auto at = static_cast<size_t>(g.out_index[n]);
      if (seen[at]) refuse(name + ".out_index", std::to_string(at) + " twice", "once a channel");
      seen[at] = true;
    }
    shape.stored_outputs += g.count;
    if (g.count == 0) continue;
    if (g.bits == 16) {
      if (g.halves == nullptr && shape.reduction > 0) refuse(name + ".codes", "nothing", "halves");
      continue;
    }
    if (g.codes == nullptr && shape.reduction > 0) refuse(name + ".codes", "nothing", "codes");
    if (g.scale == nullptr) refuse(name + ".scale", "nothing", "one a channel and group");
    for (int64_t n = 0; n < g.count * shape.pieces; ++n) {
      if (!std::isfinite(g.scale[n])) {
        refuse(name + ".scale[" + std::to_string(n) + "]", std::to_string(g.scale[n]),
               "finite numbers");
      }
      if (g.zero_point != nullptr && (g.zero_point[n] < -255 || g.zero_point[n] > 255)) {
        refuse(name + ".zero_point[" + std::to_string(n) + "]", std::to_string(g.zero_point[n]),
               "-255 to 255");
      }
    }
    check_sums(name, g, shape);
  }
  if (s.act_mode == ActMode::kStatic) check_quantization("act", s.act);
  if (s.out_dtype == DType::kInt8) check_quantization("out", s.out);
  return shape;
}

}  // namespace defakeq

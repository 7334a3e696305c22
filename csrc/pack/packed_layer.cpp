#include "pack/packed_layer.h"

#include "pack/refuse.h"

namespace defakeq {

const PackedLayer& packed_layer(const void* blob, size_t bytes) {
  if (blob == nullptr || bytes < sizeof(PackedLayer)) {
    refuse("packed", std::to_string(bytes) + " bytes", "a runtime layout made by pack_layer");
  }
  if (reinterpret_cast<uintptr_t>(blob) % 64 != 0) {
    refuse("packed", "an unaligned address", "64-byte aligned memory");
  }
  const auto& layer = *static_cast<const PackedLayer*>(blob);
  if (layer.magic != kPackedMagic || layer.version != kPackedVersion ||
      layer.header_bytes != sizeof(PackedLayer)) {
    refuse("packed", "no runtime layout of this build", "a runtime layout made by pack_layer");
  }
  if (layer.bytes != bytes) {
    refuse("packed", std::to_string(bytes) + " bytes", std::to_string(layer.bytes) + " bytes");
  }
  return layer;
}

LayerInfo layer_info(const void* blob, size_t bytes) {
  const PackedLayer& h = packed_layer(blob, bytes);
  LayerInfo info{};
  info.kind = h.kind;
  info.out_channels = h.out_channels;
  info.in_channels = h.in_channels;
  info.stored_outputs = h.stored_outputs;
  info.stored_inputs = h.strategy == Strategy::kDepthwise ? h.in_channels : h.stored_inputs;
  info.half_inputs = h.half_inputs;
  switch (h.strategy) {
    case Strategy::kGemm:
      info.strategy = "gemm";
      info.reason = "linear layer; up to 4 rows run as GEMV on codes expanded in registers";
      break;
    case Strategy::kPointwise:
      info.strategy = "pointwise";
      info.reason = "1x1 kernel: pixels are rows of a matrix product";
      break;
    case Strategy::kDirect:
      info.strategy = "direct";
      info.reason = h.merged_row ? "a kernel row is one run of adjacent bytes of the padded image"
                                 : "dilated or group-scaled: one run a kernel tap";
      break;
    case Strategy::kFirstLayer:
      info.strategy = "first-layer";
      info.reason = "at most 4 input channels: a whole kernel row is one run, padded once a row";
      break;
    case Strategy::kGrouped:
      info.strategy = "grouped";
      info.reason = "convolution groups of more than one input channel";
      break;
    case Strategy::kDepthwise:
      info.strategy = "depthwise";
      info.reason = "one input channel a group: four kernel rows a dot product";
      break;
  }
  const int64_t taps = int64_t{h.kernel[0]} * h.kernel[1];
  const int64_t dense = h.out_channels * (h.in_channels / h.groups) * taps;
  const int64_t inputs =
      h.strategy == Strategy::kDepthwise ? 1 : h.stored_inputs / h.groups + h.half_inputs;
  info.macs_done_per_position = h.stored_outputs * inputs * taps;
  info.macs_skipped_per_position = dense - info.macs_done_per_position;
  info.bytes = static_cast<int64_t>(h.bytes);
  const auto* segments = h.at<SegmentInfo>(h.segment_table);
  info.segments.assign(segments, segments + h.segments);
  info.act_mode = h.act_mode;
  info.act = h.act;
  info.activation = h.activation;
  info.out_dtype = h.out_dtype;
  info.out = h.out;
  for (int d = 0; d < 2; ++d) {
    info.kernel[d] = h.kernel[d];
    info.stride[d] = h.stride[d];
    info.padding[d] = h.padding[d];
    info.dilation[d] = h.dilation[d];
  }
  info.groups = h.groups;
  return info;
}

}  // namespace defakeq

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "defakeq/export.h"
#include "defakeq/types.h"

namespace defakeq {

// One precision of a packed weight, in the storage format. All pointers are borrowed.
struct SegmentSpec {
  int32_t bits = 8;                     // 1 to 8: unsigned codes; 16: IEEE half
  int64_t count = 0;                    // output channels
  const int32_t* out_index = nullptr;   // [count], strictly increasing original ids
  const uint8_t* codes = nullptr;       // bits <= 8: [count][ceil(K * bits / 8)]
  const uint16_t* halves = nullptr;     // bits == 16: [count][K]
  const float* scale = nullptr;         // bits <= 8: [count][groups of the reduction]
  const int32_t* zero_point = nullptr;  // [count][groups of the reduction], or null: symmetric
};

// A layer in the storage format, with what its kernel call needs to know.
struct LayerSpec {
  LayerKind kind = LayerKind::kLinear;
  int64_t out_channels = 0;
  int64_t in_channels = 0;  // of the whole layer, before pruning
  int32_t kernel[2] = {1, 1};
  int32_t stride[2] = {1, 1};
  int32_t padding[2] = {0, 0};
  int32_t dilation[2] = {1, 1};
  int32_t groups = 1;
  int32_t group_size = 0;  // 0: one scale a channel
  std::vector<SegmentSpec> segments;
  const int32_t* in_index = nullptr;  // [in_count] kept integer inputs, or null: all
  int64_t in_count = 0;
  const int32_t* half_in_index = nullptr;  // [half_in_count]
  int64_t half_in_count = 0;
  const uint16_t* half_in_weight = nullptr;  // [stored outputs][taps * half_in_count]
  const float* bias = nullptr;               // [stored outputs], in storage order

  ActMode act_mode = ActMode::kNone;
  Quantization act;
  Activation activation = Activation::kNone;
  DType out_dtype = DType::kFloat32;
  Quantization out;
};

struct SegmentInfo {
  int32_t bits;
  int64_t outputs;
  int64_t bytes;
};

struct LayerInfo {
  LayerKind kind;
  int64_t out_channels, in_channels, stored_outputs, stored_inputs, half_inputs;
  std::string strategy;  // "gemm", "pointwise", "direct", "first-layer", "depthwise", "grouped"
  std::string reason;
  int64_t macs_done_per_position, macs_skipped_per_position;
  int64_t bytes;
  std::vector<SegmentInfo> segments;
  ActMode act_mode;
  Quantization act;
  Activation activation;
  DType out_dtype;
  Quantization out;
  int32_t kernel[2], stride[2], padding[2], dilation[2], groups;
};

// Bytes of the runtime layout of `spec`. Throws std::invalid_argument naming the bad field.
DEFAKEQ_API size_t packed_layer_bytes(const LayerSpec& spec);

// Writes the runtime layout into `blob` (64-byte aligned, packed_layer_bytes(spec) long). It is
// position-independent and the same for every ISA of one architecture; it is never saved to files.
DEFAKEQ_API void pack_layer(const LayerSpec& spec, void* blob, size_t bytes);

// Throws std::invalid_argument when `blob` is no runtime layout of this build.
DEFAKEQ_API LayerInfo layer_info(const void* blob, size_t bytes);

}  // namespace defakeq

// The runtime layout: one position-independent blob, built from the storage format. README.md in
// this folder draws it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "defakeq/layer.h"
#include "kernels/kernel_table.h"

namespace defakeq {

inline constexpr uint64_t kPackedMagic = 0x31424c5144ull;  // "DQLB1"
inline constexpr uint32_t kPackedVersion = 1;

enum class Strategy : int32_t { kGemm, kPointwise, kDirect, kFirstLayer, kGrouped, kDepthwise };

// 16 output lanes of one segment and one convolution group. Offsets are bytes from the blob's
// start.
struct PackedBlock {
  int32_t bits;   // 1..8 planes of codes, 16: float32 weights
  int32_t group;  // convolution group
  int32_t lanes;  // valid outputs
  int32_t segment;
  int64_t weight;   // planes / codes, or float32 [reduction][16]
  int64_t half_in;  // float32 [taps * half inputs][16]
};

// Where the tables of a byte shuffle lie; `first` is 0 when there is none.
struct ShufflePlaces {
  int64_t length, src_length;
  int64_t first, sources, wide_first, wide_sources, fill;
};

struct PackedLayer {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;
  uint64_t bytes;

  LayerKind kind;
  Strategy strategy;
  ActMode act_mode;
  Activation activation;
  DType out_dtype;
  int32_t kernel[2], stride[2], padding[2], dilation[2];
  int32_t groups;
  int32_t group_size;
  Quantization act, out;
  float act_inv_scale;
  // Where the activation allows it, scales and biases are stored in units of the output's step and
  // out_inv_scale is 1; a residual is then multiplied by residual_factor.
  float out_inv_scale, residual_factor;

  int64_t out_channels, in_channels;
  int64_t stored_outputs;  // sum of the segments' counts
  int64_t stored_inputs;   // integer inputs read, of all groups
  int64_t half_inputs;

  // A row's reduction: `taps` runs of `tap_length` adjacent activations, `tap_steps` steps of 4.
  int32_t taps;
  int32_t merged_row;  // 1: a tap is a kernel row (kernel[1] pixels), 0: one pixel
  int64_t tap_length, tap_steps;
  int64_t padded_steps;  // all taps, rounded up to kPlaneSteps
  int32_t pieces;        // scale groups along the reduction, >= 1
  int32_t pieces_per_tap;

  int32_t blocks;  // all blocks; integer ones first
  int32_t int_blocks;
  int32_t direct;            // slot == output channel: no scatter pass
  int32_t patched;           // the same but for half-precision outputs, whose channels are holes
  int32_t needs_float_rows;  // some block reads the activations as float32
  int32_t dw_window;         // depthwise: some window factor is not 0
  int32_t segments;
  int32_t winograd;       // 3x3 of stride 1 whose sums stay so small that Winograd's are exact
  int32_t joined_pixels;  // that the layer at `joined` takes for one; 1: there is none

  int64_t block_table;    // PackedBlock[blocks]
  int64_t segment_table;  // SegmentInfo[segments]
  // per piece and slot: [pieces][blocks * 16]
  int64_t zero_point;     // int32 (depthwise: window factors)
  int64_t correction;     // int32
  int64_t scale;          // float
  int64_t bias;           // float [blocks * 16]
  int64_t slot_channel;   // int32 [blocks * 16], -1 on padding lanes
  int64_t channel_slot;   // int32 [out_channels], -1 where pruned
  int64_t in_index;       // int32 [stored_inputs], 0 when all inputs are read in order
  int64_t half_in_index;  // int32 [half_inputs]
  ShufflePlaces gather;   // in_channels -> stored_inputs
  ShufflePlaces scatter;  // slots -> out_channels
  // out_channels -> slots, for rows of at least 16 bytes
  ShufflePlaces residual;
  int64_t dw_weight;  // depthwise: int8 [int blocks][row groups][kw][16][4]
  int64_t joined;     // PackedLayer

  template <class T>
  const T* at(int64_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(this) + offset);
  }
  ShufflePlan plan_at(const ShufflePlaces& p) const {
    return {p.length,
            p.src_length,
            at<int32_t>(p.first),
            at<ShuffleSource>(p.sources),
            at<int32_t>(p.wide_first),
            at<WideShuffleSource>(p.wide_sources),
            at<uint8_t>(p.fill)};
  }
  int64_t slots() const { return int64_t{blocks} * kBlock; }
  bool gathers() const { return in_index != 0; }
  int64_t block_bytes(int bits) const { return padded_steps / kPlaneSteps * bits * 64; }
};

// Checks magic, version and size; throws std::invalid_argument.
const PackedLayer& packed_layer(const void* blob, size_t bytes);

}  // namespace defakeq

// What packing a layer decides and holds: first the layout of the blob, then its contents.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "defakeq/layer.h"
#include "pack/check_layer.h"
#include "pack/joined_pixels.h"
#include "pack/packed_layer.h"
#include "pack/shuffle_plan.h"

namespace defakeq {

// One stored output: where its numbers are.
struct Row {
  const SegmentSpec* segment;
  int64_t row;     // in the segment; -1: a hole, whose results are replaced
  int64_t stored;  // in storage order
  int32_t channel;

  bool is_hole() const { return row < 0; }
};

struct Block {
  PackedBlock packed;
  std::vector<Row> rows;
};

inline int zero_point_of(const Row& r, int64_t pieces, int64_t piece) {
  if (r.segment->zero_point == nullptr) return 1 << (r.segment->bits - 1);
  return r.segment->zero_point[r.row * pieces + piece];
}

inline int multiplier(int bits) { return bits == 1 ? 2 : 1; }

class Packer {
 public:
  explicit Packer(const LayerSpec& spec) : s_(spec), shape_(check_layer(spec)) { plan(); }

  int64_t bytes() const { return static_cast<int64_t>(head_.bytes); }
  void write(char* blob);

 private:
  // pack/plan_layer.cpp
  void plan();
  void plan_head();
  void plan_blocks();
  void plan_slots();
  void plan_inputs();
  void plan_reduction();
  void plan_shuffles();
  void plan_places();
  bool leave_holes(std::vector<Row>* ints, const std::vector<Row>& halves) const;
  std::vector<int32_t> gather_from() const;

  // pack/pack_layer.cpp
  void unpack(const Block& b);
  void write_parameters(char* blob);
  void write_weights(char* blob);
  void write_corrections(char* blob, const Block& b) const;
  bool may_use_winograd() const;
  bool sums_stay_small(const Block& b) const;
  void write_depthwise(char* blob, const Block& b);
  void write_floats(const Block& b, float* out) const;
  const uint8_t* codes(size_t row) const {
    return codes_.data() + static_cast<int64_t>(row) * code_stride_;
  }
  int64_t block_index(const Block& b) const { return &b - blocks_.data(); }

  const LayerSpec& s_;
  LayerExtents shape_;
  PackedLayer head_{};
  std::vector<Block> blocks_;
  std::vector<int32_t> slot_channel_, channel_slot_, in_index_;
  ShuffleTables gather_, scatter_, residual_;
  // the layer of several pixels at once, where there is one
  std::unique_ptr<JoinedPixels> joined_;
  std::unique_ptr<Packer> joined_packer_;
  int64_t weights_at_ = 0;  // where the weights start; they are written whole
  // the codes of the rows of one block, a byte each
  std::vector<uint8_t> codes_;
  int64_t code_stride_ = 0;
};

}  // namespace defakeq

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "defakeq/layer.h"
#include "kernels/simd/planes.h"
#include "pack/half.h"
#include "pack/packed_layer.h"
#include "pack/shuffle_plan.h"

namespace defakeq {

namespace {

[[noreturn]] void refuse(const std::string& field, const std::string& found,
                         const std::string& accepted) {
  throw std::invalid_argument(field + ": found " + found + ", accepted: " + accepted);
}

void check_range(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    refuse(field, std::to_string(value), std::to_string(low) + " to " + std::to_string(high));
  }
}

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

// What follows from a valid LayerSpec.
struct Shape {
  bool depthwise = false;
  int64_t kernel_taps = 1;
  int64_t group_inputs = 0;   // integer inputs a convolution group reads
  int64_t group_outputs = 0;  // original outputs of a convolution group
  int64_t reduction = 0;      // K of the storage format
  int64_t pieces = 1, pieces_per_tap = 1;
  int64_t stored_outputs = 0;
};

// The sum of level * (x - zero point of x) over the whole reduction must fit int32.
void check_sums(const std::string& name, const SegmentSpec& g, const Shape& shape) {
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

Shape check(const LayerSpec& s) {
  Shape shape;
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
      if (g.zero_point != nullptr) {
        check_range((name + ".zero_point[" + std::to_string(n) + "]").c_str(), g.zero_point[n],
                    -255, 255);
      }
    }
    check_sums(name, g, shape);
  }
  if (s.act_mode == ActMode::kStatic) check_quantization("act", s.act);
  if (s.out_dtype == DType::kInt8) check_quantization("out", s.out);
  return shape;
}

// One stored output: where its numbers are.
struct Row {
  const SegmentSpec* segment;
  int64_t row;     // in the segment
  int64_t stored;  // in storage order
  int32_t channel;
};

struct Block {
  PackedBlock packed;
  std::vector<Row> rows;
};

int code_at(const SegmentSpec& g, int64_t reduction, int64_t row, int64_t k) {
  const int64_t row_bytes = (reduction * g.bits + 7) / 8;
  const uint8_t* p = g.codes + row * row_bytes;
  const int64_t bit = k * g.bits;
  int v = p[bit / 8] >> (bit % 8);
  if (bit % 8 + g.bits > 8) v |= p[bit / 8 + 1] << (8 - bit % 8);
  return v & ((1 << g.bits) - 1);
}

int zero_point_of(const Row& r, int64_t pieces, int64_t piece) {
  if (r.segment->zero_point == nullptr) return 1 << (r.segment->bits - 1);
  return r.segment->zero_point[r.row * pieces + piece];
}

int multiplier(int bits) { return bits == 1 ? 2 : 1; }

// Lays out the blob: the same code first counts bytes, then hands out places.
class Places {
 public:
  explicit Places(int64_t start) : end_(start) {}
  int64_t take(int64_t bytes) {
    const int64_t at = (end_ + 63) / 64 * 64;
    end_ = at + bytes;
    return at;
  }
  int64_t end() const { return (end_ + 63) / 64 * 64; }

 private:
  int64_t end_;
};

class Packer {
 public:
  explicit Packer(const LayerSpec& spec) : s_(spec), shape_(check(spec)) { plan(); }

  int64_t bytes() const { return static_cast<int64_t>(head_.bytes); }
  void write(char* blob);

 private:
  void plan();
  void plan_blocks();
  void write_parameters(char* blob);
  void write_weights(char* blob);
  void write_depthwise(char* blob);
  void write_planes(const Block& b, uint8_t* out) const;
  std::vector<int32_t> gather_from() const;
  float real_weight(const Row& r, int64_t k, int64_t piece) const;

  const LayerSpec& s_;
  Shape shape_;
  PackedLayer head_{};
  std::vector<Block> blocks_;
  std::vector<int32_t> slot_channel_, channel_slot_, in_index_;
  ShuffleTables gather_, scatter_;
};

void Packer::plan_blocks() {
  std::vector<Row> ints, halves;
  int64_t stored = 0;
  // Depthwise codes are all widened to int8: its integer rows share blocks whatever their width.
  for (size_t i = 0; i < s_.segments.size(); ++i) {
    const SegmentSpec& g = s_.segments[i];
    const bool as_float = g.bits == 16 || (shape_.depthwise && s_.act_mode == ActMode::kNone);
    for (int64_t n = 0; n < g.count; ++n) {
      (as_float ? halves : ints).push_back({&g, n, stored++, g.out_index[n]});
    }
  }
  const auto cut = [&](const std::vector<Row>& rows, bool as_float) {
    const Row* previous = nullptr;
    for (const Row& r : rows) {
      const auto group =
          shape_.depthwise ? 0 : static_cast<int32_t>(r.channel / shape_.group_outputs);
      const bool same_segment =
          shape_.depthwise || (previous != nullptr && previous->segment == r.segment);
      if (previous == nullptr || !same_segment || blocks_.back().packed.group != group ||
          blocks_.back().packed.lanes == kBlock) {
        Block b;
        b.packed = {};
        b.packed.bits = as_float ? 16 : r.segment->bits;
        b.packed.group = group;
        b.packed.segment = static_cast<int32_t>(r.segment - s_.segments.data());
        blocks_.push_back(b);
      }
      blocks_.back().rows.push_back(r);
      ++blocks_.back().packed.lanes;
      previous = &r;
    }
  };
  cut(ints, false);
  head_.int_blocks = static_cast<int32_t>(blocks_.size());
  cut(halves, true);
  head_.blocks = static_cast<int32_t>(blocks_.size());
}

std::vector<int32_t> Packer::gather_from() const {
  if (!shape_.depthwise) return in_index_;
  // A depthwise kernel reads slot order; padding lanes repeat channel 0.
  std::vector<int32_t> from;
  for (const int32_t c : slot_channel_) {
    from.push_back(c < 0 ? 0 : static_cast<int32_t>(c / shape_.group_outputs));
  }
  return from;
}

void Packer::plan() {
  PackedLayer& h = head_;
  h.magic = kPackedMagic;
  h.version = kPackedVersion;
  h.header_bytes = sizeof(PackedLayer);
  h.kind = s_.kind;
  h.act_mode = s_.act_mode;
  h.activation = s_.activation;
  h.out_dtype = s_.out_dtype;
  for (int d = 0; d < 2; ++d) {
    h.kernel[d] = s_.kernel[d];
    h.stride[d] = s_.stride[d];
    h.padding[d] = s_.padding[d];
    h.dilation[d] = s_.dilation[d];
  }
  h.groups = s_.groups;
  h.group_size = s_.group_size;
  h.act = s_.act;
  if (s_.act_mode != ActMode::kStatic) h.act = Quantization{};
  h.out = s_.out_dtype == DType::kInt8 ? s_.out : Quantization{};
  h.act_inv_scale = 1.0f / h.act.scale;
  const bool folds = h.out_dtype == DType::kInt8 && s_.half_in_count == 0 &&
                     (s_.activation == Activation::kNone || s_.activation == Activation::kRelu);
  h.out_inv_scale = folds ? 1.0f : 1.0f / h.out.scale;
  h.residual_factor = folds ? 1.0f / h.out.scale : 1.0f;
  h.out_channels = s_.out_channels;
  h.in_channels = s_.in_channels;
  h.stored_outputs = shape_.stored_outputs;
  h.half_inputs = s_.half_in_count;
  h.pieces = static_cast<int32_t>(shape_.pieces);
  h.pieces_per_tap = static_cast<int32_t>(shape_.pieces_per_tap);
  h.segments = static_cast<int32_t>(s_.segments.size());

  plan_blocks();
  channel_slot_.assign(static_cast<size_t>(s_.out_channels), -1);
  slot_channel_.assign(static_cast<size_t>(h.slots()), -1);
  for (size_t b = 0; b < blocks_.size(); ++b) {
    for (size_t i = 0; i < blocks_[b].rows.size(); ++i) {
      const size_t slot = b * kBlock + i;
      slot_channel_[slot] = blocks_[b].rows[i].channel;
      channel_slot_[static_cast<size_t>(blocks_[b].rows[i].channel)] = static_cast<int32_t>(slot);
    }
  }
  h.direct = 1;
  for (size_t c = 0; c < channel_slot_.size(); ++c) {
    if (channel_slot_[c] != static_cast<int32_t>(c)) h.direct = 0;
  }
  h.needs_float_rows = h.blocks > h.int_blocks || s_.act_mode == ActMode::kNone;

  // Inputs.
  if (shape_.depthwise) {
    h.stored_inputs = h.slots();
    in_index_ = gather_from();
    bool identity = h.direct == 1 && shape_.group_outputs == 1;
    if (identity) in_index_.clear();
    if (identity) h.stored_inputs = s_.in_channels;
  } else {
    h.stored_inputs = shape_.group_inputs * s_.groups;
    if (s_.in_index != nullptr) {
      in_index_.assign(s_.in_index, s_.in_index + s_.in_count);
      bool identity = s_.in_count == s_.in_channels;
      if (identity) in_index_.clear();
    }
  }

  // Reduction.
  if (shape_.depthwise) {
    h.strategy = Strategy::kDepthwise;
    h.taps = static_cast<int32_t>(shape_.kernel_taps);
    h.tap_length = 1;
  } else if (s_.kind == LayerKind::kLinear) {
    h.strategy = Strategy::kGemm;
    h.taps = 1;
    h.tap_length = shape_.group_inputs;
  } else {
    h.merged_row = s_.groups == 1 && s_.dilation[1] == 1 && s_.group_size == 0 ? 1 : 0;
    h.taps = h.merged_row ? s_.kernel[0] : static_cast<int32_t>(shape_.kernel_taps);
    h.tap_length = h.merged_row ? s_.kernel[1] * shape_.group_inputs : shape_.group_inputs;
    h.strategy = s_.groups > 1             ? Strategy::kGrouped
                 : shape_.kernel_taps == 1 ? Strategy::kPointwise
                 : s_.in_channels <= 4     ? Strategy::kFirstLayer
                                           : Strategy::kDirect;
  }
  h.tap_steps = (h.tap_length + 3) / 4;
  h.padded_steps = (h.taps * h.tap_steps + kPlaneSteps - 1) / kPlaneSteps * kPlaneSteps;

  if (!in_index_.empty()) gather_ = plan_shuffle(in_index_, s_.in_channels, 0);
  if (!h.direct && h.out_dtype == DType::kInt8) {
    scatter_ = plan_shuffle(channel_slot_, h.slots(),
                            static_cast<uint8_t>(static_cast<int8_t>(h.out.zero_point)));
  }

  Places at(sizeof(PackedLayer));
  const int64_t slots = h.slots();
  h.block_table = at.take(h.blocks * static_cast<int64_t>(sizeof(PackedBlock)));
  h.segment_table = at.take(h.segments * static_cast<int64_t>(sizeof(SegmentInfo)));
  h.zero_point = at.take(h.pieces * slots * 4);
  h.correction = at.take(h.pieces * slots * 4);
  h.scale = at.take(h.pieces * slots * 4);
  h.bias = at.take(slots * 4);
  h.slot_channel = at.take(slots * 4);
  h.channel_slot = at.take(s_.out_channels * 4);
  if (!in_index_.empty()) {
    h.in_index = at.take(static_cast<int64_t>(in_index_.size()) * 4);
    h.gather_first = at.take(static_cast<int64_t>(gather_.first.size()) * 4);
    h.gather_sources =
        at.take(static_cast<int64_t>(gather_.sources.size() * sizeof(ShuffleSource)));
    h.gather_fill = at.take(static_cast<int64_t>(gather_.fill.size()));
  }
  h.half_in_index = at.take(s_.half_in_count * 4);
  if (!scatter_.first.empty()) {
    h.scatter_first = at.take(static_cast<int64_t>(scatter_.first.size()) * 4);
    h.scatter_sources =
        at.take(static_cast<int64_t>(scatter_.sources.size() * sizeof(ShuffleSource)));
    h.scatter_fill = at.take(static_cast<int64_t>(scatter_.fill.size()));
  }
  if (shape_.depthwise) {
    h.dw_weight = at.take(int64_t{h.int_blocks} * ((s_.kernel[0] + 3) / 4) * s_.kernel[1] * 64);
  }
  for (Block& b : blocks_) {
    if (b.packed.bits == 16) {
      b.packed.weight = at.take(shape_.reduction * kBlock * 4);
    } else if (!shape_.depthwise) {
      b.packed.weight = at.take(h.block_bytes(b.packed.bits));
    }
  }
  // Apart from the weights, so that both have one stride over the blocks of a strip.
  if (s_.half_in_count > 0) {
    for (Block& b : blocks_) {
      b.packed.half_in = at.take(shape_.kernel_taps * s_.half_in_count * kBlock * 4);
    }
  }
  h.bytes = static_cast<uint64_t>(at.end());
}

float Packer::real_weight(const Row& r, int64_t k, int64_t piece) const {
  if (r.segment->bits == 16) {
    return half_to_float(r.segment->halves[r.row * shape_.reduction + k]);
  }
  return static_cast<float>(multiplier(r.segment->bits) *
                                code_at(*r.segment, shape_.reduction, r.row, k) -
                            zero_point_of(r, shape_.pieces, piece));
}

void Packer::write_parameters(char* blob) {
  const PackedLayer& h = head_;
  const int64_t slots = h.slots();
  auto* zero_point = reinterpret_cast<int32_t*>(blob + h.zero_point);
  auto* correction = reinterpret_cast<int32_t*>(blob + h.correction);
  auto* scale = reinterpret_cast<float*>(blob + h.scale);
  auto* bias = reinterpret_cast<float*>(blob + h.bias);
  const bool is_static = s_.act_mode == ActMode::kStatic;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    for (size_t i = 0; i < blocks_[b].rows.size(); ++i) {
      const Row& r = blocks_[b].rows[i];
      const auto slot = static_cast<int64_t>(b * kBlock + i);
      if (s_.bias != nullptr) bias[slot] = s_.bias[r.stored] * h.residual_factor;
      if (r.segment->bits == 16) {
        for (int64_t p = 0; p < h.pieces; ++p) {
          scale[p * slots + slot] = (is_static ? s_.act.scale : 1.0f) * h.residual_factor;
        }
        continue;
      }
      for (int64_t p = 0; p < h.pieces; ++p) {
        const int zero = zero_point_of(r, h.pieces, p);
        zero_point[p * slots + slot] = zero;
        const float ws = r.segment->scale[r.row * h.pieces + p];
        scale[p * slots + slot] = (is_static ? ws * s_.act.scale : ws) * h.residual_factor;
        if (!is_static || shape_.depthwise) continue;
        // -zx * sum(m * code - zero) over the piece
        int64_t first = 0, last = shape_.reduction;
        if (s_.group_size != 0) {
          const int64_t tap = p / h.pieces_per_tap, part = p % h.pieces_per_tap;
          first = tap * shape_.group_inputs + part * s_.group_size;
          last = std::min(first + s_.group_size, (tap + 1) * shape_.group_inputs);
        }
        int64_t sum = 0;
        for (int64_t k = first; k < last; ++k) {
          sum +=
              multiplier(r.segment->bits) * code_at(*r.segment, shape_.reduction, r.row, k) - zero;
        }
        correction[p * slots + slot] = static_cast<int32_t>(-sum * s_.act.zero_point);
      }
    }
  }
}

void Packer::write_planes(const Block& b, uint8_t* out) const {
  const PackedLayer& h = head_;
  const int bits = b.packed.bits;
  const simd::Planes planes = simd::planes_of(bits);
  // code_at walks a bit stream: unpack each row once
  std::vector<uint8_t> codes(static_cast<size_t>(h.padded_steps * 64));
  for (size_t n = 0; n < b.rows.size(); ++n) {
    for (int64_t t = 0; t < h.taps; ++t) {
      for (int64_t k = 0; k < h.tap_length; ++k) {
        const int64_t step = t * h.tap_steps + k / 4;
        codes[static_cast<size_t>((step * kBlock + static_cast<int64_t>(n)) * 4 + k % 4)] =
            static_cast<uint8_t>(
                code_at(*b.rows[n].segment, shape_.reduction, b.rows[n].row, t * h.tap_length + k));
      }
    }
  }
  if (bits == 8) {
    std::memcpy(out, codes.data(), codes.size());
    return;
  }
  for (int64_t s = 0; s < h.padded_steps; s += kPlaneSteps) {
    for (int v = 0; v < kPlaneSteps; ++v) {
      for (int i = 0; i < 64; ++i) {
        const int c = codes[static_cast<size_t>((s + v) * 64 + i)];
        if (planes.four) out[v / 2 * 64 + i] |= static_cast<uint8_t>((c & 15) << (v % 2 * 4));
        if (planes.two) {
          const int low = planes.four ? 4 : 0;
          out[(planes.offset_two + v / 4) * 64 + i] |=
              static_cast<uint8_t>(((c >> low) & 3) << (v % 4 * 2));
        }
        if (planes.one) {
          out[planes.offset_one * 64 + i] |= static_cast<uint8_t>(((c >> (bits - 1)) & 1) << v);
        }
      }
    }
    out += bits * 64;
  }
}

void Packer::write_depthwise(char* blob) {
  const PackedLayer& h = head_;
  const int kh = s_.kernel[0], kw = s_.kernel[1];
  const int64_t row_groups = (kh + 3) / 4;
  auto* weight = reinterpret_cast<int8_t*>(blob + h.dw_weight);
  auto* factor = reinterpret_cast<int32_t*>(blob + h.zero_point);
  auto* correction = reinterpret_cast<int32_t*>(blob + h.correction);
  for (int64_t b = 0; b < h.int_blocks; ++b) {
    const Block& block = blocks_[static_cast<size_t>(b)];
    for (size_t i = 0; i < block.rows.size(); ++i) {
      const Row& r = block.rows[i];
      const int m = multiplier(r.segment->bits);
      const int zero = zero_point_of(r, 1, 0);
      const int highest = m * ((1 << r.segment->bits) - 1);
      // w = q - shift fits int8; what is left of the zero point meets the window's sum
      const int shift = -zero >= -128 && highest - zero <= 127 ? zero : 128;
      const int64_t slot = b * kBlock + static_cast<int64_t>(i);
      factor[slot] = shift - zero;
      if (factor[slot] != 0) head_.dw_window = 1;
      int64_t sum = 0;
      for (int ky = 0; ky < kh; ++ky) {
        for (int kx = 0; kx < kw; ++kx) {
          const int w = m * code_at(*r.segment, shape_.reduction, r.row, ky * kw + kx) - shift;
          const int64_t at =
              ((b * row_groups + ky / 4) * kw + kx) * kBlock + static_cast<int64_t>(i);
          weight[at * 4 + ky % 4] = static_cast<int8_t>(w);
          sum += w + factor[slot];
        }
      }
      // activations enter as x + 128
      correction[slot] = static_cast<int32_t>(-(128 + int64_t{h.act.zero_point}) * sum);
    }
  }
}

void Packer::write_weights(char* blob) {
  const PackedLayer& h = head_;
  if (shape_.depthwise) write_depthwise(blob);
  for (const Block& b : blocks_) {
    if (b.packed.bits == 16) {
      auto* w = reinterpret_cast<float*>(blob + b.packed.weight);
      for (size_t n = 0; n < b.rows.size(); ++n) {
        for (int64_t k = 0; k < shape_.reduction; ++k) {
          w[k * kBlock + static_cast<int64_t>(n)] = real_weight(b.rows[n], k, 0);
        }
      }
    } else if (!shape_.depthwise) {
      write_planes(b, reinterpret_cast<uint8_t*>(blob + b.packed.weight));
    }
    if (h.half_inputs > 0) {
      auto* w = reinterpret_cast<float*>(blob + b.packed.half_in);
      const int64_t columns = shape_.kernel_taps * h.half_inputs;
      for (size_t n = 0; n < b.rows.size(); ++n) {
        for (int64_t k = 0; k < columns; ++k) {
          w[k * kBlock + static_cast<int64_t>(n)] =
              half_to_float(s_.half_in_weight[b.rows[n].stored * columns + k]);
        }
      }
    }
  }
}

void Packer::write(char* blob) {
  std::memset(blob, 0, static_cast<size_t>(bytes()));
  const auto put = [&](int64_t at, const auto& v) {
    if (!v.empty()) std::memcpy(blob + at, v.data(), v.size() * sizeof(v[0]));
  };
  write_parameters(blob);
  write_weights(blob);
  put(head_.slot_channel, slot_channel_);
  put(head_.channel_slot, channel_slot_);
  if (!in_index_.empty()) {
    put(head_.in_index, in_index_);
    put(head_.gather_first, gather_.first);
    put(head_.gather_sources, gather_.sources);
    put(head_.gather_fill, gather_.fill);
  }
  if (!scatter_.first.empty()) {
    put(head_.scatter_first, scatter_.first);
    put(head_.scatter_sources, scatter_.sources);
    put(head_.scatter_fill, scatter_.fill);
  }
  if (s_.half_in_count > 0) {
    std::memcpy(blob + head_.half_in_index, s_.half_in_index,
                static_cast<size_t>(s_.half_in_count) * 4);
  }
  std::vector<PackedBlock> table;
  for (const Block& b : blocks_) table.push_back(b.packed);
  put(head_.block_table, table);
  std::vector<SegmentInfo> segments;
  for (const SegmentSpec& g : s_.segments) {
    const int64_t row = g.bits == 16 ? shape_.reduction * 2 : (shape_.reduction * g.bits + 7) / 8;
    segments.push_back({g.bits, g.count, g.count * row});
  }
  put(head_.segment_table, segments);
  std::memcpy(blob, &head_, sizeof(head_));
}

}  // namespace

size_t packed_layer_bytes(const LayerSpec& spec) {
  return static_cast<size_t>(Packer(spec).bytes());
}

void pack_layer(const LayerSpec& spec, void* blob, size_t bytes) {
  Packer packer(spec);
  if (bytes != static_cast<size_t>(packer.bytes())) {
    refuse("bytes", std::to_string(bytes), std::to_string(packer.bytes()));
  }
  if (reinterpret_cast<uintptr_t>(blob) % 64 != 0) {
    refuse("blob", "an unaligned address", "64-byte aligned memory");
  }
  packer.write(static_cast<char*>(blob));
}

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

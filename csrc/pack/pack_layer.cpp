#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "defakeq/layer.h"
#include "pack/check_layer.h"
#include "pack/codes.h"
#include "pack/half.h"
#include "pack/joined_pixels.h"
#include "pack/packed_layer.h"
#include "pack/refuse.h"
#include "pack/shuffle_plan.h"

namespace defakeq {

namespace {

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

template <class T>
int64_t bytes_of(const std::vector<T>& v) {
  return static_cast<int64_t>(v.size() * sizeof(T));
}

template <class T>
void write_table(const std::vector<T>& v, int64_t at, char* blob) {
  if (!v.empty()) std::memcpy(blob + at, v.data(), v.size() * sizeof(T));
}

ShufflePlaces place_shuffle(const ShuffleTables& t, Places& at) {
  ShufflePlaces p{};
  p.length = t.length;
  p.src_length = t.src_length;
  p.first = at.take(bytes_of(t.first));
  p.sources = at.take(bytes_of(t.sources));
  p.wide_first = at.take(bytes_of(t.wide_first));
  p.wide_sources = at.take(bytes_of(t.wide_sources));
  p.fill = at.take(bytes_of(t.fill));
  return p;
}

void write_shuffle(const ShuffleTables& t, const ShufflePlaces& p, char* blob) {
  write_table(t.first, p.first, blob);
  write_table(t.sources, p.sources, blob);
  write_table(t.wide_first, p.wide_first, blob);
  write_table(t.wide_sources, p.wide_sources, blob);
  write_table(t.fill, p.fill, blob);
}

class Packer {
 public:
  explicit Packer(const LayerSpec& spec) : s_(spec), shape_(check_layer(spec)) { plan(); }

  int64_t bytes() const { return static_cast<int64_t>(head_.bytes); }
  void write(char* blob);

 private:
  void plan();
  void plan_blocks();
  bool leave_holes(std::vector<Row>* ints, const std::vector<Row>& halves) const;
  void unpack(const Block& b);
  void write_parameters(char* blob);
  void write_weights(char* blob);
  void write_corrections(char* blob, const Block& b) const;
  bool may_use_winograd() const;
  bool sums_stay_small(const Block& b) const;
  void write_depthwise(char* blob, const Block& b);
  void write_floats(const Block& b, float* out) const;
  std::vector<int32_t> gather_from() const;
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

// Where that takes no more blocks, integer outputs leave the half-precision ones' channels free, so
// that every one is computed where it belongs. Returns whether they do. Those of a depthwise layer
// cost less than moving its channels about.
bool Packer::leave_holes(std::vector<Row>* ints, const std::vector<Row>& halves) const {
  const auto blocks = [](size_t rows) { return (rows + kBlock - 1) / kBlock; };
  const auto outs = static_cast<size_t>(s_.out_channels);
  if (ints->empty() || halves.empty() || ints->size() + halves.size() != outs ||
      (shape_.depthwise ? shape_.group_outputs != 1
                        : s_.groups > 1 || blocks(ints->size()) != blocks(outs))) {
    return false;
  }
  std::vector<Row> all;
  for (const Row& r : *ints) {
    if ((r.segment != ints->front().segment && !shape_.depthwise) ||
        r.channel < static_cast<int64_t>(all.size())) {
      return false;
    }
    while (static_cast<int64_t>(all.size()) < r.channel) {
      all.push_back({r.segment, -1, -1, static_cast<int32_t>(all.size())});
    }
    all.push_back(r);
  }
  *ints = std::move(all);
  return true;
}

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
  if (leave_holes(&ints, halves)) head_.patched = 1;
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
      if (blocks_[b].rows[i].is_hole()) continue;
      const size_t slot = b * kBlock + i;
      slot_channel_[slot] = blocks_[b].rows[i].channel;
      channel_slot_[static_cast<size_t>(blocks_[b].rows[i].channel)] = static_cast<int32_t>(slot);
    }
  }
  h.direct = 1;
  for (size_t c = 0; c < channel_slot_.size(); ++c) {
    if (channel_slot_[c] != static_cast<int32_t>(c)) h.direct = 0;
  }
  h.needs_float_rows = s_.act_mode == ActMode::kNone ||
                       (h.blocks > h.int_blocks && !(shape_.depthwise && h.patched));

  // Inputs.
  if (shape_.depthwise) {
    h.stored_inputs = h.slots();
    in_index_ = gather_from();
    bool identity = (h.direct == 1 || h.patched == 1) && shape_.group_outputs == 1;
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
  if (!h.direct && !h.patched && h.out_dtype == DType::kInt8) {
    scatter_ = plan_shuffle(channel_slot_, h.slots(),
                            static_cast<uint8_t>(static_cast<int8_t>(h.out.zero_point)));
  }

  if (!h.direct && !h.patched && s_.out_channels >= kBlock) {
    residual_ = plan_shuffle(slot_channel_, s_.out_channels, 0);
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
    h.gather = place_shuffle(gather_, at);
  }
  h.half_in_index = at.take(s_.half_in_count * 4);
  if (!scatter_.first.empty()) {
    h.scatter = place_shuffle(scatter_, at);
  }
  if (!residual_.first.empty()) h.residual = place_shuffle(residual_, at);
  if (shape_.depthwise) {
    h.dw_weight = at.take(int64_t{h.int_blocks} * ((s_.kernel[0] + 3) / 4) * s_.kernel[1] * 64);
  }
  h.joined_pixels = JoinedPixels::count(s_, shape_);
  if (h.joined_pixels > 1) {
    joined_ = std::make_unique<JoinedPixels>(s_, shape_);
    joined_packer_ = std::make_unique<Packer>(joined_->spec());
    h.joined = at.take(joined_packer_->bytes());
  }
  weights_at_ = at.end();
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
// Scales, biases and zero points; the corrections follow from the codes.
void Packer::write_parameters(char* blob) {
  const PackedLayer& h = head_;
  const int64_t slots = h.slots();
  auto* zero_point = reinterpret_cast<int32_t*>(blob + h.zero_point);
  auto* scale = reinterpret_cast<float*>(blob + h.scale);
  auto* bias = reinterpret_cast<float*>(blob + h.bias);
  const bool is_static = s_.act_mode == ActMode::kStatic;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    for (size_t i = 0; i < blocks_[b].rows.size(); ++i) {
      const Row& r = blocks_[b].rows[i];
      if (r.is_hole()) continue;
      const auto slot = static_cast<int64_t>(b * kBlock + i);
      if (s_.bias != nullptr) bias[slot] = s_.bias[r.stored] * h.residual_factor;
      for (int64_t p = 0; p < h.pieces; ++p) {
        float& at = scale[p * slots + slot];
        if (r.segment->bits == 16) {
          at = (is_static ? s_.act.scale : 1.0f) * h.residual_factor;
          continue;
        }
        zero_point[p * slots + slot] = zero_point_of(r, h.pieces, p);
        const float ws = r.segment->scale[r.row * h.pieces + p];
        at = (is_static ? ws * s_.act.scale : ws) * h.residual_factor;
      }
    }
  }
}

void Packer::unpack(const Block& b) {
  if (codes_.empty()) {
    // Not a power of two, or the rows would share a few sets of the cache.
    code_stride_ = (shape_.reduction + 63) / 64 * 64 + 64;
    codes_.resize(static_cast<size_t>(code_stride_ * kBlock));
  }
  for (size_t n = 0; n < b.rows.size(); ++n) {
    const SegmentSpec& g = *b.rows[n].segment;
    if (g.bits == 16) continue;
    if (b.rows[n].is_hole()) {
      std::memset(codes_.data() + static_cast<int64_t>(n) * code_stride_, 0,
                  static_cast<size_t>(shape_.reduction));
      continue;
    }
    const int64_t row_bytes = (shape_.reduction * g.bits + 7) / 8;
    unpack_codes(g.codes + b.rows[n].row * row_bytes, shape_.reduction, g.bits,
                 codes_.data() + static_cast<int64_t>(n) * code_stride_);
  }
}

// -zx * sum(m * code - zero) over each piece
void Packer::write_corrections(char* blob, const Block& b) const {
  const PackedLayer& h = head_;
  auto* correction = reinterpret_cast<int32_t*>(blob + h.correction);
  for (size_t n = 0; n < b.rows.size(); ++n) {
    const Row& r = b.rows[n];
    if (r.is_hole()) continue;
    const int64_t slot = block_index(b) * kBlock + static_cast<int64_t>(n);
    for (int64_t p = 0; p < h.pieces; ++p) {
      int64_t first = 0, last = shape_.reduction;
      if (s_.group_size != 0) {
        const int64_t tap = p / h.pieces_per_tap, part = p % h.pieces_per_tap;
        first = tap * shape_.group_inputs + part * s_.group_size;
        last = std::min(first + s_.group_size, (tap + 1) * shape_.group_inputs);
      }
      const int64_t sum = multiplier(r.segment->bits) * sum_codes(codes(n) + first, last - first) -
                          (last - first) * zero_point_of(r, h.pieces, p);
      correction[p * h.slots() + slot] = static_cast<int32_t>(-sum * s_.act.zero_point);
    }
  }
}

bool Packer::may_use_winograd() const {
  return head_.merged_row != 0 && s_.kernel[0] == 3 && s_.kernel[1] == 3 && s_.stride[0] == 1 &&
         s_.stride[1] == 1 && s_.dilation[0] == 1 && head_.int_blocks > 0;
}

// Whether |sum((m * code - zero) * x)| < 2^25 for all activations.
bool Packer::sums_stay_small(const Block& b) const {
  constexpr int64_t kMost = (int64_t{1} << 25) / 128 - 1;
  constexpr int64_t kLongest = int64_t{1} << 22;  // what fits an int32 sum
  for (size_t n = 0; n < b.rows.size(); ++n) {
    const Row& r = b.rows[n];
    if (r.is_hole()) continue;
    const int m = multiplier(r.segment->bits), zero = zero_point_of(r, 1, 0);
    const int64_t highest = int64_t{m} * ((1 << r.segment->bits) - 1) - zero;
    const int64_t largest = std::max<int64_t>(std::abs(zero), std::abs(highest));
    if (largest > 255) return false;
    if (largest * shape_.reduction <= kMost) continue;
    if (shape_.reduction > kLongest) return false;
    int32_t sum = 0;
    const uint8_t* code = codes(n);
    for (int64_t k = 0; k < shape_.reduction; ++k) sum += std::abs(m * code[k] - zero);
    if (sum > kMost) return false;
  }
  return true;
}

void Packer::write_depthwise(char* blob, const Block& b) {
  const PackedLayer& h = head_;
  const int kh = s_.kernel[0], kw = s_.kernel[1];
  const int64_t row_groups = (kh + 3) / 4;
  auto* weight = reinterpret_cast<int8_t*>(blob + h.dw_weight);
  auto* factor = reinterpret_cast<int32_t*>(blob + h.zero_point);
  auto* correction = reinterpret_cast<int32_t*>(blob + h.correction);
  for (size_t n = 0; n < b.rows.size(); ++n) {
    const Row& r = b.rows[n];
    if (r.is_hole()) continue;
    const int m = multiplier(r.segment->bits);
    const int zero = zero_point_of(r, 1, 0);
    const int highest = m * ((1 << r.segment->bits) - 1);
    // w = q - shift fits int8; what is left of the zero point meets the window's sum
    const int shift = -zero >= -128 && highest - zero <= 127 ? zero : 128;
    const int64_t slot = block_index(b) * kBlock + static_cast<int64_t>(n);
    factor[slot] = shift - zero;
    if (factor[slot] != 0) head_.dw_window = 1;
    const uint8_t* code = codes(n);
    int64_t sum = 0;
    for (int ky = 0; ky < kh; ++ky) {
      for (int kx = 0; kx < kw; ++kx) {
        const int w = m * code[int64_t{ky} * kw + kx] - shift;
        const int64_t at =
            ((block_index(b) * row_groups + ky / 4) * kw + kx) * kBlock + static_cast<int64_t>(n);
        weight[at * 4 + ky % 4] = static_cast<int8_t>(w);
        sum += w + factor[slot];
      }
    }
    // activations enter as x + 128
    correction[slot] = static_cast<int32_t>(-(128 + int64_t{h.act.zero_point}) * sum);
  }
}

// out[k][n] = value(n, k) for the lanes there are, 0 for the others, in tiles that stay in cache.
template <class Value>
void write_lanes(int64_t lanes, int64_t count, float* out, Value&& value) {
  constexpr int64_t kTile = 64;
  if (lanes < kBlock) std::memset(out, 0, static_cast<size_t>(count * kBlock) * sizeof(float));
  for (int64_t begin = 0; begin < count; begin += kTile) {
    const int64_t end = std::min(count, begin + kTile);
    for (int64_t n = 0; n < lanes; ++n) {
      for (int64_t k = begin; k < end; ++k) {
        out[k * kBlock + n] = value(static_cast<size_t>(n), k);
      }
    }
  }
}

// The real weights over their scale.
void Packer::write_floats(const Block& b, float* out) const {
  write_lanes(b.packed.lanes, shape_.reduction, out, [&](size_t n, int64_t k) {
    const Row& r = b.rows[n];
    if (r.segment->bits == 16) {
      return half_to_float(r.segment->halves[r.row * shape_.reduction + k]);
    }
    return static_cast<float>(multiplier(r.segment->bits) * codes(n)[k] -
                              zero_point_of(r, shape_.pieces, 0));
  });
}

void Packer::write_weights(char* blob) {
  const PackedLayer& h = head_;
  head_.winograd = may_use_winograd() ? 1 : 0;
  for (const Block& b : blocks_) {
    unpack(b);
    if (b.packed.bits == 16) {
      write_floats(b, reinterpret_cast<float*>(blob + b.packed.weight));
    } else if (shape_.depthwise) {
      write_depthwise(blob, b);
    } else {
      if (s_.act_mode == ActMode::kStatic) write_corrections(blob, b);
      if (head_.winograd != 0 && !sums_stay_small(b)) head_.winograd = 0;
      const BlockCodes block = {codes_.data(), code_stride_, b.packed.lanes, h.taps, h.tap_length};
      write_planes(block, h.padded_steps, b.packed.bits,
                   reinterpret_cast<uint8_t*>(blob + b.packed.weight));
    }
    if (h.half_inputs > 0) {
      const int64_t columns = shape_.kernel_taps * h.half_inputs;
      write_lanes(b.packed.lanes, columns, reinterpret_cast<float*>(blob + b.packed.half_in),
                  [&](size_t n, int64_t k) {
                    if (b.rows[n].is_hole()) return 0.0f;
                    return half_to_float(s_.half_in_weight[b.rows[n].stored * columns + k]);
                  });
    }
  }
}

void Packer::write(char* blob) {
  std::memset(blob, 0, static_cast<size_t>(weights_at_));
  write_parameters(blob);
  write_weights(blob);
  if (joined_ != nullptr) joined_packer_->write(blob + head_.joined);
  write_table(slot_channel_, head_.slot_channel, blob);
  write_table(channel_slot_, head_.channel_slot, blob);
  if (!in_index_.empty()) {
    write_table(in_index_, head_.in_index, blob);
    write_shuffle(gather_, head_.gather, blob);
  }
  if (!scatter_.first.empty()) {
    write_shuffle(scatter_, head_.scatter, blob);
  }
  if (!residual_.first.empty()) write_shuffle(residual_, head_.residual, blob);
  if (s_.half_in_count > 0) {
    std::memcpy(blob + head_.half_in_index, s_.half_in_index,
                static_cast<size_t>(s_.half_in_count) * 4);
  }
  std::vector<PackedBlock> table;
  for (const Block& b : blocks_) table.push_back(b.packed);
  write_table(table, head_.block_table, blob);
  // Member by member: the padding stays zero.
  auto* segment = reinterpret_cast<SegmentInfo*>(blob + head_.segment_table);
  for (const SegmentSpec& g : s_.segments) {
    const int64_t row = g.bits == 16 ? shape_.reduction * 2 : (shape_.reduction * g.bits + 7) / 8;
    segment->bits = g.bits;
    segment->outputs = g.count;
    segment->bytes = g.count * row;
    ++segment;
  }
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

}  // namespace defakeq

#include <memory>
#include <utility>

#include "pack/packer.h"

namespace defakeq {

namespace {

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

}  // namespace

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

void Packer::plan_head() {
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
}

// Which channel a slot has, and where each channel is.
void Packer::plan_slots() {
  PackedLayer& h = head_;
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
}

void Packer::plan_inputs() {
  PackedLayer& h = head_;
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
}

void Packer::plan_reduction() {
  PackedLayer& h = head_;
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
}

void Packer::plan_shuffles() {
  const PackedLayer& h = head_;
  if (!in_index_.empty()) gather_ = plan_shuffle(in_index_, s_.in_channels, 0);
  if (!h.direct && !h.patched && h.out_dtype == DType::kInt8) {
    scatter_ = plan_shuffle(channel_slot_, h.slots(),
                            static_cast<uint8_t>(static_cast<int8_t>(h.out.zero_point)));
  }
  if (!h.direct && !h.patched && s_.out_channels >= kBlock) {
    residual_ = plan_shuffle(slot_channel_, s_.out_channels, 0);
  }
}

void Packer::plan_places() {
  PackedLayer& h = head_;
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
    joined_ = std::make_unique<JoinedPixels>(s_, h.joined_pixels);
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

void Packer::plan() {
  plan_head();
  plan_blocks();
  plan_slots();
  plan_inputs();
  plan_reduction();
  plan_shuffles();
  plan_places();
}

}  // namespace defakeq

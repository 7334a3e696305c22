#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "defakeq/layer.h"
#include "pack/codes.h"
#include "pack/half.h"
#include "pack/packer.h"
#include "pack/refuse.h"

namespace defakeq {

namespace {

template <class T>
void write_table(const std::vector<T>& v, int64_t at, char* blob) {
  if (!v.empty()) std::memcpy(blob + at, v.data(), v.size() * sizeof(T));
}

void write_shuffle(const ShuffleTables& t, const ShufflePlaces& p, char* blob) {
  write_table(t.first, p.first, blob);
  write_table(t.sources, p.sources, blob);
  write_table(t.wide_first, p.wide_first, blob);
  write_table(t.wide_sources, p.wide_sources, blob);
  write_table(t.fill, p.fill, blob);
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

}  // namespace

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
  if (joined_ != nullptr) {
    joined_->write_codes(s_, shape_);
    joined_packer_->write(blob + head_.joined);
  }
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

#include "pack/joined_pixels.h"

#include <algorithm>

#include "pack/codes.h"

namespace defakeq {

namespace {

// What a joined layer's reduction may have: more pay for their own epilogues.
constexpr int64_t kLongest = 4096;

int32_t symmetric_zero(int32_t bits) { return 1 << (bits - 1); }

// Joined pixels on each side that the kernel reaches.
int32_t reach(const LayerSpec& spec, int32_t pixels) {
  return (spec.padding[1] + pixels - 1) / pixels;
}

// A row's bit stream of `bits` a code; the bytes are zero before.
void pack_row(const uint8_t* codes, int64_t length, int32_t bits, uint8_t* to) {
  for (int64_t at = 0; at < length * bits; ++at) {
    to[at / 8] |= static_cast<uint8_t>((codes[at / bits] >> (at % bits) & 1) << (at % 8));
  }
}

}  // namespace

int32_t JoinedPixels::count(const LayerSpec& spec, const LayerExtents& shape) {
  const bool plain = spec.kind == LayerKind::kConv2d && spec.groups == 1 && spec.group_size == 0 &&
                     spec.act_mode == ActMode::kStatic && spec.in_index == nullptr &&
                     spec.half_in_count == 0 && spec.segments.size() == 1 &&
                     spec.segments[0].count == spec.out_channels;
  // One joined pixel has to give as many outputs as it takes inputs.
  const bool same =
      spec.stride[1] == 1 && 2 * spec.padding[1] == spec.dilation[1] * (spec.kernel[1] - 1);
  if (!plain || !same || shape.depthwise) return 1;
  const SegmentSpec& segment = spec.segments[0];
  if (segment.bits < 2 || segment.bits > 8) return 1;  // a code of 1 bit is never zero
  for (int64_t n = 0; segment.zero_point != nullptr && n < segment.count; ++n) {
    if (segment.zero_point[n] < 0 || segment.zero_point[n] >> segment.bits != 0) return 1;
  }
  int32_t pixels = 1;
  while (2 * pixels * spec.out_channels <= kBlock) pixels *= 2;
  const int64_t columns = 2 * int64_t{reach(spec, pixels)} + 1;
  const int64_t length = spec.kernel[0] * columns * pixels * spec.in_channels;
  return columns <= spec.kernel[1] && length <= kLongest ? pixels : 1;
}

JoinedPixels::JoinedPixels(const LayerSpec& spec, int32_t pixels) : joined_(spec) {
  joined_.in_channels *= pixels;
  joined_.out_channels *= pixels;
  joined_.padding[1] = reach(spec, pixels);
  joined_.kernel[1] = 2 * joined_.padding[1] + 1;
  joined_.dilation[1] = 1;
  SegmentSpec& segment = joined_.segments[0];
  segment.count = joined_.out_channels;
  const SegmentSpec& one = spec.segments[0];
  for (int64_t n = 0; n < segment.count; ++n) {
    const int64_t from = n % one.count;
    out_index_.push_back(static_cast<int32_t>(n));
    scale_.push_back(one.scale[from]);
    if (one.zero_point != nullptr) zero_point_.push_back(one.zero_point[from]);
    if (spec.bias != nullptr) bias_.push_back(spec.bias[from]);
  }
  codes_.resize(static_cast<size_t>(segment.count * ((length() * one.bits + 7) / 8)));
  segment.out_index = out_index_.data();
  segment.scale = scale_.data();
  segment.codes = codes_.data();
  if (one.zero_point != nullptr) segment.zero_point = zero_point_.data();
  if (spec.bias != nullptr) joined_.bias = bias_.data();
}

int64_t JoinedPixels::length() const {
  return int64_t{joined_.kernel[0]} * joined_.kernel[1] * joined_.in_channels;
}

// Each output's kernel, moved to where its pixel lies among the joined ones; zeros around it.
void JoinedPixels::write_codes(const LayerSpec& spec, const LayerExtents& shape) {
  const SegmentSpec& one = spec.segments[0];
  const int64_t inputs = spec.in_channels, pixels = joined_.in_channels / inputs;
  const int64_t line = joined_.kernel[1] * pixels;  // pixels that a kernel row reads
  const int64_t row_bytes = (shape.reduction * one.bits + 7) / 8;
  const int64_t joined_bytes = (length() * one.bits + 7) / 8;
  std::vector<uint8_t> own(static_cast<size_t>(shape.reduction + kCodeGroup));
  std::vector<uint8_t> row(static_cast<size_t>(length()));
  for (int64_t n = 0; n < joined_.out_channels; ++n) {
    const int64_t from = n % one.count, pixel = n / one.count;
    const int32_t zero =
        one.zero_point != nullptr ? one.zero_point[from] : symmetric_zero(one.bits);
    std::fill(row.begin(), row.end(), static_cast<uint8_t>(zero));
    unpack_codes(one.codes + from * row_bytes, shape.reduction, one.bits, own.data());
    for (int64_t ky = 0; ky < spec.kernel[0]; ++ky) {
      for (int64_t kx = 0; kx < spec.kernel[1]; ++kx) {
        const int64_t at =
            joined_.padding[1] * pixels + pixel + kx * spec.dilation[1] - spec.padding[1];
        std::copy_n(own.data() + (ky * spec.kernel[1] + kx) * inputs, inputs,
                    row.data() + (ky * line + at) * inputs);
      }
    }
    pack_row(row.data(), length(), one.bits, codes_.data() + n * joined_bytes);
  }
}

}  // namespace defakeq

#include "ops/strips.h"

#include <algorithm>
#include <type_traits>

#include "ops/post.h"

namespace defakeq {

namespace {

// Rows that half-precision outputs are computed for before they are put into their places.
constexpr int64_t kPatchRows = 64;
constexpr int64_t kPatch = kPatchRows * kTileBlocks * kBlock;

}  // namespace

void Strips::find() {
  const int limit = gemv_ ? kGemvBlocks : kTileBlocks;
  count_ = integers_ = 0;
  for (int b = 0; b < blocks_;) {
    int count = 1;
    while (count < limit && b + count < blocks_ && block(b + count).bits == block(b).bits &&
           block(b + count).group == block(b).group) {
      ++count;
    }
    if (block(b).bits == 16) count = std::min(count, kTileBlocks);
    strips_[count_++] = {b, count, 0, 0};
    if (block(b).bits != 16) integers_ = count_;
    b += count;
  }
  windowed_ = may_window() && find_windows(layer_, strips_, count_, windows_);
}

void Strips::place(Arena& arena, int64_t m, int tasks) {
  const bool integers = layer_.int_blocks > 0;
  strips_ = arena.take<Strip>(layer_.blocks);
  if (may_window()) windows_ = arena.take<OutputWindow>(most_windows(layer_));
  if (integers && !planes_) {
    codes_bytes_ = kTileBlocks * layer_.padded_steps * 64;
    codes_ = arena.take<uint8_t>(codes_bytes_ * tasks);
  }
  if (integers && layer_.act_mode == ActMode::kNone) {
    // one tap's trailing step may write past the tap
    panel_floats_ = kTileBlocks * (layer_.padded_steps * 64 + 64);
    panel_ = arena.take<float>(panel_floats_ * tasks);
  }
  if (layer_.half_inputs > 0 || layer_.pieces > 1) {
    sums_floats_ = m * kGemvBlocks * kBlock;
    sums_ = arena.take<float>(sums_floats_ * tasks);
  }
  cached_ = arena.take<int32_t>(tasks * int64_t{16});
  if (layer_.patched && blocks_ > layer_.int_blocks) {
    patch_ = arena.take<char>(kPatch * tasks * size_of(layer_.out_dtype));
    if (args_.residual != nullptr) {
      patch_residual_ = arena.take<char>(kPatch * tasks * size_of(args_.residual_dtype));
    }
  }
}

void Strips::start(const Post& post, int tasks) {
  post_ = post;
  for (int t = 0; t < tasks; ++t) cached_[t * 16] = -1;
}

// Brings one block's codes into the kernel's order: taps, or pieces of them, are runs.
void Strips::arrange(uint8_t* codes, int bits) const {
  const int64_t runs = std::max(layer_.pieces, layer_.taps), per_tap = runs / layer_.taps;
  for (int64_t p = 0; p < runs; ++p) {
    const int64_t start = p % per_tap * layer_.group_size;
    const int64_t length = layer_.pieces == 1
                               ? layer_.tap_length
                               : std::min<int64_t>(layer_.group_size, layer_.tap_length - start);
    kernels_.arrange_codes(codes + (p / per_tap * layer_.tap_steps + start / 4) * 64, bits,
                           (length + 3) / 4, length);
  }
}

// Codes of the strip, one byte each; expanded once a task and strip.
const uint8_t* Strips::expanded(int64_t task, const Strip& strip, bool arranged) {
  const PackedBlock& b = block(strip.first);
  arranged = arranged && kernels_.arrange_codes != nullptr;
  if (b.bits == 8 && !arranged) return layer_.at<uint8_t>(b.weight);
  uint8_t* codes = codes_ + task * codes_bytes_;
  if (cached_[task * 16] != strip.first) {
    for (int i = 0; i < strip.count; ++i) {
      uint8_t* to = codes + i * layer_.padded_steps * 64;
      kernels_.expand_codes(layer_.at<uint8_t>(block(strip.first + i).weight), b.bits,
                            layer_.padded_steps, to);
      if (arranged) arrange(to, b.bits);
    }
    cached_[task * 16] = strip.first;
  }
  return codes;
}

template <class Args>
void Strips::set_sums(Args& a, const Strip& strip, float* sums) const {
  a.n = strip.count * kBlock;
  a.out = sums;
  a.out_stride = a.n;
  a.post = raw_post();
}

template <class Args>
void Strips::set_output(Args& a, const Strip& strip, const RowsOut& to) const {
  const int64_t col = int64_t{strip.first} * kBlock;
  const int lanes = strip.count * kBlock;
  a.n = lanes;
  a.out_stride = to.stride;
  a.post = post_;
  a.post.residual_stride = to.residual_stride;
  if (layer_.patched && is_half(strip)) {
    a.out = to.out;
    a.post.residual = to.residual;
    return;
  }
  if (in_place() && !windowed_) {
    a.n = static_cast<int>(std::min<int64_t>(lanes, layer_.out_channels - col));
  }
  a.out = offset(to.out, windowed_ ? 0 : col, layer_.out_dtype);
  if constexpr (std::is_same_v<Args, GemmS8Args>) {
    a.windows = windowed_ ? windows_ + strip.window : nullptr;
    a.window_count = strip.windows;
    const auto zero = static_cast<int8_t>(layer_.out.zero_point);
    a.absent = args_.table != nullptr ? args_.table[zero + 128] : zero;
  }
  a.post.residual =
      to.residual == nullptr ? nullptr : offset(to.residual, col, post_.residual_dtype);
}

// bias + the half-precision inputs' chain, of blocks [first, first + count)
void Strips::chain(int first, int count, int64_t row0, int64_t row1, float* out,
                   int64_t stride) const {
  GemmF32Args a{};
  a.rows = rows_.halves + row0;
  a.m = row1 - row0;
  a.tap_offset = rows_.half_tap_offset;
  a.taps = layer_.taps;
  a.length = half_length();
  a.blocks = count;
  a.w = layer_.at<float>(block(first).half_in);
  a.w_stride = a.taps * a.length * kBlock;
  a.chain_from_bias = true;
  a.last_lanes = block(first + count - 1).lanes;
  a.bias = layer_.at<float>(layer_.bias) + int64_t{first} * kBlock;
  a.out = out;
  a.out_stride = stride;
  a.n = count * kBlock;
  a.post = raw_post();
  kernels_.gemm_f32(a);
}

// The same of a strip, or null when there are no such inputs.
const float* Strips::half_chain(int64_t task, const Strip& strip, int64_t row0, int64_t row1) {
  if (layer_.half_inputs == 0) return nullptr;
  float* sums = sums_ + task * sums_floats_;
  chain(strip.first, strip.count, row0, row1, sums, int64_t{strip.count} * kBlock);
  return sums;
}

// The products of a strip, ended by finish_s8.
void Strips::winograd(int64_t task, const Strip& strip, int64_t row0, int64_t row1, GemmS8Args& a) {
  const uint8_t* codes = expanded(task, strip, false);
  const int32_t* zero_point = layer_.at<int32_t>(layer_.zero_point) + int64_t{strip.first} * kBlock;
  for (int i = 0; i < strip.count; ++i) {
    winograd_.multiply(task, codes + i * layer_.padded_steps * 64, zero_point + i * kBlock, row0,
                       row1, i);
  }
  a.sums = winograd_.sums(task, row0);
  a.sums_stride = Winograd::kStripLanes;
  // zero points are out already
  a.zero_point = a.row_sum = winograd_.zeros();
  kernels_.finish_s8(a);
}

void Strips::ints(int64_t task, const Strip& strip, int64_t row0, int64_t row1, const RowsOut& to) {
  const PackedBlock& b = block(strip.first);
  const int64_t slot = int64_t{strip.first} * kBlock, slots = layer_.slots();
  float* sums = sums_ + task * sums_floats_;
  GemmS8Args a{};
  a.m = row1 - row0;
  a.tap_offset = rows_.taps_of(b.group);
  a.taps = layer_.taps;
  a.steps = layer_.tap_steps;
  a.blocks = strip.count;
  a.bits = b.bits;
  a.planes = planes_ && b.bits < 8;
  if (!winograd_.pays()) {
    a.rows = rows_.bytes + row0;
    a.w = planes_ ? layer_.at<uint8_t>(b.weight) : expanded(task, strip, true);
  }
  a.w_stride = planes_ ? layer_.block_bytes(b.bits) : layer_.padded_steps * 64;
  a.bias = layer_.at<float>(layer_.bias) + slot;
  a.row_scale = rows_.scales_from(row0);
  if (layer_.half_inputs > 0 && fuses_half_inputs()) {
    a.half_rows = rows_.halves + row0;
    a.half_tap_offset = rows_.half_tap_offset;
    a.half_length = half_length();
    a.half_w = layer_.at<float>(b.half_in);
    a.half_w_stride = a.taps * a.half_length * kBlock;
  } else {
    a.row_bias = half_chain(task, strip, row0, row1);
    a.row_bias_stride = int64_t{strip.count} * kBlock;
  }
  const auto parameters = [&](int64_t piece) {
    a.zero_point = layer_.at<int32_t>(layer_.zero_point) + piece * slots + slot;
    a.correction = layer_.at<int32_t>(layer_.correction) + piece * slots + slot;
    a.scale = layer_.at<float>(layer_.scale) + piece * slots + slot;
  };
  const auto call = [&] {
    if (gemv_) {
      a.steps = (a.steps + kPlaneSteps - 1) / kPlaneSteps * kPlaneSteps;
      kernels_.gemv_s8(a);
    } else {
      kernels_.gemm_s8(a);
    }
  };
  if (layer_.pieces == 1) {
    parameters(0);
    if (winograd_.pays()) {
      set_output(a, strip, to);
      return winograd(task, strip, row0, row1, a);
    }
    a.row_sum = rows_.sums_of(b.group) + row0;
    set_output(a, strip, to);
    call();
    return;
  }
  const uint8_t* w = a.w;
  a.taps = 1;
  for (int64_t p = 0; p < layer_.pieces; ++p) {
    const int64_t tap = p / layer_.pieces_per_tap;
    const int64_t start = p % layer_.pieces_per_tap * layer_.group_size;
    const int64_t length = std::min<int64_t>(layer_.group_size, layer_.tap_length - start);
    const int64_t step = tap * layer_.tap_steps + start / 4;
    parameters(p);
    a.tap_offset = rows_.piece_offset + p;
    a.steps = (length + 3) / 4;
    a.w = w + (planes_ ? step / kPlaneSteps * b.bits * 64 : step * 64);
    a.row_sum = rows_.sums_of(p) + row0;
    if (p + 1 < layer_.pieces) {
      set_sums(a, strip, sums);
    } else {
      set_output(a, strip, to);
    }
    call();
    a.row_bias = sums;
  }
}

void Strips::floats(int64_t task, const Strip& strip, int64_t row0, int64_t row1,
                    const RowsOut& to) {
  const PackedBlock& b = block(strip.first);
  const int64_t slot = int64_t{strip.first} * kBlock, slots = layer_.slots();
  const int64_t reduction = layer_.taps * layer_.tap_length;
  float* sums = sums_ + task * sums_floats_;
  GemmF32Args a{};
  a.rows = rows_.floats + row0;
  a.m = row1 - row0;
  a.tap_offset = rows_.taps_of(b.group);
  a.taps = layer_.taps;
  a.length = layer_.tap_length;
  a.blocks = strip.count;
  a.last_lanes = block(strip.first + strip.count - 1).lanes;
  a.bias = layer_.at<float>(layer_.bias) + slot;
  a.scale = layer_.at<float>(layer_.scale) + slot;
  a.row_scale = rows_.scales_from(row0);
  a.row_bias = half_chain(task, strip, row0, row1);
  a.row_bias_stride = int64_t{strip.count} * kBlock;
  if (b.bits == 16) {
    a.w = layer_.at<float>(b.weight);
    a.w_stride = reduction * kBlock;
    set_output(a, strip, to);
    kernels_.gemm_f32(a);
    return;
  }
  const uint8_t* codes = expanded(task, strip, false);
  float* panel = panel_ + task * panel_floats_;
  const auto* zero_point = layer_.at<int32_t>(layer_.zero_point) + slot;
  const int64_t code_stride = layer_.padded_steps * 64;
  if (layer_.pieces == 1) {
    a.w_stride = (reduction + 4) * kBlock;
    for (int i = 0; i < strip.count; ++i) {
      for (int64_t t = 0; t < layer_.taps; ++t) {
        kernels_.codes_to_f32(codes + i * code_stride + t * layer_.tap_steps * 64, layer_.tap_steps,
                              zero_point + i * kBlock,
                              panel + i * a.w_stride + t * layer_.tap_length * kBlock);
      }
    }
    a.w = panel;
    set_output(a, strip, to);
    kernels_.gemm_f32(a);
    return;
  }
  a.taps = 1;
  a.w = panel;
  a.w_stride = (layer_.group_size + 4) * kBlock;
  for (int64_t p = 0; p < layer_.pieces; ++p) {
    const int64_t tap = p / layer_.pieces_per_tap;
    const int64_t start = p % layer_.pieces_per_tap * layer_.group_size;
    a.length = std::min<int64_t>(layer_.group_size, layer_.tap_length - start);
    for (int i = 0; i < strip.count; ++i) {
      kernels_.codes_to_f32(codes + i * code_stride + (tap * layer_.tap_steps + start / 4) * 64,
                            (a.length + 3) / 4, zero_point + p * slots + i * kBlock,
                            panel + i * a.w_stride);
    }
    a.tap_offset = rows_.piece_offset + p;
    a.scale = layer_.at<float>(layer_.scale) + p * slots + slot;
    if (p + 1 < layer_.pieces) {
      set_sums(a, strip, sums);
    } else {
      set_output(a, strip, to);
    }
    kernels_.gemm_f32(a);
    a.row_bias = sums;
  }
}

// Half-precision outputs of a patched layer: some rows of them, then into their places.
void Strips::patch(int64_t task, const Strip& strip, int64_t row0, int64_t row1,
                   const RowsOut& to) {
  const int32_t* channel = layer_.at<int32_t>(layer_.slot_channel) + int64_t{strip.first} * kBlock;
  const int64_t lanes = int64_t{strip.count} * kBlock;
  const DType out = layer_.out_dtype, near = post_.residual_dtype;
  RowsOut own = {offset(patch_, task * kPatch, out), lanes, nullptr, lanes};
  if (to.residual != nullptr) own.residual = offset(patch_residual_, task * kPatch, near);
  for (int64_t row = row0; row < row1; row += kPatchRows) {
    const int64_t rows = std::min(kPatchRows, row1 - row), at = row - row0;
    if (to.residual != nullptr) {
      pick_channels(near, offset(to.residual, at * to.residual_stride, near), to.residual_stride,
                    rows, channel, lanes, offset(patch_residual_, task * kPatch, near));
    }
    floats(task, strip, row, row + rows, own);
    put_channels(out, own.out, rows, channel, lanes, offset(to.out, at * to.stride, out),
                 to.stride);
  }
}

void Strips::run(int64_t task, int64_t s, int64_t row0, int64_t row1, const RowsOut& to) {
  const Strip& strip = strips_[s];
  if (is_half(strip) && layer_.patched) {
    patch(task, strip, row0, row1, to);
  } else if (is_half(strip) || layer_.act_mode == ActMode::kNone) {
    floats(task, strip, row0, row1, to);
  } else {
    ints(task, strip, row0, row1, to);
  }
}

}  // namespace defakeq

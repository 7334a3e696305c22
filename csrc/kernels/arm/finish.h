// How the int32 accumulators of a product leave.
#pragma once

#include <cmath>

#include "kernels/arm/vec.h"
#include "kernels/simd/epilogue.h"

namespace defakeq {
namespace {

constexpr int kParts = kBlock / Vec::W;

// The plain int8 epilogue: at most a residual of int8 and a ReLU, which is a higher lower bound,
// and a table, which replace_outputs applies to the finished rows. The conversion and each
// narrowing saturate, so the bounds come last; finite scales and biases keep NaN out.
struct PlainInt8 {
  bool bare;  // no factor and no narrower bounds than int8's
  float inv_scale;
  int16_t zero_point;
  int8_t lowest, highest;
};

DQ_INLINE bool is_plain_int8(const Post& post, const float* scale, const float* bias, int64_t n) {
  if (post.out_dtype != DType::kInt8 ||
      (post.activation != Activation::kNone && post.activation != Activation::kRelu)) {
    return false;
  }
  // what is not finite minus itself is NaN
  float32x4_t sum = vdupq_n_f32(0.0f);
  for (int64_t i = 0; i < n; i += Vec::W) {
    const float32x4_t s = vld1q_f32(scale + i), b = vld1q_f32(bias + i);
    sum = vaddq_f32(sum, vaddq_f32(vsubq_f32(s, s), vsubq_f32(b, b)));
  }
  return vaddvq_f32(sum) == 0.0f;
}

// Whether y, which may be infinite, stays a number when the residual is added.
DQ_INLINE bool has_plain_residual(const Post& post) {
  return post.residual_dtype == DType::kInt8 && std::abs(post.residual_scale) < 1e30f &&
         post.residual_zero_point >= -128 && post.residual_zero_point <= 127;
}

DQ_INLINE void add_int8_residual(const Post& post, const int8_t* residual, int64_t n,
                                 float32x4_t (&y)[kParts]) {
  const int8x16_t bytes = load_bytes(residual, n);
  const int8x8_t zero = vdup_n_s8(static_cast<int8_t>(post.residual_zero_point));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const int16x8_t q = vsubl_s8(i == 0 ? vget_low_s8(bytes) : vget_high_s8(bytes), zero);
    const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(q)));
    const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(q));
    y[2 * i] = vfmaq_n_f32(y[2 * i], low, post.residual_scale);
    y[2 * i + 1] = vfmaq_n_f32(y[2 * i + 1], high, post.residual_scale);
  }
}

DQ_INLINE PlainInt8 plain_int8_of(const Post& post) {
  const int32_t low = static_cast<int32_t>(post.low), high = static_cast<int32_t>(post.high);
  const bool relu = post.activation == Activation::kRelu;
  const int32_t lowest = (relu && low < 0 ? 0 : low) + post.zero_point;
  const int32_t highest = high + post.zero_point;
  return {post.inv_scale == 1.0f && lowest == -128 && highest == 127, post.inv_scale,
          static_cast<int16_t>(post.zero_point), static_cast<int8_t>(lowest),
          static_cast<int8_t>(highest)};
}

// kGuard: there may be NaN, which comes out lowest.
template <bool kBare, bool kGuard = false>
DQ_INLINE int8x16_t to_bytes(const PlainInt8& p, const float32x4_t (&y)[kParts]) {
  int16x8_t q[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const auto round = [&](float32x4_t v) __attribute__((always_inline)) {
      const int32x4_t n = vcvtnq_s32_f32(kBare ? v : vmulq_n_f32(v, p.inv_scale));
      return kGuard ? vbslq_s32(vceqq_f32(v, v), n, vdupq_n_s32(INT32_MIN)) : n;
    };
    q[i] = vqmovn_high_s32(vqmovn_s32(round(y[2 * i])), round(y[2 * i + 1]));
    q[i] = vqaddq_s16(q[i], vdupq_n_s16(p.zero_point));
  }
  const int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(q[0]), q[1]);
  if constexpr (kBare) return bytes;
  return vminq_s8(vmaxq_s8(bytes, vdupq_n_s8(p.lowest)), vdupq_n_s8(p.highest));
}

// Of a product whose kernel read w = code - offset.
struct Finish {
  bool int8_only;
  int32_t offset;
  PlainInt8 plain;
};

DQ_INLINE Finish finish_of(const GemmS8Args& a, int32_t offset) {
  return {a.row_scale == nullptr && (a.post.residual == nullptr || has_plain_residual(a.post)) &&
              is_plain_int8(a.post, a.scale, a.bias, int64_t{a.blocks} * kBlock),
          offset, plain_int8_of(a.post)};
}

constexpr int32_t kNothing[kBlock] = {};

// What the accumulators of a block begin with: finish_tile adds the correction otherwise.
DQ_INLINE const int32_t* start_of(const GemmS8Args& a, const Finish& f, int block) {
  return f.int8_only ? a.correction + block * kBlock : kNothing;
}

// acc[r]: start + sum((code - offset) * x) of row + r, block `block`. kRowBias: a.row_bias is
// there.
template <bool kBare, bool kResidual, bool kRowBias, int R>
DQ_INLINE void finish_int8(const GemmS8Args& a, const Finish& f, int64_t row, int block,
                           const int32x4_t (&acc)[R][kParts]) {
  const int col = block * kBlock;
  float32x4_t y[R][kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const int at = col + i * Vec::W;
    const int32x4_t zero = vsubq_s32(vld1q_s32(a.zero_point + at), vdupq_n_s32(f.offset));
    const float32x4_t scale = vld1q_f32(a.scale + at), bias = vld1q_f32(a.bias + at);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int32x4_t v = vmlsq_s32(acc[r][i], zero, vld1q_dup_s32(a.row_sum + row + r));
      const float32x4_t from =
          kRowBias ? vld1q_f32(a.row_bias + (row + r) * a.row_bias_stride + at) : bias;
      y[r][i] = vfmaq_f32(from, vcvtq_f32_s32(v), scale);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if constexpr (kResidual) {
      const auto* residual = static_cast<const int8_t*>(a.post.residual);
      add_int8_residual(a.post, residual + (row + r) * a.post.residual_stride + col, a.n - col,
                        y[r]);
    }
    store_bytes(static_cast<int8_t*>(a.out) + (row + r) * a.out_stride + col, a.n - col,
                to_bytes<kBare, kRowBias>(f.plain, y[r]));
  }
}

// Any epilogue, one row.
__attribute__((noinline)) inline void finish_any(const GemmS8Args& a, int32_t offset, int64_t row,
                                                 int block, const int32x4_t* acc) {
  const int32x4_t undo = vdupq_n_s32(offset * a.row_sum[row]);
  int32x4_t sum[kParts];
  for (int i = 0; i < kParts; ++i) sum[i] = vaddq_s32(acc[i], undo);
  simd::finish_acc<Vec>(a, row, block, sum);
}

template <int R>
DQ_INLINE void finish_tile(const GemmS8Args& a, const Finish& f, int64_t row, int block,
                           const int32x4_t (&acc)[R][kParts]) {
  const bool residual = a.post.residual != nullptr;
  if (!f.int8_only) {
    for (int r = 0; r < R; ++r) finish_any(a, f.offset, row + r, block, acc[r]);
  } else if (a.row_bias != nullptr) {
    residual ? finish_int8<false, true, true, R>(a, f, row, block, acc)
             : finish_int8<false, false, true, R>(a, f, row, block, acc);
  } else if (residual) {
    finish_int8<false, true, false, R>(a, f, row, block, acc);
  } else if (f.plain.bare) {
    finish_int8<true, false, false, R>(a, f, row, block, acc);
  } else {
    finish_int8<false, false, false, R>(a, f, row, block, acc);
  }
}

// The 256-entry table over bytes, 64 entries a look-up; indices out of its range leave the byte.
struct Table {
  int8x16x4_t part[4];
  explicit Table(const int8_t* table) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) part[i] = vld1q_s8_x4(table + i * 64);
  }
  int8x16_t at(int8x16_t x) const {
    uint8x16_t i = veorq_u8(vreinterpretq_u8_s8(x), vdupq_n_u8(0x80));
    int8x16_t y = vqtbl4q_s8(part[0], i);
#pragma GCC unroll 4
    for (int p = 1; p < 4; ++p) {
      i = vsubq_u8(i, vdupq_n_u8(64));
      y = vqtbx4q_s8(y, part[p], i);
    }
    return y;
  }
};

DQ_INLINE void lookup_bytes(const int8_t* x, int64_t count, const Table& table, int8_t* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) vst1q_s8(out + i, table.at(vld1q_s8(x + i)));
  if (i < count) store_bytes(out + i, count - i, table.at(load_bytes(x + i, count - i)));
}

// Applies the table of a plain int8 epilogue to finished rows of n bytes.
DQ_INLINE void replace_outputs(const Post& post, void* out, int64_t out_stride, int64_t rows,
                               int64_t n) {
  if (post.table == nullptr) return;
  const Table table(post.table);
  int8_t* p = static_cast<int8_t*>(out);
  for (int64_t r = 0; r < rows; ++r) lookup_bytes(p + r * out_stride, n, table, p + r * out_stride);
}

}  // namespace
}  // namespace defakeq

// Passes between layers that 16 lanes at a time serve better than the shared templates' fours.
#pragma once

#include "kernels/arm/finish.h"
#include "kernels/simd/elementwise.h"

namespace defakeq {
namespace {

// 16 bytes as float32, without their zero point, which is an int8.
DQ_INLINE void bytes_to_f32(int8x16_t x, int8x8_t zero, float32x4_t (&y)[kParts]) {
  const int16x8_t low = vsubl_s8(vget_low_s8(x), zero), high = vsubl_s8(vget_high_s8(x), zero);
  y[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
  y[1] = vcvtq_f32_s32(vmovl_high_s16(low));
  y[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
  y[3] = vcvtq_f32_s32(vmovl_high_s16(high));
}

// The gate of squeeze and excitation: int8 times int8 by channel to int8, in units that keep NaN
// out.
DQ_INLINE bool is_plain_gate(const BinaryArgs& g) {
  const auto plain = [](const Operand& x) {
    return x.dtype == DType::kInt8 && std::abs(x.quantization.scale) < 1e15f &&
           x.quantization.zero_point >= -128 && x.quantization.zero_point <= 127;
  };
  return g.fn == BinaryFn::kMul && g.b_shape == Broadcast::kChannel && plain(g.a) && plain(g.b) &&
         g.channels >= kBlock && g.out != g.a.data && simd::plain_int8(g.post) &&
         g.post.inv_scale > 0.0f;
}

inline void scale_block(const BinaryArgs& g, int64_t c, int64_t begin, int64_t end) {
  const PlainInt8 plain = plain_int8_of(g.post);
  float32x4_t b[kParts];
  const auto* gate = static_cast<const int8_t*>(g.b.data) + c;
  bytes_to_f32(vld1q_s8(gate), vdup_n_s8(static_cast<int8_t>(g.b.quantization.zero_point)), b);
  for (auto& part : b) part = vmulq_n_f32(part, g.b.quantization.scale);
  const int8x8_t zero = vdup_n_s8(static_cast<int8_t>(g.a.quantization.zero_point));
  const auto* x = static_cast<const int8_t*>(g.a.data) + c;
  auto* out = static_cast<int8_t*>(g.out) + c;
  for (int64_t at = begin * g.channels; at < end * g.channels; at += g.channels) {
    float32x4_t y[kParts];
    bytes_to_f32(vld1q_s8(x + at), zero, y);
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      y[i] = vmulq_f32(vmulq_n_f32(y[i], g.a.quantization.scale), b[i]);
    }
    vst1q_s8(out + at, to_bytes<false>(plain, y));
  }
}

inline void binary_of(const BinaryArgs& g, int64_t begin, int64_t end) {
  if (!is_plain_gate(g)) return simd::binary<Vec>(g, begin, end);
  int64_t c = 0;
  for (; c + kBlock <= g.channels; c += kBlock) scale_block(g, c, begin, end);
  // the last channels, some of them again
  if (c < g.channels) scale_block(g, g.channels - kBlock, begin, end);
}

}  // namespace

namespace simd {

// As the template has it, NaN to the lowest.
template <>
inline void quantize<Vec>(const float* x, int64_t count, float inv_scale, int32_t zero_point,
                          float low, float high, int8_t* out) {
  const int32_t lowest = static_cast<int32_t>(low) + zero_point;
  const int32_t highest = static_cast<int32_t>(high) + zero_point;
  const auto round = [&](const float* p) __attribute__((always_inline)) {
    const float32x4_t y = vmulq_n_f32(vld1q_f32(p), inv_scale);
    return vbslq_s32(vceqq_f32(y, y), vcvtnq_s32_f32(y), vdupq_n_s32(INT32_MIN));
  };
  const auto block = [&](const float* p) __attribute__((always_inline)) {
    int16x8_t q[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      q[h] = vqmovn_high_s32(vqmovn_s32(round(p + h * 8)), round(p + h * 8 + 4));
      q[h] = vqaddq_s16(q[h], vdupq_n_s16(static_cast<int16_t>(zero_point)));
    }
    const int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(q[0]), q[1]);
    return vminq_s8(vmaxq_s8(bytes, vdupq_n_s8(static_cast<int8_t>(lowest))),
                    vdupq_n_s8(static_cast<int8_t>(highest)));
  };
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) vst1q_s8(out + i, block(x + i));
  if (i < count) {
    float tail[kBlock] = {};
    std::memcpy(tail, x + i, sizeof(float) * static_cast<size_t>(count - i));
    store_bytes(out + i, count - i, block(tail));
  }
}

template <>
inline void to_f32<Vec>(const int8_t* x, int64_t count, int32_t zero_point, float* out) {
  const int8x8_t zero = vdup_n_s8(static_cast<int8_t>(zero_point));
  float32x4_t y[kParts];
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    bytes_to_f32(vld1q_s8(x + i), zero, y);
#pragma GCC unroll 4
    for (int k = 0; k < kParts; ++k) vst1q_f32(out + i + k * Vec::W, y[k]);
  }
  if (i < count) {
    float tail[kBlock];
    bytes_to_f32(load_bytes(x + i, count - i), zero, y);
    for (int k = 0; k < kParts; ++k) vst1q_f32(tail + k * Vec::W, y[k]);
    std::memcpy(out + i, tail, sizeof(float) * static_cast<size_t>(count - i));
  }
}

}  // namespace simd
}  // namespace defakeq

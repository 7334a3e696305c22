// What the depthwise convolutions of every ARM tier share: a block of 16 channels and how its
// outputs leave.
#pragma once

#include "kernels/arm/finish.h"

namespace defakeq {
namespace {

struct DwBlock {
  const DwS8Args* a;
  int64_t c0;
  int n;                  // valid channels
  int64_t count;          // columns of the padded rows that are read
  int32_t start[kBlock];  // the accumulators before the first tap
  int32x4_t factor[kParts];
  float scale[kBlock], bias[kBlock];
  PlainInt8 int8;
};

DQ_INLINE int64_t dw_columns(const DwS8Args& a) {
  return (a.out_w - 1) * a.stride[1] + int64_t{a.kernel[1] - 1} * a.dilation[1] + 1;
}

// The values are read again for every output: copies of registers would cost twice the loads.
DQ_INLINE const float* again(const float* p) {
  __asm__("" : "+r"(p));
  return p;
}
DQ_INLINE const int8_t* again(const int8_t* p) {
  __asm__("" : "+r"(p));
  return p;
}
DQ_INLINE const int32_t* again(const int32_t* p) {
  __asm__("" : "+r"(p));
  return p;
}

template <bool kBare>
DQ_INLINE void dw_finish_int8(const DwBlock& k, int64_t pixel, const int32x4_t (&acc)[kParts]) {
  const float* bias = again(k.bias);
  float32x4_t y[kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    y[i] = vfmaq_f32(vld1q_f32(bias + i * 4), vcvtq_f32_s32(acc[i]), vld1q_f32(k.scale + i * 4));
  }
  store_bytes(static_cast<int8_t*>(k.a->out) + pixel * k.a->out_stride + k.c0, k.n,
              to_bytes<kBare>(k.int8, y));
}

__attribute__((noinline)) inline void dw_finish_any(const DwBlock& k, int64_t pixel,
                                                    const int32x4_t* acc) {
  const DwS8Args& a = *k.a;
  float32x4_t y[kParts];
  for (int i = 0; i < kParts; ++i) {
    float32x4_t f = vcvtq_f32_s32(acc[i]);
    if (a.has_row_scale) f = vmulq_n_f32(f, a.row_scale);
    y[i] = vfmaq_f32(vld1q_f32(k.bias + i * 4), f, vld1q_f32(k.scale + i * 4));
  }
  simd::finish_block<Vec>(a.post, a.out, a.out_stride, pixel, k.c0, k.n, y);
}

// How outputs leave.
enum class DwFinish { kAny, kInt8, kBareInt8 };

template <DwFinish kFinish>
DQ_INLINE void dw_finish(const DwBlock& k, int64_t pixel, const int32x4_t (&acc)[kParts]) {
  if constexpr (kFinish == DwFinish::kAny) {
    dw_finish_any(k, pixel, acc);
  } else {
    dw_finish_int8<kFinish == DwFinish::kBareInt8>(k, pixel, acc);
  }
}

// The parts that do not depend on how taps are multiplied, for the channels from c0 on.
inline void dw_begin(DwBlock& k, const DwS8Args& a, int64_t c0) {
  k.a = &a;
  k.c0 = c0;
  k.n = static_cast<int>(a.channels - c0 < kBlock ? a.channels - c0 : kBlock);
  k.count = dw_columns(a);
  k.int8 = plain_int8_of(a.post);
  std::memcpy(k.scale, a.scale + c0, sizeof(k.scale));
  std::memcpy(k.bias, a.bias + c0, sizeof(k.bias));
  // the correction is for activations as x + 128
  for (int i = 0; i < kParts; ++i) {
    int32x4_t start = vld1q_s32(a.correction + c0 + i * 4);
    if (a.window_factor != nullptr) {
      k.factor[i] = vld1q_s32(a.window_factor + c0 + i * 4);
      start = vmlaq_n_s32(start, k.factor[i], 128 * a.kernel[0] * a.kernel[1]);
    }
    vst1q_s32(k.start + i * 4, start);
  }
}

// Applies the table, if there is one, to the block's finished bytes.
DQ_INLINE void dw_replace_outputs(const DwBlock& k) {
  const DwS8Args& a = *k.a;
  replace_outputs(a.post, static_cast<int8_t*>(a.out) + a.oy0 * a.out_w * a.out_stride + k.c0,
                  a.out_stride, (a.oy1 - a.oy0) * a.out_w, k.n);
}

DQ_INLINE DwFinish dw_finish_of(const DwBlock& k) {
  const DwS8Args& a = *k.a;
  if (a.has_row_scale || a.post.residual != nullptr ||
      !is_plain_int8(a.post, k.scale, k.bias, kBlock)) {
    return DwFinish::kAny;
  }
  return k.int8.bare ? DwFinish::kBareInt8 : DwFinish::kInt8;
}

// run.operator()<finish>() for the block, and the table where there is one.
template <class Run>
DQ_INLINE void dw_with_finish(const DwBlock& k, Run&& run) {
  const DwFinish finish = dw_finish_of(k);
  if (finish == DwFinish::kAny) {
    run.template operator()<DwFinish::kAny>();
    return;
  }
  finish == DwFinish::kBareInt8 ? run.template operator()<DwFinish::kBareInt8>()
                                : run.template operator()<DwFinish::kInt8>();
  dw_replace_outputs(k);
}

}  // namespace
}  // namespace defakeq

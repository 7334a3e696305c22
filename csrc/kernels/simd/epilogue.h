// The one definition of what follows an accumulator: residual, activation, store.
#pragma once

#include <cstring>

#include "kernels/kernel_table.h"
#include "kernels/simd/math.h"

namespace defakeq::simd {

template <class V>
DQ_INLINE typename V::F activate(Activation activation, typename V::F y) {
  switch (activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return V::max(y, V::set1(0.0f));
    case Activation::kRelu6:
      return V::min(V::max(y, V::set1(0.0f)), V::set1(6.0f));
    case Activation::kHardswish:
      return hardswish<V>(y);
    case Activation::kSilu:
      return V::mul(y, sigmoid<V>(y));
    case Activation::kGelu:
      return gelu<V>(y);
    case Activation::kSigmoid:
      return sigmoid<V>(y);
  }
  return y;
}

template <class V, size_t kParts>
DQ_INLINE void add_residual(const Post& post, int64_t row, int64_t col, int n,
                            typename V::F (&y)[kParts]) {
  constexpr int kLanes = static_cast<int>(kParts) * V::W;
  const int64_t at = row * post.residual_stride + col;
  if (post.residual_dtype == DType::kFloat32) {
    const float* p = static_cast<const float*>(post.residual) + at;
    float tail[kLanes] = {};
    if (n < kLanes) {
      std::memcpy(tail, p, sizeof(float) * static_cast<size_t>(n));
      p = tail;
    }
    for (size_t i = 0; i < kParts; ++i) {
      y[i] = V::fma(V::load(p + i * V::W), V::set1(post.residual_scale), y[i]);
    }
  } else {
    const int8_t* p = static_cast<const int8_t*>(post.residual) + at;
    int8_t tail[kLanes] = {};
    if (n < kLanes) {
      std::memcpy(tail, p, static_cast<size_t>(n));
      p = tail;
    }
    for (size_t i = 0; i < kParts; ++i) {
      const typename V::I q =
          V::sub_i(V::load_s8(p + i * V::W), V::set1_i(post.residual_zero_point));
      y[i] = V::fma(V::to_f(q), V::set1(post.residual_scale), y[i]);
    }
  }
}

template <class V>
DQ_INLINE typename V::I quantized(const Post& post, typename V::F y) {
  y = V::mul(y, V::set1(post.inv_scale));
  // NaN comes out lowest: min hands its second operand on, and so does max.
  y = V::max(V::min(V::set1(post.high), y), V::set1(post.low));
  return V::add_i(V::rne(y), V::set1_i(post.zero_point));
}

// What is stored as int8.
template <class V>
DQ_INLINE typename V::I requantize(const Post& post, typename V::F y) {
  const typename V::I q = quantized<V>(post, y);
  return post.table != nullptr ? V::lookup(post.table, q) : q;
}

// Stores the outputs y of row `row` from column `col` on, or the first n of them.
template <class V, size_t kParts>
DQ_INLINE void finish_block(const Post& post, void* out, int64_t out_stride, int64_t row,
                            int64_t col, int n, typename V::F (&y)[kParts]) {
  constexpr int kLanes = static_cast<int>(kParts) * V::W;
  if (post.residual != nullptr) add_residual<V>(post, row, col, n, y);
  if (post.activation != Activation::kNone) {
    for (size_t i = 0; i < kParts; ++i) y[i] = activate<V>(post.activation, y[i]);
  }
  const int64_t at = row * out_stride + col;
  if (post.out_dtype == DType::kFloat32) {
    float* p = static_cast<float*>(out) + at;
    if (n >= kLanes) {
      for (size_t i = 0; i < kParts; ++i) V::store(p + i * V::W, y[i]);
    } else {
      float tail[kLanes];
      for (size_t i = 0; i < kParts; ++i) V::store(tail + i * V::W, y[i]);
      std::memcpy(p, tail, sizeof(float) * static_cast<size_t>(n));
    }
  } else {
    int8_t* p = static_cast<int8_t*>(out) + at;
    if (n >= kLanes) {
      for (size_t i = 0; i < kParts; ++i) V::store_s8(p + i * V::W, requantize<V>(post, y[i]));
    } else {
      int8_t tail[kLanes];
      for (size_t i = 0; i < kParts; ++i) V::store_s8(tail + i * V::W, requantize<V>(post, y[i]));
      std::memcpy(p, tail, static_cast<size_t>(n));
    }
  }
}

// acc: 16 integer dot products sum(code * x) of row `row`, block `block`.
template <class V>
DQ_INLINE void finish_acc(const GemmS8Args& a, int64_t row, int block,
                          const typename V::I (&acc)[kBlock / V::W]) {
  constexpr int kParts = kBlock / V::W;
  const int col = block * kBlock;
  const typename V::I sum = V::set1_i(a.row_sum[row]);
  typename V::F y[kParts];
  for (int i = 0; i < kParts; ++i) {
    const int at = col + i * V::W;
    typename V::I v = V::add_i(acc[i], V::load_i(a.correction + at));
    v = V::sub_i(v, V::mul_i(sum, V::load_i(a.zero_point + at)));
    typename V::F f = V::to_f(v);
    if (a.row_scale != nullptr) f = V::mul(f, V::set1(a.row_scale[row]));
    const float* bias =
        a.row_bias != nullptr ? a.row_bias + row * a.row_bias_stride + at : a.bias + at;
    y[i] = V::fma(f, V::load(a.scale + at), V::load(bias));
  }
  const int left = a.n - col;
  finish_block<V>(a.post, a.out, a.out_stride, row, col, left < kBlock ? left : kBlock, y);
}

template <class V>
void finish_sums(const GemmS8Args& a) {
  for (int64_t row = 0; row < a.m; ++row) {
    for (int b = 0; b < a.blocks; ++b) {
      const int32_t* sums = a.sums + row * a.sums_stride + b * kBlock;
      typename V::I acc[kBlock / V::W];
      for (int i = 0; i < kBlock / V::W; ++i) acc[i] = V::load_i(sums + i * V::W);
      finish_acc<V>(a, row, b, acc);
    }
  }
}

}  // namespace defakeq::simd

// Blocks of 16 values of an operand, as float32.
#pragma once

#include <cstring>

#include "defakeq/nodes.h"
#include "kernels/simd/epilogue.h"

namespace defakeq::simd {

template <class V>
using Block = typename V::F[kBlock / V::W];

// Whether a result is stored without anything but rounding.
DQ_INLINE bool plain_int8(const Post& post) {
  return post.out_dtype == DType::kInt8 && post.residual == nullptr && post.table == nullptr &&
         post.activation == Activation::kNone;
}

// n <= 16 floats; the others come out as 0.
template <class V>
DQ_INLINE void load_floats(const float* p, int n, Block<V>& y) {
  constexpr int kParts = kBlock / V::W;
  if (n >= kBlock) {
    for (int i = 0; i < kParts; ++i) y[i] = V::load(p + i * V::W);
  } else if constexpr (requires { V::load_part(p, n); }) {
    for (int i = 0; i < kParts; ++i) y[i] = V::load_part(p + i * V::W, n - i * V::W);
  } else {
    float tail[kBlock] = {};
    std::memcpy(tail, p, sizeof(float) * static_cast<size_t>(n));
    for (int i = 0; i < kParts; ++i) y[i] = V::load(tail + i * V::W);
  }
}

// n <= 16 values from element `at` on; the others come out as those of the zero point (0).
template <class V>
DQ_INLINE void load_block(const Operand& x, int64_t at, int n, Block<V>& y) {
  constexpr int kParts = kBlock / V::W;
  if (x.dtype == DType::kFloat32) {
    return load_floats<V>(static_cast<const float*>(x.data) + at, n, y);
  }
  const int8_t* p = static_cast<const int8_t*>(x.data) + at;
  int8_t tail[kBlock];
  if (n < kBlock) {
    std::memset(tail, x.quantization.zero_point, sizeof(tail));
    std::memcpy(tail, p, static_cast<size_t>(n));
    p = tail;
  }
  const typename V::I zero = V::set1_i(x.quantization.zero_point);
  const typename V::F scale = V::set1(x.quantization.scale);
  for (int i = 0; i < kParts; ++i) {
    y[i] = V::mul(V::to_f(V::sub_i(V::load_s8(p + i * V::W), zero)), scale);
  }
}

// 16 lanes to one, pairwise: i and i + 8, i + 4, i + 2, i + 1. A vector type may do its part of
// that itself, by the given function.
template <class V, class Pair, class Within>
DQ_INLINE float fold_lanes(const Block<V>& y, Pair&& pair, Within&& within) {
  Block<V> parts;
  for (int i = 0; i < kBlock / V::W; ++i) parts[i] = y[i];
  for (int half = kBlock / V::W / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) parts[i] = pair(parts[i], parts[i + half]);
  }
  return within(parts[0]);
}

template <class V>
DQ_INLINE float sum_lanes(const Block<V>& y) {
  return fold_lanes<V>(
      y, [](auto a, auto b) __attribute__((always_inline)) { return V::add(a, b); },
      [](auto v) __attribute__((always_inline)) {
        if constexpr (requires { V::sum(v); }) {
          return V::sum(v);
        } else {
          float lanes[V::W];
          V::store(lanes, v);
          for (int half = V::W / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
          }
          return lanes[0];
        }
      });
}

template <class V>
DQ_INLINE float max_lanes(const Block<V>& y) {
  return fold_lanes<V>(
      y, [](auto a, auto b) __attribute__((always_inline)) { return V::max(b, a); },
      [](auto v) __attribute__((always_inline)) {
        if constexpr (requires { V::largest(v); }) {
          return V::largest(v);
        } else {
          float lanes[V::W];
          V::store(lanes, v);
          for (int half = V::W / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) {
              lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
            }
          }
          return lanes[0];
        }
      });
}

// Keeps the first n lanes, the others become `value`.
template <class V>
DQ_INLINE void keep_lanes(int n, float value, Block<V>& y) {
  if (n >= kBlock) return;
  float lanes[kBlock];
  for (int i = 0; i < kBlock / V::W; ++i) V::store(lanes + i * V::W, y[i]);
  for (int i = n; i < kBlock; ++i) lanes[i] = value;
  for (int i = 0; i < kBlock / V::W; ++i) y[i] = V::load(lanes + i * V::W);
}

// fn(first column, number of columns <= 16)
template <class Fn>
DQ_INLINE void for_blocks(int64_t columns, Fn&& fn) {
  int64_t c = 0;
  for (; c + kBlock <= columns; c += kBlock) fn(c, kBlock);
  if (c < columns) fn(c, static_cast<int>(columns - c));
}

}  // namespace defakeq::simd

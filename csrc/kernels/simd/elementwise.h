#pragma once

#include <bit>
#include <cmath>

#include "kernels/node_args.h"
#include "kernels/simd/blocks.h"
#include "kernels/simd/rows.h"

namespace defakeq::simd {

// ln x for x > 0 (NaN below, -inf at 0): x = m 2^e with m in [sqrt(1/2), sqrt(2)), and the series
// of 2 atanh((m - 1) / (m + 1)), relative error below 2^-21.
DQ_INLINE float log_of(float x) {
  if (!(x > 0.0f)) return x == 0.0f ? -INFINITY : NAN;
  if (x == INFINITY) return x;
  float exponent = 0.0f;
  if (x < 1.17549435e-38f) {
    x *= 8388608.0f;
    exponent = -23.0f;
  }
  int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t e = (bits - 0x3f3504f3) >> 23;
  bits -= e * (1 << 23);
  exponent += static_cast<float>(e);
  const float m = std::bit_cast<float>(bits);
  const float t = (m - 1.0f) / (m + 1.0f);
  const float s = t * t;
  float p = 2.0f / 9.0f;
  p = std::fma(p, s, 2.0f / 7.0f);
  p = std::fma(p, s, 2.0f / 5.0f);
  p = std::fma(p, s, 2.0f / 3.0f);
  p = std::fma(p, s, 2.0f);
  return std::fma(exponent, 0.693147180559945f, p * t);
}

template <class V, class Fn>
DQ_INLINE typename V::F by_lane(typename V::F x, Fn&& fn) {
  float lanes[V::W];
  V::store(lanes, x);
  for (int i = 0; i < V::W; ++i) lanes[i] = fn(lanes[i]);
  return V::load(lanes);
}

template <class V>
DQ_INLINE typename V::F tanh(typename V::F x) {
  using F = typename V::F;
  const F one = V::set1(1.0f);
  const F e = exp<V>(V::mul(V::abs(x), V::set1(-2.0f)));
  return V::copysign(V::div(V::sub(one, e), V::add(one, e)), x);
}

template <class V>
DQ_INLINE typename V::F apply_unary(UnaryFn fn, typename V::F x) {
  using F = typename V::F;
  const F zero = V::set1(0.0f), one = V::set1(1.0f);
  switch (fn) {
    case UnaryFn::kIdentity:
      return x;
    case UnaryFn::kRelu:
      return V::max(x, zero);
    case UnaryFn::kRelu6:
      return V::min(V::max(x, zero), V::set1(6.0f));
    case UnaryFn::kHardswish:
      return hardswish<V>(x);
    case UnaryFn::kSilu:
      return V::mul(x, sigmoid<V>(x));
    case UnaryFn::kGelu:
      return gelu<V>(x);
    case UnaryFn::kSigmoid:
      return sigmoid<V>(x);
    case UnaryFn::kTanh:
      return tanh<V>(x);
    case UnaryFn::kHardsigmoid:
      return V::mul(V::min(V::max(V::add(x, V::set1(3.0f)), zero), V::set1(6.0f)),
                    V::set1(1.0f / 6.0f));
    case UnaryFn::kExp:
      return exp<V>(x);
    case UnaryFn::kLog:
      return by_lane<V>(x, [](float v) { return log_of(v); });
    case UnaryFn::kSqrt:
      return by_lane<V>(x, [](float v) { return std::sqrt(v); });
    case UnaryFn::kRsqrt:
      return V::div(one, by_lane<V>(x, [](float v) { return std::sqrt(v); }));
    case UnaryFn::kAbs:
      return V::abs(x);
    case UnaryFn::kNeg:
      return V::mul(x, V::set1(-1.0f));
    case UnaryFn::kSquare:
      return V::mul(x, x);
    case UnaryFn::kReciprocal:
      return V::div(one, x);
  }
  return x;
}

template <class V>
void unary(UnaryFn fn, const Operand& x, const Post& post, void* out, int64_t begin, int64_t end) {
  if (fn == UnaryFn::kIdentity && x.dtype == DType::kFloat32 && plain_int8(post)) {
    quantize<V>(static_cast<const float*>(x.data) + begin, end - begin, post.inv_scale,
                post.zero_point, post.low, post.high, static_cast<int8_t*>(out) + begin);
    return;
  }
  for_blocks(end - begin, [&](int64_t c, int n) __attribute__((always_inline)) {
    Block<V> y;
    load_block<V>(x, begin + c, n, y);
    for (auto& part : y) part = apply_unary<V>(fn, part);
    finish_block<V>(post, out, 0, 0, begin + c, n, y);
  });
}

template <class V>
DQ_INLINE typename V::F apply_binary(BinaryFn fn, typename V::F a, typename V::F b) {
  switch (fn) {
    case BinaryFn::kAdd:
      return V::add(a, b);
    case BinaryFn::kSub:
      return V::sub(a, b);
    case BinaryFn::kMul:
      return V::mul(a, b);
    case BinaryFn::kDiv:
      return V::div(a, b);
    case BinaryFn::kMax:
      return V::max(a, b);
    case BinaryFn::kMin:
      return V::min(a, b);
  }
  return a;
}

// Rows [begin, end) of B whole blocks of channels from c on: a * b by channel, int8 to int8, not in
// place. The blocks of b stay in registers.
template <class V, int B>
DQ_INLINE void scale_channels(const BinaryArgs& g, int64_t c, int64_t begin, int64_t end) {
  constexpr int kParts = kBlock / V::W;
  Block<V> b[B];
  for (int i = 0; i < B; ++i) load_block<V>(g.b, c + i * kBlock, kBlock, b[i]);
  const typename V::I zero = V::set1_i(g.a.quantization.zero_point);
  const typename V::F scale = V::set1(g.a.quantization.scale);
  const Post post = g.post;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t at = r * g.channels + c;
    const int8_t* x = static_cast<const int8_t*>(g.a.data) + at;
    int8_t* out = static_cast<int8_t*>(g.out) + at;
    for (int i = 0; i < B * kParts; ++i) {
      const typename V::F y = V::mul(V::to_f(V::sub_i(V::load_s8(x + i * V::W), zero)), scale);
      V::store_s8(out + i * V::W, quantized<V>(post, V::mul(y, b[i / kParts][i % kParts])));
    }
  }
}

// The same of n <= 16 B channels, for vectors that take bytes in groups of B.
template <class V, int B>
DQ_INLINE void scale_bytes(const BinaryArgs& g, int64_t c, int n, int64_t begin, int64_t end) {
  static_assert(V::W == kBlock);
  typename V::F b[B];
  for (int i = 0; i < B; ++i) {
    Block<V> block;
    load_block<V>(g.b, c + i * kBlock, i + 1 < B ? kBlock : n - i * kBlock, block);
    b[i] = block[0];
  }
  const typename V::F scale = V::set1(g.a.quantization.scale), inv = V::set1(g.post.inv_scale);
  const int32_t zero = g.a.quantization.zero_point, plus = g.post.zero_point;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t at = r * g.channels + c;
    typename V::F y[B];
    V::template load_floats<B>(static_cast<const int8_t*>(g.a.data) + at, n, zero, y);
    for (int i = 0; i < B; ++i) y[i] = V::mul(V::mul(V::mul(y[i], scale), b[i]), inv);
    V::template store_rounded<B>(static_cast<int8_t*>(g.out) + at, n, plus, y);
  }
}

// Whether bytes times what b holds stay below 2^30 in steps of the output, which has 8 bits.
template <class V>
DQ_INLINE bool product_is_small(const BinaryArgs& g) {
  if (g.post.low != static_cast<float>(-128 - g.post.zero_point) ||
      g.post.high != static_cast<float>(127 - g.post.zero_point)) {
    return false;
  }
  typename V::F most = V::set1(0.0f);
  bool finite = true;
  for_blocks(g.channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    Block<V> b;
    load_block<V>(g.b, c, n, b);
    finite = finite && sum_lanes<V>(b) - sum_lanes<V>(b) == 0.0f;
    most = V::max(V::abs(b[0]), most);
  });
  const Block<V> all = {most};
  const float reach = 256.0f * std::fabs(g.a.quantization.scale) * max_lanes<V>(all);
  return finite && reach * std::fabs(g.post.inv_scale) < 1073741824.0f;
}

// Sums of an int8 operand round once: fma(q - zero_point, scale, b).
template <class V, bool kFusedSum>
DQ_INLINE void binary_rows(const BinaryArgs& g, int64_t begin, int64_t end) {
  constexpr int kParts = kBlock / V::W;
  Operand a = g.a;
  const typename V::F a_scale = V::set1(g.a.quantization.scale);
  if constexpr (kFusedSum) a.quantization.scale = 1.0f;
  for (int64_t r = begin; r < end; ++r) {
    Block<V> one = {};
    if (g.b_shape == Broadcast::kScalar || g.b_shape == Broadcast::kRow) {
      load_block<V>(g.b, g.b_shape == Broadcast::kRow ? r : 0, 1, one);
      float lane[kBlock];
      V::store(lane, one[0]);
      for (auto& part : one) part = V::set1(lane[0]);
    }
    for_blocks(g.channels, [&](int64_t c, int n) __attribute__((always_inline)) {
      Block<V> y, z;
      load_block<V>(a, r * g.channels + c, n, y);
      if (g.b_shape == Broadcast::kNone) {
        load_block<V>(g.b, r * g.channels + c, n, z);
      } else if (g.b_shape == Broadcast::kChannel) {
        load_block<V>(g.b, c, n, z);
      } else {
        for (int i = 0; i < kParts; ++i) z[i] = one[i];
      }
      for (int i = 0; i < kParts; ++i) {
        if constexpr (kFusedSum) {
          if (g.fn == BinaryFn::kSub) z[i] = V::sub(V::set1(0.0f), z[i]);
          y[i] = V::fma(y[i], a_scale, z[i]);
        } else {
          y[i] = apply_binary<V>(g.fn, y[i], z[i]);
        }
      }
      finish_block<V>(g.post, g.out, g.channels, r, c, n, y);
    });
  }
}

template <class V>
void binary(const BinaryArgs& g, int64_t begin, int64_t end) {
  if (g.fn == BinaryFn::kMul && g.b_shape == Broadcast::kChannel && g.channels >= kBlock &&
      g.a.dtype == DType::kInt8 && g.out != g.a.data && plain_int8(g.post)) {
    int64_t c = 0;
    if constexpr (requires(int8_t* p, typename V::F(&y)[4]) {
                    V::template load_floats<4>(p, 64, 0, y);
                  }) {
      if (product_is_small<V>(g)) {
        for (; c + 4 * kBlock <= g.channels; c += 4 * kBlock) {
          scale_bytes<V, 4>(g, c, 4 * kBlock, begin, end);
        }
        const int left = static_cast<int>(g.channels - c);
        if (left > 3 * kBlock) return scale_bytes<V, 4>(g, c, left, begin, end);
        if (left > 2 * kBlock) return scale_bytes<V, 3>(g, c, left, begin, end);
        if (left > kBlock) return scale_bytes<V, 2>(g, c, left, begin, end);
        if (left > 0) scale_bytes<V, 1>(g, c, left, begin, end);
        return;
      }
    }
    for (; c + 4 * kBlock <= g.channels; c += 4 * kBlock) scale_channels<V, 4>(g, c, begin, end);
    for (; c + kBlock <= g.channels; c += kBlock) scale_channels<V, 1>(g, c, begin, end);
    // the last channels, some of them again
    if (c < g.channels) scale_channels<V, 1>(g, g.channels - kBlock, begin, end);
    return;
  }
  if (g.a.dtype == DType::kInt8 && (g.fn == BinaryFn::kAdd || g.fn == BinaryFn::kSub)) {
    binary_rows<V, true>(g, begin, end);
  } else {
    binary_rows<V, false>(g, begin, end);
  }
}

template <class V>
void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = table[x[i] + 128];
}

}  // namespace defakeq::simd

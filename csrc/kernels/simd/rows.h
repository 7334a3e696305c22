// Element-wise passes over rows, written once over a vector type.
#pragma once

#include "kernels/simd/epilogue.h"

namespace defakeq::simd {

template <class V>
void quantize(const float* x, int64_t count, float inv_scale, int32_t zero_point, float low,
              float high, int8_t* out) {
  const auto one = [&](const float* p) __attribute__((always_inline)) {
    typename V::F y = V::mul(V::load(p), V::set1(inv_scale));
    y = V::max(V::min(V::set1(high), y), V::set1(low));
    return V::add_i(V::rne(y), V::set1_i(zero_point));
  };
  int64_t i = 0;
  for (; i + V::W <= count; i += V::W) V::store_s8(out + i, one(x + i));
  if (i < count) {
    float in[V::W] = {};
    int8_t q[V::W];
    std::memcpy(in, x + i, sizeof(float) * static_cast<size_t>(count - i));
    V::store_s8(q, one(in));
    std::memcpy(out + i, q, static_cast<size_t>(count - i));
  }
}

// out = float(x - zero_point) * scale
template <class V>
void dequantize(const int8_t* x, int64_t count, float scale, int32_t zero_point, float* out) {
  const auto one = [&](const int8_t* p) __attribute__((always_inline)) {
    return V::mul(V::to_f(V::sub_i(V::load_s8(p), V::set1_i(zero_point))), V::set1(scale));
  };
  int64_t i = 0;
  for (; i + V::W <= count; i += V::W) V::store(out + i, one(x + i));
  if (i < count) {
    int8_t in[V::W] = {};
    float y[V::W];
    std::memcpy(in, x + i, static_cast<size_t>(count - i));
    V::store(y, one(in));
    std::memcpy(out + i, y, sizeof(float) * static_cast<size_t>(count - i));
  }
}

template <class V>
void to_f32(const int8_t* x, int64_t count, int32_t zero_point, float* out) {
  dequantize<V>(x, count, 1.0f, zero_point, out);
}

// The largest |x|; NaNs are passed over.
template <class V>
float abs_max(const float* x, int64_t count) {
  typename V::F m = V::set1(0.0f);
  int64_t i = 0;
  for (; i + V::W <= count; i += V::W) m = V::max(V::abs(V::load(x + i)), m);
  if (i < count) {
    float in[V::W] = {};
    std::memcpy(in, x + i, sizeof(float) * static_cast<size_t>(count - i));
    m = V::max(V::abs(V::load(in)), m);
  }
  float lanes[V::W];
  V::store(lanes, m);
  float best = lanes[0];
  for (int k = 1; k < V::W; ++k) best = lanes[k] > best ? lanes[k] : best;
  return best;
}

template <class V>
void codes_to_f32(const uint8_t* codes, int64_t steps, const int32_t* zero_point, float* out) {
  // [step][16][4] -> [step][4][16]
  float plane[4][kBlock];
  for (int64_t s = 0; s < steps; ++s) {
    for (int n = 0; n < kBlock; ++n) {
      for (int j = 0; j < 4; ++j) {
        plane[j][n] = static_cast<float>(static_cast<int32_t>(codes[n * 4 + j]) - zero_point[n]);
      }
    }
    std::memcpy(out, plane, sizeof(plane));
    codes += kBlock * 4;
    out += kBlock * 4;
  }
}

}  // namespace defakeq::simd

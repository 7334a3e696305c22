// Normalizations over rows. Sums run in 16 lanes whatever the vector width.
#pragma once

#include <cmath>

#include "kernels/node_args.h"
#include "kernels/simd/blocks.h"

namespace defakeq::simd {

// R rows from row r on, which are made of the rows from[i]; several hide each other's latency.
// kPlain: whole blocks of floats, gamma and beta, int8 output without anything else.
template <class V, bool kPlain, int R>
DQ_INLINE void norm_rows(const LayerNormArgs& g, const Post& post, int64_t r, const int64_t* from) {
  constexpr int kParts = kBlock / V::W;
  const float inv_count = 1.0f / static_cast<float>(g.count);
  const float absent = static_cast<float>(g.count - g.channels);
  const auto load = [&](int i, int64_t c, int n, Block<V>& x) __attribute__((always_inline)) {
    const int64_t at = from[i] * g.channels + c;
    if constexpr (kPlain) {
      load_floats<V>(static_cast<const float*>(g.x.data) + at, kBlock, x);
    } else {
      load_block<V>(g.x, at, n, x);
    }
  };
  Block<V> acc[R];
  typename V::F mean[R], inv_std[R];
  float means[R];
  for (auto& row : acc) {
    for (auto& part : row) part = V::set1(0.0f);
  }
  for_blocks(g.channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    for (int i = 0; i < R; ++i) {
      Block<V> x;
      load(i, c, n, x);
      for (int p = 0; p < kParts; ++p) acc[i][p] = V::add(acc[i][p], x[p]);
    }
  });
  for (int i = 0; i < R; ++i) {
    means[i] = sum_lanes<V>(acc[i]) * inv_count;
    mean[i] = V::set1(means[i]);
    for (auto& part : acc[i]) part = V::set1(0.0f);
  }
  for_blocks(g.channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    for (int i = 0; i < R; ++i) {
      Block<V> d;
      load(i, c, n, d);
      for (auto& part : d) part = V::sub(part, mean[i]);
      if constexpr (!kPlain) keep_lanes<V>(n, 0.0f, d);
      for (int p = 0; p < kParts; ++p) acc[i][p] = V::fma(d[p], d[p], acc[i][p]);
    }
  });
  for (int i = 0; i < R; ++i) {
    const float variance = (sum_lanes<V>(acc[i]) + absent * (means[i] * means[i])) * inv_count;
    inv_std[i] = V::set1(1.0f / std::sqrt(variance + g.eps));
  }
  for_blocks(g.channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    Block<V> gamma, beta;
    for (int p = 0; p < kParts; ++p) {
      gamma[p] = V::set1(1.0f);
      beta[p] = V::set1(0.0f);
    }
    if (kPlain || g.gamma != nullptr) load_floats<V>(g.gamma + c, n, gamma);
    if (kPlain || g.beta != nullptr) load_floats<V>(g.beta + c, n, beta);
    for (int i = 0; i < R; ++i) {
      Block<V> y;
      load(i, c, n, y);
      const int64_t to = (r + i) * g.channels + c;
      for (auto& part : y) part = V::mul(V::sub(part, mean[i]), inv_std[i]);
      if (kPlain || g.gamma != nullptr || g.beta != nullptr) {
        for (int p = 0; p < kParts; ++p) y[p] = V::fma(y[p], gamma[p], beta[p]);
      }
      if constexpr (kPlain) {
        int8_t* out = static_cast<int8_t*>(g.out.data) + to;
        for (int p = 0; p < kParts; ++p) V::store_s8(out + p * V::W, quantized<V>(post, y[p]));
      } else {
        finish_block<V>(post, g.out.data, 0, 0, to, n, y);
      }
    }
  });
}

template <class V>
void layer_norm(const LayerNormArgs& g, const Post& post, int64_t begin, int64_t end) {
  constexpr int kRows = 4;
  const bool plain = g.x.dtype == DType::kFloat32 && g.channels % kBlock == 0 &&
                     g.gamma != nullptr && g.beta != nullptr && plain_int8(post);
  for (int64_t r = begin; r < end; ++r) {
    int64_t from[kRows];
    int there = 0;
    for (; there < kRows && r + there < end; ++there) {
      from[there] = g.row_index != nullptr ? g.row_index[r + there] : r + there;
      if (from[there] < 0) break;
    }
    if (there == kRows && plain) {
      norm_rows<V, true, kRows>(g, post, r, from);
      r += kRows - 1;
    } else if (there == 0) {
      for_blocks(g.channels, [&](int64_t c, int n) __attribute__((always_inline)) {
        Block<V> y;
        for (auto& part : y) part = V::set1(0.0f);
        finish_block<V>(post, g.out.data, g.channels, r, c, n, y);
      });
    } else if (plain) {
      norm_rows<V, true, 1>(g, post, r, from);
    } else {
      norm_rows<V, false, 1>(g, post, r, from);
    }
  }
}

template <class V>
void softmax(const Operand& x, int64_t channels, const Post& post, void* out, int64_t begin,
             int64_t end) {
  constexpr int kParts = kBlock / V::W;
  for (int64_t r = begin; r < end; ++r) {
    Block<V> acc;
    for (auto& part : acc) part = V::set1(-INFINITY);
    for_blocks(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
      Block<V> y;
      load_block<V>(x, r * channels + c, n, y);
      keep_lanes<V>(n, -INFINITY, y);
      for (int i = 0; i < kParts; ++i) acc[i] = V::max(y[i], acc[i]);
    });
    const typename V::F top = V::set1(max_lanes<V>(acc));
    for (auto& part : acc) part = V::set1(0.0f);
    for_blocks(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
      Block<V> y;
      load_block<V>(x, r * channels + c, n, y);
      for (auto& part : y) part = exp<V>(V::sub(part, top));
      keep_lanes<V>(n, 0.0f, y);
      for (int i = 0; i < kParts; ++i) acc[i] = V::add(acc[i], y[i]);
    });
    const typename V::F inv = V::set1(1.0f / sum_lanes<V>(acc));
    for_blocks(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
      Block<V> y;
      load_block<V>(x, r * channels + c, n, y);
      for (auto& part : y) part = V::mul(exp<V>(V::sub(part, top)), inv);
      finish_block<V>(post, out, channels, r, c, n, y);
    });
  }
}

template <class V>
void reduce(ReduceFn fn, const Operand& x, int64_t channels, const Post& post, void* out,
            int64_t begin, int64_t end) {
  constexpr int kParts = kBlock / V::W;
  for (int64_t r = begin; r < end; ++r) {
    Block<V> acc;
    for (auto& part : acc) part = V::set1(fn == ReduceFn::kMax ? -INFINITY : 0.0f);
    for_blocks(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
      Block<V> y;
      load_block<V>(x, r * channels + c, n, y);
      if (fn == ReduceFn::kMax) keep_lanes<V>(n, -INFINITY, y);
      for (int i = 0; i < kParts; ++i) {
        acc[i] = fn == ReduceFn::kMax  ? V::max(y[i], acc[i])
                 : fn == ReduceFn::kL2 ? V::fma(y[i], y[i], acc[i])
                                       : V::add(acc[i], y[i]);
      }
    });
    float value = fn == ReduceFn::kMax ? max_lanes<V>(acc) : sum_lanes<V>(acc);
    if (fn == ReduceFn::kMean) value *= 1.0f / static_cast<float>(channels);
    if (fn == ReduceFn::kL2) value = std::sqrt(value);
    Block<V> y;
    for (auto& part : y) part = V::set1(value);
    finish_block<V>(post, out, 1, r, 0, 1, y);
  }
}

// From kBlock - n on: n times 0, then -inf.
alignas(64) inline constexpr float kTailLanes[2 * kBlock] = {
    0,         0,         0,         0,         0,         0,         0,         0,
    0,         0,         0,         0,         0,         0,         0,         0,
    -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY,
    -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY, -INFINITY};

// Rows [row, row + R): together, so that one row's reductions run beside another's.
template <class V, int R>
DQ_INLINE void softmax_rows(const SoftmaxCodesArgs& g, int64_t row) {
  constexpr int kParts = kBlock / V::W;
  const typename V::F alpha = V::set1(g.alpha);
  Block<V> top[R];
  for (auto& block : top) {
    for (auto& part : block) part = V::set1(-INFINITY);
  }
  for_blocks(g.n, [&](int64_t c, int n) __attribute__((always_inline)) {
    for (int r = 0; r < R; ++r) {
      float* scores = g.scores + (row + r) * g.pitch + c;
      const int64_t at = (row + r) * g.n + c;
      Block<V> s, more;
      // Not what stands behind the row: denormal numbers there would be slow.
      load_floats<V>(scores, n, s);
      if (g.bias != nullptr) {
        load_floats<V>(g.bias + at, n, more);
        for (int i = 0; i < kParts; ++i) s[i] = V::fma(s[i], alpha, more[i]);
      }
      if (g.mask != nullptr) {
        load_floats<V>(g.mask + at, n, more);
        for (int i = 0; i < kParts; ++i) s[i] = V::add(s[i], more[i]);
      }
      if (n < kBlock) {
        // behind the row: no maximum, and no code above 0
        for (int i = 0; i < kParts; ++i) {
          s[i] = V::add(s[i], V::load(kTailLanes + kBlock - n + i * V::W));
        }
      }
      for (int i = 0; i < kParts; ++i) {
        V::store(scores + i * V::W, s[i]);
        top[r][i] = V::max(s[i], top[r][i]);
      }
    }
  });
  typename V::F highest[R];
  typename V::I sum[R];
  for (int r = 0; r < R; ++r) {
    highest[r] = V::set1(max_lanes<V>(top[r]));
    sum[r] = V::set1_i(0);
  }
  for (int64_t c = 0; c < g.n; c += kBlock) {
    for (int r = 0; r < R; ++r) {
      const int64_t at = (row + r) * g.pitch + c;
      for (int i = 0; i < kParts; ++i) {
        const typename V::F d = V::sub(V::load(g.scores + at + i * V::W), highest[r]);
        const typename V::F e = exp_within<V>(V::max(d, V::set1(-87.0f)));
        const typename V::I p = V::rne(V::mul(e, V::set1(255.0f)));
        sum[r] = V::add_i(sum[r], p);
        V::store_s8(g.codes + at + i * V::W, V::sub_i(p, V::set1_i(128)));
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    float lanes[V::W];
    V::store(lanes, V::to_f(sum[r]));
    float total = 0.0f;  // at most 255 * 2^15: exact in any order
    for (float lane : lanes) total += lane;
    g.sums[row + r] = static_cast<int32_t>(total);
  }
}

template <class V>
void softmax_codes(const SoftmaxCodesArgs& g) {
  int64_t r = 0;
  for (; r + 4 <= g.rows; r += 4) softmax_rows<V, 4>(g, r);
  for (; r < g.rows; ++r) softmax_rows<V, 1>(g, r);
}

}  // namespace defakeq::simd

// float32 product, accumulated in reduction order with one fma a step: the same bits on every ISA.
#pragma once

#include <type_traits>
#include <utility>

#include "kernels/simd/epilogue.h"
#include "kernels/simd/tiles.h"

namespace defakeq::simd {

// y of row `row`, block `block` from its chains, which may be those of the first lanes only.
template <class V, size_t P>
DQ_INLINE void gemm_f32_finish(const GemmF32Args& a, int64_t row, int block,
                               typename V::F (&acc)[P]) {
  const int col = block * kBlock;
  if (!a.chain_from_bias) {
    for (int i = 0; i < static_cast<int>(P); ++i) {
      const int at = col + i * V::W;
      typename V::F f = acc[i];
      if (a.row_scale != nullptr) f = V::mul(f, V::set1(a.row_scale[row]));
      const float* bias =
          a.row_bias != nullptr ? a.row_bias + row * a.row_bias_stride + at : a.bias + at;
      acc[i] = V::fma(f, V::load(a.scale + at), V::load(bias));
    }
  }
  const int left = a.n - col;
  finish_block<V>(a.post, a.out, a.out_stride, row, col, left < kBlock ? left : kBlock, acc);
}

// fma_lane<i>(a, x, c) is fma(a, set1(x[i]), c) in one instruction.
template <class V>
concept kFmaByLane = requires(typename V::F v) { V::template fma_lane<0>(v, v, v); };

// Of each block the first P vectors; the lanes of the others do not matter.
template <class V, int R, int NB, int P = kBlock / V::W>
DQ_INLINE void gemm_f32_tile(const GemmF32Args& a, int64_t row, int first_block) {
  typename V::F acc[R][NB][P];
  const float* w[NB];
  for (int b = 0; b < NB; ++b) w[b] = a.w + (first_block + b) * a.w_stride;
  for (int r = 0; r < R; ++r) {
    for (int b = 0; b < NB; ++b) {
      for (int i = 0; i < P; ++i) {
        if (a.chain_from_bias) {
          const int at = (first_block + b) * kBlock + i * V::W;
          acc[r][b][i] =
              V::load(a.row_bias != nullptr ? a.row_bias + (row + r) * a.row_bias_stride + at
                                            : a.bias + at);
        } else {
          acc[r][b][i] = V::set1(0.0f);
        }
      }
    }
  }
  for (int t = 0; t < a.taps; ++t) {
    const float* x[R];
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    int64_t k = 0;
    if constexpr (kFmaByLane<V>) {
      for (; k + V::W <= a.length; k += V::W) {
        typename V::F xv[R];
        for (int r = 0; r < R; ++r) xv[r] = V::load(x[r] + k);
        const auto step = [&]<int kLane>() __attribute__((always_inline)) {
          for (int b = 0; b < NB; ++b) {
            for (int i = 0; i < P; ++i) {
              const typename V::F wv = V::load(w[b] + i * V::W);
              for (int r = 0; r < R; ++r) {
                acc[r][b][i] = V::template fma_lane<kLane>(wv, xv[r], acc[r][b][i]);
              }
            }
            w[b] += kBlock;
          }
        };
        [&]<int... kLane>(std::integer_sequence<int, kLane...>) __attribute__((always_inline)) {
          (step.template operator()<kLane>(), ...);
        }(std::make_integer_sequence<int, V::W>{});
      }
    }
    for (; k < a.length; ++k) {
      for (int b = 0; b < NB; ++b) {
        for (int i = 0; i < P; ++i) {
          const typename V::F wv = V::load(w[b] + i * V::W);
          for (int r = 0; r < R; ++r) {
            acc[r][b][i] = V::fma(wv, V::set1(x[r][k]), acc[r][b][i]);
          }
        }
        w[b] += kBlock;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int b = 0; b < NB; ++b) gemm_f32_finish<V>(a, row + r, first_block + b, acc[r][b]);
  }
}

// One block of which no more lanes matter than a narrower vector N has: on ISAs whose wide fma runs
// at half the rate this halves the cost of a handful of half-precision channels.
template <class V, class N, int R>
DQ_INLINE void gemm_f32_narrow(const GemmF32Args& a, int64_t row, int block) {
  const float* w = a.w + block * a.w_stride;
  typename N::F acc[R];
  for (int r = 0; r < R; ++r) {
    acc[r] = N::set1(0.0f);
    if (a.chain_from_bias) {
      acc[r] = N::load(a.row_bias != nullptr
                           ? a.row_bias + (row + r) * a.row_bias_stride + block * kBlock
                           : a.bias + block * kBlock);
    }
  }
  for (int t = 0; t < a.taps; ++t) {
    const float* x[R];
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    for (int64_t k = 0; k < a.length; ++k, w += kBlock) {
      const typename N::F wv = N::load(w);
      for (int r = 0; r < R; ++r) acc[r] = N::fma(wv, N::set1(x[r][k]), acc[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    typename V::F wide[kBlock / V::W];
    N::widen(acc[r], wide);
    gemm_f32_finish<V>(a, row + r, block, wide);
  }
}

// No vector is narrower than V.
struct NoNarrow {};

// R rows by 16 outputs (times NB blocks) must fit the ISA's registers.
template <class V, int R, int NB, class N = NoNarrow>
void gemm_f32(const GemmF32Args& a) {
  constexpr int kParts = kBlock / V::W;
  int block = 0;
  int blocks = a.blocks;
  if constexpr (kParts > 1) {
    // A last block of few lanes: fewer vectors, of more rows.
    const auto last = [&]<int P>() {
      --blocks;
      for_tiles<R*(kParts + 1) / (P + 1)>(
          a.m, [&]<int kRows>(int64_t row) { gemm_f32_tile<V, kRows, 1, P>(a, row, blocks); });
    };
    if (a.last_lanes <= V::W) {
      last.template operator()<1>();
    } else if (kParts > 2 && a.last_lanes <= 2 * V::W) {
      last.template operator()<2>();
    }
  } else if constexpr (!std::is_same_v<N, NoNarrow>) {
    if (a.last_lanes <= N::W) {
      --blocks;
      for_tiles<R>(a.m,
                   [&]<int kRows>(int64_t row) { gemm_f32_narrow<V, N, kRows>(a, row, blocks); });
    }
  }
  for (; block + NB <= blocks; block += NB) {
    for_tiles<R>(a.m, [&]<int kRows>(int64_t row) { gemm_f32_tile<V, kRows, NB>(a, row, block); });
  }
  for (; block < blocks; ++block) {
    for_tiles<R>(a.m, [&]<int kRows>(int64_t row) { gemm_f32_tile<V, kRows, 1>(a, row, block); });
  }
}

// Outputs (oy, ox) to (oy, ox + kX - 1) of the first P vectors of block b; kInside: none reads
// padding left or right, and there are floats behind n channels.
template <class V, int kX, int P, bool kInside>
DQ_INLINE void dw_f32_outputs(const DwF32Args& a, int64_t b, int n, int64_t oy, int64_t ox) {
  constexpr int kLanes = P * V::W;
  const int64_t c = b * kBlock, step = a.stride[1] * a.x_stride;
  typename V::F acc[kX][P];
  for (int k = 0; k < kX; ++k) {
    for (int i = 0; i < P; ++i) acc[k][i] = V::set1(0.0f);
  }
  const float* w = a.weight + b * a.kernel[0] * a.kernel[1] * kBlock;
  int64_t iy = oy * a.stride[0] - a.padding[0];
  for (int ky = 0; ky < a.kernel[0]; ++ky, iy += a.dilation[0]) {
    int64_t ix = ox * a.stride[1] - a.padding[1];
    for (int kx = 0; kx < a.kernel[1]; ++kx, ix += a.dilation[1], w += kBlock) {
      if (iy < 0 || iy >= a.h || (!kInside && (ix < 0 || ix >= a.w))) continue;
      const float* x = a.x + (iy * a.w + ix) * a.x_stride + c;
      float tail[kLanes] = {};
      if (!kInside && n < kLanes) {
        std::memcpy(tail, x, sizeof(float) * static_cast<size_t>(n));
        x = tail;
      }
      for (int k = 0; k < kX; ++k) {
        for (int i = 0; i < P; ++i) {
          acc[k][i] = V::fma(V::load(w + i * V::W), V::load(x + k * step + i * V::W), acc[k][i]);
        }
      }
    }
  }
  for (int k = 0; k < kX; ++k) {
    for (int i = 0; i < P; ++i) {
      const int64_t at = c + i * V::W;
      if (a.has_row_scale) acc[k][i] = V::mul(acc[k][i], V::set1(a.row_scale));
      acc[k][i] = V::fma(acc[k][i], V::load(a.scale + at), V::load(a.bias + at));
    }
    finish_block<V>(a.post, a.out, a.out_stride, oy * a.out_w + ox + k, c, n, acc[k]);
  }
}

template <class V, int P>
void dw_f32_block(const DwF32Args& a, int64_t b) {
  constexpr int kX = 4;
  const int64_t last = (kX - 1) * a.stride[1] + int64_t{a.kernel[1] - 1} * a.dilation[1];
  const int64_t left = a.channels - b * kBlock;
  const int n = static_cast<int>(left < P * V::W ? left : P * V::W);
  // Whole vectors of the last pixels would reach behind the last channel of all.
  const int64_t pixels = (P * V::W - n + a.x_stride - 1) / a.x_stride;
  for (int64_t oy = a.oy0; oy < a.oy1; ++oy) {
    const int64_t bottom = oy * a.stride[0] - a.padding[0] + (a.kernel[0] - 1) * a.dilation[0];
    const int64_t below = bottom < a.h ? a.h - 1 - bottom : 0;
    const int64_t right = below * a.w < pixels ? (below + 1) * a.w - pixels : a.w;
    for (int64_t ox = 0; ox < a.out_w;) {
      const int64_t ix = ox * a.stride[1] - a.padding[1];
      if (ox + kX <= a.out_w && ix >= 0 && ix + last < right) {
        dw_f32_outputs<V, kX, P, true>(a, b, n, oy, ox);
        ox += kX;
      } else {
        dw_f32_outputs<V, 1, P, false>(a, b, n, oy, ox);
        ++ox;
      }
    }
  }
}

template <class V>
void dw_f32(const DwF32Args& a) {
  constexpr int kParts = kBlock / V::W;
  const int64_t blocks = (a.channels + kBlock - 1) / kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    const int lanes = b + 1 < blocks ? kBlock : a.last_lanes;
    if constexpr (kParts > 1) {
      if (lanes <= V::W) {
        dw_f32_block<V, 1>(a, b);
        continue;
      }
    }
    dw_f32_block<V, kParts>(a, b);
  }
}

}  // namespace defakeq::simd

// Depthwise convolution with sdot, 16 channels at a time. Four input rows are interleaved to
// [column][channel][4 rows], so that one sdot takes four taps of a kernel column. At a vertical
// stride of 1 two output rows are computed from the same interleaved rows: the lower one has its
// weights moved by a byte.
#pragma once

#include <algorithm>

#include "kernels/arm/dwconv.h"
#include "kernels/arm/dwconv_3x3.h"
#include "kernels/arm/dwconv_chain.h"

namespace defakeq {
namespace {

struct DwDot : DwBlock {
  int groups;       // interleaved fours of rows
  int8_t* columns;  // [group][column][16][4]
  int8_t* weight;   // [group][kw][2 halves][upper, lower output row][2 parts][16]
};

DQ_INLINE bool dw_takes_twos(const DwS8Args& a) { return a.stride[0] == 1 && a.dilation[0] == 1; }

DQ_INLINE int dw_groups(const DwS8Args& a) {
  return (a.kernel[0] + (dw_takes_twos(a) ? 1 : 0) + 3) / 4;
}

DQ_INLINE void store_column(int8_t* out, const int8x16_t (&row)[4]) {
  const int8x16_t even0 = vzip1q_s8(row[0], row[1]), even1 = vzip2q_s8(row[0], row[1]);
  const int8x16_t odd0 = vzip1q_s8(row[2], row[3]), odd1 = vzip2q_s8(row[2], row[3]);
  const auto pairs = [](int8x16_t v) { return vreinterpretq_s16_s8(v); };
  const auto store = [&](int i, int16x8_t v) __attribute__((always_inline)) {
    vst1q_s8(out + i * 16, vreinterpretq_s8_s16(v));
  };
  store(0, vzip1q_s16(pairs(even0), pairs(odd0)));
  store(1, vzip2q_s16(pairs(even0), pairs(odd0)));
  store(2, vzip1q_s16(pairs(even1), pairs(odd1)));
  store(3, vzip2q_s16(pairs(even1), pairs(odd1)));
}

// Input rows iy, iy + dilation, ...
inline void interleave(const DwDot& k, int64_t iy, int8_t* columns) {
  const DwS8Args& a = *k.a;
  const int8x16_t pad = vdupq_n_s8(a.pad_value);
  const int64_t left = a.padding[1] < k.count ? a.padding[1] : k.count;
  const int64_t right = a.w + a.padding[1] < k.count ? a.w + a.padding[1] : k.count;
  for (int64_t i = 0; i < left * 64; i += 16) vst1q_s8(columns + i, pad);
  for (int64_t i = right * 64; i < k.count * 64; i += 16) vst1q_s8(columns + i, pad);
  const int8_t* row[4];
  int missing = 0;
  for (int j = 0; j < 4; ++j) {
    const int64_t y = iy + int64_t{j} * a.dilation[0];
    row[j] = y >= 0 && y < a.h ? a.x + y * a.w * a.x_stride + k.c0 : nullptr;
    if (row[j] == nullptr) missing |= 1 << j;
  }
  int8x16_t v[4];
  // kMissing: the rows outside the image, one bit each
  const auto whole = [&]<int kMissing>() __attribute__((always_inline)) {
    const int8_t* x[4] = {};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      v[j] = pad;
      if (row[j] != nullptr) x[j] = row[j] + (left - a.padding[1]) * a.x_stride;
    }
    int64_t at = 0;
    for (int8_t* out = columns + left * 64; out < columns + right * 64; out += 64) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        if constexpr ((kMissing & 1) != 0) {
          if (j == 0) continue;
        }
        if constexpr ((kMissing & 8) != 0) {
          if (j == 3) continue;
        }
        v[j] = vld1q_s8(x[j] + at);
      }
      store_column(out, v);
      at += a.x_stride;
    }
  };
  if (k.n == kBlock && missing == 0) return whole.template operator()<0>();
  if (k.n == kBlock && missing == 1) return whole.template operator()<1>();
  if (k.n == kBlock && missing == 8) return whole.template operator()<8>();
  for (int64_t c = left; c < right; ++c) {
    const int64_t at = (c - a.padding[1]) * a.x_stride;
    for (int j = 0; j < 4; ++j) {
      if (row[j] == nullptr) {
        v[j] = pad;
      } else {
        v[j] = load_bytes(row[j] + at, k.n);
      }
    }
    store_column(columns + c * 64, v);
  }
}

// 1 for each of the rows y .. y + 3 that the kernel has.
DQ_INLINE int8x16_t dw_ones(const DwS8Args& a, int y) {
  uint32_t ones = 0;
  for (int j = 0; j < 4; ++j) {
    if (y + j >= 0 && y + j < a.kernel[0]) ones |= 1u << (8 * j);
  }
  return vreinterpretq_s8_u32(vdupq_n_u32(ones));
}

// kY output rows and kX adjacent outputs. kKernel: 3 for 3x3 kernels of stride and dilation 1,
// else 0.
template <bool kFactor, DwFinish kFinish, int kY, int kX, int kKernel>
DQ_INLINE void dw_outputs(const DwDot& k, int64_t oy, int64_t ox, bool second) {
  const DwS8Args& a = *k.a;
  const int groups = kKernel == 3 ? 1 : k.groups, width = kKernel == 3 ? 3 : a.kernel[1];
  const int64_t stride = (kKernel == 3 ? 1 : a.stride[1]) * int64_t{64};
  const int64_t dilation = (kKernel == 3 ? 1 : a.dilation[1]) * int64_t{64};
  int32x4_t acc[kY][kX][kParts];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    int32x4_t sum[kY][kX][2], window[kY][kX][2];
#pragma GCC unroll 2
    for (int y = 0; y < kY; ++y) {
#pragma GCC unroll 2
      for (int x = 0; x < kX; ++x) {
        const int32_t* start = again(k.start + half * 8);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          sum[y][x][i] = vld1q_s32(start + i * 4);
          window[y][x][i] = vdupq_n_s32(0);
        }
      }
    }
    const int8_t* w = k.weight + half * 64;
    for (int g = 0; g < groups; ++g) {
      const int8_t* column = k.columns + (g * k.count + ox * (stride / 64)) * 64 + half * 32;
#pragma GCC unroll 3
      for (int kx = 0; kx < width; ++kx) {
        int8x16_t v[kX][2];
#pragma GCC unroll 2
        for (int x = 0; x < kX; ++x) {
          v[x][0] = vld1q_s8(column + kx * dilation + x * stride);
          v[x][1] = vld1q_s8(column + kx * dilation + x * stride + 16);
        }
#pragma GCC unroll 2
        for (int y = 0; y < kY; ++y) {
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            const int8x16_t wv = vld1q_s8(w + y * 32 + i * 16);
#pragma GCC unroll 2
            for (int x = 0; x < kX; ++x) {
              sum[y][x][i] = vdotq_s32(sum[y][x][i], v[x][i], wv);
              if constexpr (kFactor) {
                window[y][x][i] = vdotq_s32(window[y][x][i], v[x][i], dw_ones(a, 4 * g - y));
              }
            }
          }
        }
        w += 128;
      }
    }
#pragma GCC unroll 2
    for (int y = 0; y < kY; ++y) {
#pragma GCC unroll 2
      for (int x = 0; x < kX; ++x) {
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          acc[y][x][half * 2 + i] =
              kFactor ? vmlaq_s32(sum[y][x][i], window[y][x][i], k.factor[half * 2 + i])
                      : sum[y][x][i];
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int y = 0; y < kY; ++y) {
    if (y == 1 && !second) break;
#pragma GCC unroll 2
    for (int x = 0; x < kX; ++x) dw_finish<kFinish>(k, (oy + y) * a.out_w + ox + x, acc[y][x]);
  }
}

template <bool kFactor, DwFinish kFinish, int kY, int kKernel>
inline void dw_rows(const DwDot& k) {
  const DwS8Args& a = *k.a;
  for (int64_t oy = a.oy0; oy < a.oy1; oy += kY) {
    for (int g = 0; g < k.groups; ++g) {
      interleave(k, oy * a.stride[0] - a.padding[0] + int64_t{4 * g} * a.dilation[0],
                 k.columns + g * k.count * 64);
    }
    const bool second = oy + 1 < a.oy1;
    int64_t ox = 0;
    for (; ox + 2 <= a.out_w; ox += 2) {
      dw_outputs<kFactor, kFinish, kY, 2, kKernel>(k, oy, ox, second);
    }
    if (ox < a.out_w) dw_outputs<kFactor, kFinish, kY, 1, kKernel>(k, oy, ox, second);
  }
}

// [row group][kw][16][4 rows] to both output rows.
inline void prepare_weights(DwDot& k, const int8_t* weight) {
  const DwS8Args& a = *k.a;
  const int width = a.kernel[1], row_groups = (a.kernel[0] + 3) / 4;
  for (int i = 0; i < kParts; ++i) {
    int32x4_t sum = vdupq_n_s32(0);
    for (int g = 0; g < k.groups; ++g) {
      for (int kx = 0; kx < width; ++kx) {
        const auto fours = [&](int group) __attribute__((always_inline)) {
          if (group < 0 || group >= row_groups) return vdupq_n_u32(0);
          return vreinterpretq_u32_s8(vld1q_s8(weight + ((group * width + kx) * kParts + i) * 16));
        };
        const uint32x4_t upper = fours(g);
        const uint32x4_t lower = vorrq_u32(vshlq_n_u32(upper, 8), vshrq_n_u32(fours(g - 1), 24));
        int8_t* out = k.weight + ((g * width + kx) * 2 + i / 2) * 64 + i % 2 * 16;
        vst1q_s8(out, vreinterpretq_s8_u32(upper));
        vst1q_s8(out + 32, vreinterpretq_s8_u32(lower));
        sum = vdotq_s32(sum, vreinterpretq_s8_u32(upper), vdupq_n_s8(1));
      }
    }
    vst1q_s32(k.start + i * 4, vmlaq_n_s32(vld1q_s32(k.start + i * 4), sum, 128));
  }
}

template <bool kFactor, DwFinish kFinish>
inline void dw_run(const DwDot& k) {
  const DwS8Args& a = *k.a;
  if (!dw_takes_twos(a)) return dw_rows<kFactor, kFinish, 1, 0>(k);
  const bool three = a.kernel[0] == 3 && a.kernel[1] == 3 && a.stride[1] == 1 && a.dilation[1] == 1;
  three ? dw_rows<kFactor, kFinish, 2, 3>(k) : dw_rows<kFactor, kFinish, 2, 0>(k);
}

inline size_t dw_dot_scratch(const DwS8Args& a) {
  const int64_t bytes = dw_groups(a) * (dw_columns(a) * 64 + int64_t{a.kernel[1]} * 128);
  return dw_3x3_scratch(a) + std::max(static_cast<size_t>(bytes), dw_chain_scratch(a));
}

inline void dw_dot(const DwS8Args& args) {
  DwS8Args a = args;
  const DwRowPair* rows = dw_row_pairs(a);
  const int64_t channel_bytes = int64_t{(a.kernel[0] + 3) / 4} * a.kernel[1] * 4;
  DwDot k{};
  k.groups = dw_groups(a);
  k.columns = static_cast<int8_t*>(a.scratch);
  k.weight = k.columns + k.groups * dw_columns(a) * 64;
  for (int64_t c0 = 0; c0 < a.channels; c0 += kBlock) {
    const int8_t* weight = a.weight + c0 * channel_bytes;
    dw_begin(k, a, c0);
    if (dw_takes_3x3(k, rows)) {
      prepare_weights(k, weight);
      a.window_factor != nullptr ? dw_3x3<Dw3x3Taps::kDotWindow>(k, rows, k.weight, 64)
                                 : dw_3x3<Dw3x3Taps::kDot>(k, rows, k.weight, 64);
      continue;
    }
    if (dw_chain(a, c0, weight)) continue;
    prepare_weights(k, weight);
    dw_with_finish(k, [&]<DwFinish kFinish>() {
      a.window_factor != nullptr ? dw_run<true, kFinish>(k) : dw_run<false, kFinish>(k);
    });
  }
}

}  // namespace
}  // namespace defakeq

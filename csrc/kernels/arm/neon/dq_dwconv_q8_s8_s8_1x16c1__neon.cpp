// Depthwise convolution, 16 channels at a time, over rows that are copied with their padding into a
// ring. A tap is one smlal and one smlal2 into int16 lanes; as many taps as the block's weights
// allow are added up before they are widened: |w x| <= 128 |w|, so those whose |w| sum to at most
// 255. Weights with window factors take 9 bits: they are int16, and a tap is four smlal into int32.
#include <algorithm>

#include "kernels/arm/dwconv_3x3.h"
#include "kernels/arm/dwconv_chain.h"
#include "kernels/arm/kernels.h"

namespace defakeq::neon {

namespace {

struct Block : DwBlock {
  int64_t ring;         // rows held
  int8_t* rows;         // [ring][column][16]
  const int8_t** taps;  // [taps] pixel of the tap for the output row's first output
  int8_t* weight;       // [taps][16]
  int16_t* wide;        // or [2 halves][taps][8]
  int run;              // taps that int16 sums hold
};

int64_t ring_of(const DwS8Args& a) { return int64_t{a.kernel[0] - 1} * a.dilation[0] + 1; }

int8_t* ring_row(const Block& k, int64_t iy) {
  return k.rows + (iy + k.a->padding[0]) % k.ring * k.count * kBlock;
}

// kX adjacent outputs. kWide: int16 weights; kTaps: 9 for 3x3 kernels, else 0; kRun: 1 or 2 taps a
// sum, or 0 for k.run.
template <bool kWide, DwFinish kFinish, int kX, int kTaps, int kRun>
DQ_INLINE void outputs(const Block& k, int64_t oy, int64_t ox) {
  const DwS8Args& a = *k.a;
  const int taps = kTaps != 0 ? kTaps : a.kernel[0] * a.kernel[1];
  const int run = kWide ? 1 : kRun != 0 ? kRun : k.run;
  const int64_t stride = int64_t{a.stride[1]} * kBlock;
  const int64_t at = ox * stride;
  int32x4_t acc[kX][kParts];
#pragma GCC unroll 2
  for (int x = 0; x < kX; ++x) {
    const int32_t* start = again(k.start);
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) acc[x][i] = vld1q_s32(start + i * 4);
  }
#pragma GCC unroll 9
  for (int t = 0; t < taps; t += run) {
    if constexpr (kWide) {
      const int16x8_t w[2] = {vld1q_s16(k.wide + t * 8), vld1q_s16(k.wide + (taps + t) * 8)};
#pragma GCC unroll 2
      for (int x = 0; x < kX; ++x) {
        const int8x16_t bytes = vld1q_s8(k.taps[t] + at + x * stride);
        const int16x8_t v[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)};
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          acc[x][2 * i] = vmlal_s16(acc[x][2 * i], vget_low_s16(v[i]), vget_low_s16(w[i]));
          acc[x][2 * i + 1] = vmlal_high_s16(acc[x][2 * i + 1], v[i], w[i]);
        }
      }
      continue;
    }
    int16x8_t sum[kX][2];
    const int end = t + run < taps ? t + run : taps;
    const auto tap = [&](int u, auto&& multiply) __attribute__((always_inline)) {
      const int8x16_t w = vld1q_s8(k.weight + u * kBlock);
#pragma GCC unroll 2
      for (int x = 0; x < kX; ++x) multiply(vld1q_s8(k.taps[u] + at + x * stride), w, sum[x]);
    };
    tap(t, [](int8x16_t v, int8x16_t w, int16x8_t(&s)[2]) __attribute__((always_inline)) {
      s[0] = vmull_s8(vget_low_s8(v), vget_low_s8(w));
      s[1] = vmull_high_s8(v, w);
    });
#pragma GCC unroll 9
    for (int u = t + 1; u < end; ++u) {
      tap(u, [](int8x16_t v, int8x16_t w, int16x8_t(&s)[2]) __attribute__((always_inline)) {
        s[0] = vmlal_s8(s[0], vget_low_s8(v), vget_low_s8(w));
        s[1] = vmlal_high_s8(s[1], v, w);
      });
    }
#pragma GCC unroll 2
    for (int x = 0; x < kX; ++x) {
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        acc[x][2 * i] = vaddw_s16(acc[x][2 * i], vget_low_s16(sum[x][i]));
        acc[x][2 * i + 1] = vaddw_high_s16(acc[x][2 * i + 1], sum[x][i]);
      }
    }
  }
#pragma GCC unroll 2
  for (int x = 0; x < kX; ++x) dw_finish<kFinish>(k, oy * a.out_w + ox + x, acc[x]);
}

template <bool kWide, DwFinish kFinish, int kTaps, int kRun>
void all_rows(const Block& k) {
  const DwS8Args& a = *k.a;
  int64_t next = a.oy0 * a.stride[0] - a.padding[0];
  for (int64_t oy = a.oy0; oy < a.oy1; ++oy) {
    const int64_t top = oy * a.stride[0] - a.padding[0];
    for (next = next < top ? top : next; next < top + k.ring; ++next)
      dw_copy_row(k, next, ring_row(k, next));
    for (int ky = 0; ky < a.kernel[0]; ++ky) {
      const int8_t* row = ring_row(k, top + int64_t{ky} * a.dilation[0]);
      for (int kx = 0; kx < a.kernel[1]; ++kx) {
        k.taps[ky * a.kernel[1] + kx] = row + int64_t{kx} * a.dilation[1] * kBlock;
      }
    }
    int64_t ox = 0;
    for (; ox + 2 <= a.out_w; ox += 2) outputs<kWide, kFinish, 2, kTaps, kRun>(k, oy, ox);
    if (ox < a.out_w) outputs<kWide, kFinish, 1, kTaps, kRun>(k, oy, ox);
  }
}

// [row group][kw][16][4 rows] to [taps][16], and how many taps int16 sums hold.
void prepare_weights(Block& k, const int8_t* weight) {
  const DwS8Args& a = *k.a;
  const int taps = a.kernel[0] * a.kernel[1];
  int32_t sum[kBlock] = {};
  int largest = 1;
  for (int ky = 0; ky < a.kernel[0]; ++ky) {
    for (int kx = 0; kx < a.kernel[1]; ++kx) {
      const int8_t* from = weight + (ky / 4 * a.kernel[1] + kx) * kBlock * 4 + ky % 4;
      int8_t* to = k.weight + (ky * a.kernel[1] + kx) * kBlock;
      for (int c = 0; c < kBlock; ++c) {
        const int w = to[c] = from[c * 4];
        sum[c] += w;
        if (w > largest || -w > largest) largest = w < 0 ? -w : w;
      }
    }
  }
  k.run = 255 / largest < taps ? 255 / largest : taps;
  if (k.run == 1 && largest == 128) {
    // two taps fit unless both may be -128
    k.run = 2;
    for (int t = 0; t < taps / 2 * 2; t += 2) {
      for (int c = 0; c < kBlock; ++c) {
        if (k.weight[t * kBlock + c] == -128 && k.weight[(t + 1) * kBlock + c] == -128) k.run = 1;
      }
    }
  }
  for (int c = 0; c < kBlock; ++c) k.start[c] += 128 * sum[c];
}

// [row group][kw][16][4 rows] to int16, window factors added.
void widen_weights(Block& k, const int8_t* weight) {
  const DwS8Args& a = *k.a;
  const int height = a.kernel[0], width = a.kernel[1], taps = height * width;
  const int16x8_t factor[2] = {vcombine_s16(vmovn_s32(k.factor[0]), vmovn_s32(k.factor[1])),
                               vcombine_s16(vmovn_s32(k.factor[2]), vmovn_s32(k.factor[3]))};
  int32x4_t sum[kParts] = {};
  for (int g = 0; g * 4 < height; ++g) {
    for (int kx = 0; kx < width; ++kx) {
      const int8x16x4_t four = vld4q_s8(weight + (g * width + kx) * kBlock * 4);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        if (g * 4 + j >= height) break;
        const int16x8_t w[2] = {vmovl_s8(vget_low_s8(four.val[j])), vmovl_high_s8(four.val[j])};
        int16_t* to = k.wide + ((g * 4 + j) * width + kx) * 8;
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          vst1q_s16(to + i * taps * 8, vaddq_s16(w[i], factor[i]));
          sum[2 * i] = vaddw_s16(sum[2 * i], vget_low_s16(w[i]));
          sum[2 * i + 1] = vaddw_high_s16(sum[2 * i + 1], w[i]);
        }
      }
    }
  }
  for (int i = 0; i < kParts; ++i) {
    vst1q_s32(k.start + i * 4, vmlaq_n_s32(vld1q_s32(k.start + i * 4), sum[i], 128));
  }
}

template <DwFinish kFinish>
void run(const Block& k) {
  const bool nine = k.a->kernel[0] == 3 && k.a->kernel[1] == 3;
  if (k.a->window_factor != nullptr) {
    return nine ? all_rows<true, kFinish, 9, 0>(k) : all_rows<true, kFinish, 0, 0>(k);
  }
  if (nine && k.run == 2) return all_rows<false, kFinish, 9, 2>(k);
  all_rows<false, kFinish, 0, 0>(k);
}

}  // namespace

size_t dw_s8_scratch(const DwS8Args& a) {
  const int64_t taps = int64_t{a.kernel[0]} * a.kernel[1];
  const int64_t bytes = (ring_of(a) * dw_columns(a) + 2 * taps) * kBlock;
  return dw_3x3_scratch(a) +
         std::max(static_cast<size_t>(bytes) + static_cast<size_t>(taps) * sizeof(const int8_t*),
                  dw_chain_scratch(a));
}

void dw_s8(const DwS8Args& args) {
  DwS8Args a = args;
  const DwRowPair* rows = dw_row_pairs(a);
  const int64_t taps = int64_t{a.kernel[0]} * a.kernel[1];
  const int64_t channel_bytes = int64_t{(a.kernel[0] + 3) / 4} * a.kernel[1] * 4;
  Block k{};
  k.ring = ring_of(a);
  k.rows = static_cast<int8_t*>(a.scratch);
  k.weight = k.rows + k.ring * dw_columns(a) * kBlock;
  k.wide = reinterpret_cast<int16_t*>(k.weight);
  k.taps = reinterpret_cast<const int8_t**>(k.wide + taps * kBlock);
  for (int64_t c0 = 0; c0 < a.channels; c0 += kBlock) {
    const int8_t* weight = a.weight + c0 * channel_bytes;
    if (dw_chain(a, c0, weight)) continue;
    dw_begin(k, a, c0);
    if (dw_takes_3x3(k, rows)) {
      widen_weights(k, weight);
      dw_3x3<Dw3x3Taps::kWide>(k, rows, k.wide, 9 * 8 * int64_t{sizeof(int16_t)});
      continue;
    }
    a.window_factor != nullptr ? widen_weights(k, weight) : prepare_weights(k, weight);
    dw_with_finish(k, [&]<DwFinish kFinish>() { run<kFinish>(k); });
  }
}

}  // namespace defakeq::neon

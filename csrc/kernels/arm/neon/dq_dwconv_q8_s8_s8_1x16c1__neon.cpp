// Depthwise convolution, 16 channels at a time, over rows that are copied with their padding into a
// ring. A tap is one smlal and one smlal2 into int16 lanes; as many taps as the block's weights
// allow are added up before they are widened: |w x| <= 128 |w|, so those whose |w| sum to at most
// 255.
#include <algorithm>

#include "kernels/arm/dwconv_chain.h"
#include "kernels/arm/kernels.h"

namespace defakeq::neon {

namespace {

struct Block : DwBlock {
  int64_t ring;         // rows held
  int8_t* rows;         // [ring][column][16]
  const int8_t** taps;  // [taps] pixel of the tap for the output row's first output
  int8_t* weight;       // [taps][16]
  int run;              // taps that int16 sums hold
};

int64_t ring_of(const DwS8Args& a) { return int64_t{a.kernel[0] - 1} * a.dilation[0] + 1; }

int8_t* ring_row(const Block& k, int64_t iy) {
  return k.rows + (iy + k.a->padding[0]) % k.ring * k.count * kBlock;
}

// kX adjacent outputs. kTaps: 9 for 3x3 kernels, else 0; kRun: 1 or 2 taps a sum, or 0 for k.run.
template <bool kFactor, DwFinish kFinish, int kX, int kTaps, int kRun>
DQ_INLINE void outputs(const Block& k, int64_t oy, int64_t ox) {
  const DwS8Args& a = *k.a;
  const int taps = kTaps != 0 ? kTaps : a.kernel[0] * a.kernel[1];
  const int run = kRun != 0 ? kRun : k.run;
  const int64_t stride = int64_t{a.stride[1]} * kBlock;
  const int64_t at = ox * stride;
  int32x4_t acc[kX][kParts];
  int16x8_t window[kX][2];
#pragma GCC unroll 2
  for (int x = 0; x < kX; ++x) {
    const int32_t* start = again(k.start);
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) acc[x][i] = vld1q_s32(start + i * 4);
    window[x][0] = window[x][1] = vdupq_n_s16(0);
  }
#pragma GCC unroll 9
  for (int t = 0; t < taps; t += run) {
    int16x8_t sum[kX][2];
    const int end = t + run < taps ? t + run : taps;
    const auto tap = [&](int u, auto&& multiply) __attribute__((always_inline)) {
      const int8x16_t w = vld1q_s8(k.weight + u * kBlock);
      const int8_t* from = k.taps[u] + at;
#pragma GCC unroll 2
      for (int x = 0; x < kX; ++x) {
        const int8x16_t v = vld1q_s8(from + x * stride);
        multiply(v, w, sum[x]);
        if constexpr (kFactor) {
          window[x][0] = vaddw_s8(window[x][0], vget_low_s8(v));
          window[x][1] = vaddw_high_s8(window[x][1], v);
        }
      }
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
        if constexpr (kFactor) {
          acc[x][2 * i] =
              vmlaq_s32(acc[x][2 * i], vmovl_s16(vget_low_s16(window[x][i])), k.factor[2 * i]);
          acc[x][2 * i + 1] =
              vmlaq_s32(acc[x][2 * i + 1], vmovl_high_s16(window[x][i]), k.factor[2 * i + 1]);
          window[x][i] = vdupq_n_s16(0);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int x = 0; x < kX; ++x) dw_finish<kFinish>(k, oy * a.out_w + ox + x, acc[x]);
}

template <bool kFactor, DwFinish kFinish, int kTaps, int kRun>
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
    for (; ox + 2 <= a.out_w; ox += 2) outputs<kFactor, kFinish, 2, kTaps, kRun>(k, oy, ox);
    if (ox < a.out_w) outputs<kFactor, kFinish, 1, kTaps, kRun>(k, oy, ox);
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

template <bool kFactor, DwFinish kFinish>
void run(const Block& k) {
  const bool nine = k.a->kernel[0] == 3 && k.a->kernel[1] == 3;
  if (nine && k.run == 2) return all_rows<kFactor, kFinish, 9, 2>(k);
  all_rows<kFactor, kFinish, 0, 0>(k);
}

}  // namespace

size_t dw_s8_scratch(const DwS8Args& a) {
  const int64_t taps = int64_t{a.kernel[0]} * a.kernel[1];
  const int64_t bytes = (ring_of(a) * dw_columns(a) + taps) * kBlock;
  return std::max(static_cast<size_t>(bytes) + static_cast<size_t>(taps) * sizeof(const int8_t*),
                  dw_chain_scratch(a));
}

void dw_s8(const DwS8Args& a) {
  const int64_t taps = int64_t{a.kernel[0]} * a.kernel[1];
  const int64_t channel_bytes = int64_t{(a.kernel[0] + 3) / 4} * a.kernel[1] * 4;
  Block k{};
  k.ring = ring_of(a);
  k.rows = static_cast<int8_t*>(a.scratch);
  k.weight = k.rows + k.ring * dw_columns(a) * kBlock;
  k.taps = reinterpret_cast<const int8_t**>(k.weight + taps * kBlock);
  for (int64_t c0 = 0; c0 < a.channels; c0 += kBlock) {
    const int8_t* weight = a.weight + c0 * channel_bytes;
    if (dw_chain(a, c0, weight)) continue;
    dw_begin(k, a, c0);
    prepare_weights(k, weight);
    dw_with_finish(k, [&]<DwFinish kFinish>() {
      a.window_factor != nullptr ? run<true, kFinish>(k) : run<false, kFinish>(k);
    });
  }
}

}  // namespace defakeq::neon

// Depthwise convolution by int16 chains, for weights of few bits: a tap is one smlal and one
// smlal2, all taps of an output add up in int16 lanes. |w x| <= 128 |w|, so a channel whose |w| sum
// to at most 255 fits. Nothing is interleaved, rows are copied once with their padding, and four
// outputs share the activations: fewer instructions than sdot, four of whose products are one
// kernel column.
#pragma once

#include "kernels/arm/dwconv.h"
#include "kernels/arm/dwconv_chain_3x3.h"

namespace defakeq {
namespace {

struct DwChain : DwBlock {
  int8_t* rows;    // [ring][column][16]
  int8_t* weight;  // [taps][16]
  int8_t* spare;   // [2][out_w][16]: outputs that do not go to the tensor as they are
};

constexpr int kChainSum = 255;

// Square kernels of 3 or 5 with stride 1 or 2, whose weights are all in int8.
DQ_INLINE bool dw_chains(const DwS8Args& a) {
  return (a.kernel[0] == 3 || a.kernel[0] == 5) && a.kernel[1] == a.kernel[0] &&
         (a.stride[0] == 1 || a.stride[0] == 2) && a.stride[1] == a.stride[0] &&
         a.dilation[0] == 1 && a.dilation[1] == 1 && a.window_factor == nullptr;
}

// Rows that two output rows read.
DQ_INLINE int64_t dw_chain_ring(const DwS8Args& a) { return a.kernel[0] + a.stride[0]; }

inline size_t dw_chain_scratch(const DwS8Args& a) {
  if (!dw_chains(a)) return 0;
  return static_cast<size_t>(dw_chain_ring(a) * dw_columns(a) + a.kernel[0] * a.kernel[1] +
                             2 * a.out_w) *
         kBlock;
}

DQ_INLINE void dw_fill(int8_t* out, int64_t columns, int8_t value) {
  for (int64_t c = 0; c < columns; ++c) vst1q_s8(out + c * kBlock, vdupq_n_s8(value));
}

// Columns that a row has before the image, and before the padding behind it.
DQ_INLINE int64_t dw_left(const DwBlock& k) {
  return k.a->padding[1] < k.count ? k.a->padding[1] : k.count;
}
DQ_INLINE int64_t dw_right(const DwBlock& k) {
  const int64_t right = k.a->w + k.a->padding[1];
  return right < k.count ? right : k.count;
}

// The pixels of an image row, in a row of [column][16].
inline void dw_copy_pixels(const DwBlock& k, int64_t iy, int8_t* row) {
  const DwS8Args& a = *k.a;
  const int64_t left = dw_left(k), stride = a.x_stride;
  const int8_t* x = a.x + (iy * a.w + left - a.padding[1]) * stride + k.c0;
  int8_t* out = row + left * kBlock;
  int64_t count = dw_right(k) - left;
  if (k.n < kBlock) {
    for (; count > 0; --count, x += stride, out += kBlock) vst1q_s8(out, load_bytes(x, k.n));
    return;
  }
  for (; count >= 4; count -= 4) copy_four(x, stride, out);
  for (; count > 0; --count, x += stride, out += kBlock) vst1q_s8(out, vld1q_s8(x));
}

// A row of the image, or of padding, as [column][16].
inline void dw_copy_row(const DwBlock& k, int64_t iy, int8_t* out) {
  const DwS8Args& a = *k.a;
  if (iy < 0 || iy >= a.h) return dw_fill(out, k.count, a.pad_value);
  const int64_t right = dw_right(k);
  dw_fill(out, dw_left(k), a.pad_value);
  dw_fill(out + right * kBlock, k.count - right, a.pad_value);
  dw_copy_pixels(k, iy, out);
}

// [row group][kw][16][4 rows] to [taps][16]; whether int16 holds all taps.
inline bool dw_chain_weights(DwChain& k, const int8_t* weight) {
  const DwS8Args& a = *k.a;
  int16x8_t sum[2] = {vdupq_n_s16(0), vdupq_n_s16(0)}, most[2] = {sum[0], sum[0]};
  const int height = a.kernel[0], width = a.kernel[1];
  for (int g = 0; g * 4 < height; ++g) {
    for (int kx = 0; kx < width; ++kx) {
      const int8x16x4_t four = vld4q_s8(weight + (g * width + kx) * kBlock * 4);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        if (g * 4 + j >= height) break;
        const int8x16_t w = four.val[j], size = vabsq_s8(w);
        vst1q_s8(k.weight + ((g * 4 + j) * width + kx) * kBlock, w);
        sum[0] = vaddw_s8(sum[0], vget_low_s8(w));
        sum[1] = vaddw_high_s8(sum[1], w);
        // |-128| is 128 of 8 bits without a sign
        most[0] = vreinterpretq_s16_u16(
            vaddw_u8(vreinterpretq_u16_s16(most[0]), vreinterpret_u8_s8(vget_low_s8(size))));
        most[1] = vreinterpretq_s16_u16(
            vaddw_high_u8(vreinterpretq_u16_s16(most[1]), vreinterpretq_u8_s8(size)));
      }
    }
  }
  if (vmaxvq_s16(vmaxq_s16(most[0], most[1])) > kChainSum) return false;
  for (int i = 0; i < kParts; ++i) {
    const int16x4_t part = i % 2 == 0 ? vget_low_s16(sum[i / 2]) : vget_high_s16(sum[i / 2]);
    vst1q_s32(k.start + i * 4, vmlal_n_s16(vld1q_s32(k.start + i * 4), part, 128));
  }
  return true;
}

// What stays in registers from one output to the next; weights and biases are loaded again.
struct DwHeld {
  float32x4_t scale[kParts];
  int16x8_t zero_point;
  int8x16_t lowest, highest;
};

// Two output rows by kX adjacent outputs, the plain int8 ones at out[row] + x * stride[row]. `row`:
// an input row each, `at`: the first output's column in them.
template <bool kInt8, int kKernel, int kStride, int kX>
DQ_INLINE void dw_chain_outputs(const DwChain& k, const DwHeld& held,
                                const int8_t* const (&row)[kKernel + kStride], int64_t at,
                                int8_t* const (&out)[2], const int64_t (&stride)[2], int64_t pixel,
                                bool second) {
  int16x8_t sum[2][kX][2];
  const int8_t* weight = again(k.weight);
#pragma GCC unroll 8
  for (int r = 0; r < kKernel + kStride; ++r) {
    __asm__ volatile("" ::: "memory");  // loads of later rows would need too many registers
#pragma GCC unroll 16
    for (int c = 0; c < kKernel + kStride * (kX - 1); ++c) {
      const int8x16_t v = vld1q_s8(row[r] + at + c * kBlock);
#pragma GCC unroll 2
      for (int y = 0; y < 2; ++y) {
        const int ky = r - y * kStride;
        if (ky < 0 || ky >= kKernel) continue;
#pragma GCC unroll 4
        for (int x = 0; x < kX; ++x) {
          const int kx = c - x * kStride;
          if (kx < 0 || kx >= kKernel) continue;
          const int tap = ky * kKernel + kx;
          const int8x16_t w = vld1q_s8(weight + tap * kBlock);
          int16x8_t(&s)[2] = sum[y][x];
          if (tap == 0) {
            s[0] = vmull_s8(vget_low_s8(v), vget_low_s8(w));
            s[1] = vmull_high_s8(v, w);
          } else {
            s[0] = vmlal_s8(s[0], vget_low_s8(v), vget_low_s8(w));
            s[1] = vmlal_high_s8(s[1], v, w);
          }
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int y = 0; y < 2; ++y) {
#pragma GCC unroll 4
    for (int x = 0; x < kX; ++x) {
      __asm__ volatile("" ::: "memory");
      const int32_t* start = again(k.start);
      int32x4_t acc[kParts];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        acc[2 * i] = vaddw_s16(vld1q_s32(start + i * 8), vget_low_s16(sum[y][x][i]));
        acc[2 * i + 1] = vaddw_high_s16(vld1q_s32(start + i * 8 + 4), sum[y][x][i]);
      }
      if constexpr (kInt8) {
        const float* bias = again(k.bias);
        int32x4_t q[kParts];
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) {
          q[i] = vcvtnq_s32_f32(
              vfmaq_f32(vld1q_f32(bias + i * 4), vcvtq_f32_s32(acc[i]), held.scale[i]));
        }
        const int16x8_t low = vqmovn_high_s32(vqmovn_s32(q[0]), q[1]);
        const int16x8_t high = vqmovn_high_s32(vqmovn_s32(q[2]), q[3]);
        const int8x16_t bytes = vqmovn_high_s16(vqmovn_s16(vqaddq_s16(low, held.zero_point)),
                                                vqaddq_s16(high, held.zero_point));
        vst1q_s8(out[y] + x * stride[y], vminq_s8(vmaxq_s8(bytes, held.lowest), held.highest));
      } else if (y == 0 || second) {
        dw_finish_any(k, pixel + y * k.a->out_w + x, acc);
      }
    }
  }
}

DQ_INLINE DwChain3x3 dw_chain_constants(const DwChain& k, const DwHeld& held) {
  DwChain3x3 c;
  std::memcpy(c.weight, k.weight, sizeof(c.weight));
  std::memcpy(c.start, k.start, sizeof(c.start));
  std::memcpy(c.scale, k.scale, sizeof(c.scale));
  std::memcpy(c.bias, k.bias, sizeof(c.bias));
  vst1q_s16(c.zero_point, held.zero_point);
  vst1q_s8(c.lowest, held.lowest);
  vst1q_s8(c.highest, held.highest);
  return c;
}

template <bool kInt8, int kKernel, int kStride>
inline void dw_chain_rows(const DwChain& k) {
  const DwS8Args& a = *k.a;
  constexpr int64_t kRing = kKernel + kStride;
  const int64_t pitch = k.count * kBlock;
  DwHeld held;
  for (int i = 0; i < kParts; ++i) held.scale[i] = vld1q_f32(k.scale + i * 4);
  held.zero_point = vdupq_n_s16(k.int8.zero_point);
  held.lowest = vdupq_n_s8(k.int8.lowest);
  held.highest = vdupq_n_s8(k.int8.highest);
  const DwChain3x3 three = dw_chain_constants(k, held);
  const bool whole = k.n == kBlock;
  // Padding beside the image stays; of rows above and below nothing else remains.
  dw_fill(k.rows, kRing * k.count, a.pad_value);
  int64_t slot = a.oy0 * kStride % kRing, fresh = 0;
  for (int64_t oy = a.oy0; oy < a.oy1; oy += 2) {
    const int64_t top = oy * kStride - a.padding[0];
    const int8_t* row[kRing];
    int8_t* to_row = k.rows + slot * pitch;
    for (int64_t r = 0; r < kRing; ++r) {
      row[r] = to_row;
      if (r >= fresh) {
        if (top + r >= 0 && top + r < a.h) {
          dw_copy_pixels(k, top + r, to_row);
        } else if (oy > a.oy0) {
          dw_fill(to_row, k.count, a.pad_value);
        }
      }
      to_row += pitch;
      if (to_row == k.rows + kRing * pitch) to_row = k.rows;
    }
    fresh = kRing - 2 * kStride;
    slot += 2 * kStride;
    if (slot >= kRing) slot -= kRing;
    const bool second = oy + 1 < a.oy1;
    const int64_t pixel = oy * a.out_w;
    int8_t* const to = static_cast<int8_t*>(a.out) + pixel * a.out_stride + k.c0;
    int8_t* out[2] = {to, to + a.out_w * a.out_stride};
    if (!whole) out[0] = k.spare;
    if (!whole || !second) out[1] = k.spare + a.out_w * kBlock;
    int64_t stride[2] = {whole ? a.out_stride : kBlock, whole ? a.out_stride : kBlock};
    if (!second) stride[1] = 0;
    const auto outputs = [&]<int kX>(int64_t ox) __attribute__((always_inline)) {
      dw_chain_outputs<kInt8, kKernel, kStride, kX>(k, held, row, ox * kStride * kBlock, out,
                                                    stride, pixel + ox, second);
      out[0] += kX * stride[0];
      out[1] += kX * stride[1];
    };
    int64_t ox = 0;
    if constexpr (kInt8 && kKernel == 3) {
      if (a.out_w >= 2) {
        DwChainRows x = {{row[0], row[1], row[2], row[3], row[kRing - 1]},
                         {out[0], out[1]},
                         {stride[0], stride[1]}};
        k.int8.bare ? dw_chain_3x3<kStride, true>(three, x, a.out_w / 2)
                    : dw_chain_3x3<kStride, false>(three, x, a.out_w / 2);
        out[0] = x.out[0];
        out[1] = x.out[1];
        ox = a.out_w / 2 * 2;
      }
    }
    for (; ox + 2 <= a.out_w; ox += 2) outputs.template operator()<2>(ox);
    if (ox < a.out_w) outputs.template operator()<1>(ox);
    if (kInt8 && !whole) {
      for (int64_t i = 0; i < a.out_w * (second ? 2 : 1); ++i) {
        store_bytes(to + i * a.out_stride, k.n, vld1q_s8(k.spare + i * kBlock));
      }
    }
  }
}

// The channels from c0 on, whose weights are `weight`, if int16 holds their sums.
inline bool dw_chain(const DwS8Args& a, int64_t c0, const int8_t* weight) {
  if (!dw_chains(a)) return false;
  DwChain k{};
  dw_begin(k, a, c0);
  k.rows = static_cast<int8_t*>(a.scratch);
  k.weight = k.rows + dw_chain_ring(a) * k.count * kBlock;
  k.spare = k.weight + a.kernel[0] * a.kernel[1] * kBlock;
  if (!dw_chain_weights(k, weight)) return false;
  const bool plain = !a.has_row_scale && a.post.residual == nullptr &&
                     is_plain_int8(a.post, k.scale, k.bias, kBlock) && k.int8.inv_scale == 1.0f;
  const auto run = [&]<bool kInt8>() {
    if (a.kernel[0] == 3) {
      a.stride[0] == 1 ? dw_chain_rows<kInt8, 3, 1>(k) : dw_chain_rows<kInt8, 3, 2>(k);
    } else {
      a.stride[0] == 1 ? dw_chain_rows<kInt8, 5, 1>(k) : dw_chain_rows<kInt8, 5, 2>(k);
    }
  };
  plain ? run.template operator()<true>() : run.template operator()<false>();
  if (plain) dw_replace_outputs(k);
  return true;
}

}  // namespace
}  // namespace defakeq

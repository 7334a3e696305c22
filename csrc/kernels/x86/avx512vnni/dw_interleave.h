// Interleaved rows for the depthwise convolution: what one run over up to 64 channels works in, and
// the way back to the order of the channels.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/simd/math.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

namespace {

constexpr int kWide = 64;
constexpr int kLanes = 4;  // 16-channel groups of a wide block; vectors of a quadruple

DQ_INLINE int64_t columns_of(const DwS8Args& a) {
  return (a.out_w - 1) * a.stride[1] + int64_t{a.kernel[1] - 1} * a.dilation[1] + 1;
}

// Output rows of a band: they read the same interleaved rows, each with its weights moved down by
// bytes.
DQ_INLINE int band_rows(const DwS8Args& a) {
  const int spare = (4 - a.kernel[0] % 4) % 4;
  return a.dilation[0] == 1 ? spare / a.stride[0] + 1 : 1;
}

// Vector j of the quadruple holds channels 16 l + 4 j .. + 3 in its lane l: gathers 16-byte chunk j
// of every group. Lanes from `repeat` on hold the same again.
DQ_INLINE __m512i lanes_of(const void* base, int64_t group_bytes, int j, int groups, int repeat) {
  const char* p = static_cast<const char*>(base) + j * 16;
  const auto chunk = [&](int lane) __attribute__((always_inline)) {
    const int l = lane % repeat;
    return l < groups ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + l * group_bytes))
                      : _mm_setzero_si128();
  };
  __m512i v = _mm512_castsi128_si512(chunk(0));
  v = _mm512_inserti32x4(v, chunk(1), 1);
  v = _mm512_inserti32x4(v, chunk(2), 2);
  return _mm512_inserti32x4(v, chunk(3), 3);
}

// Few channels leave lanes over: they take further segments of the output row, side by side.
struct Wide {
  const DwS8Args* a;
  int64_t c0;
  int n;                 // valid channels
  int groups;            // valid 16-channel groups
  int segments;          // 1, 2 or 4
  int64_t out_w;         // outputs of a segment; the last one may have fewer, but not of streams:
  int64_t segment_step;  // their segments start at multiples of this and may overlap
  __m512i* columns;      // [row group][column][4]
  __m256i* words;        // [output row of the band][column][4] int16 results
  __m512i* sums;         // [column] of one vector of the quadruple, over the rows of the kernel
  __m512i* weight;       // [output row of the band][row group][kw][4]
  __m512i correction[kLanes], factor[kLanes];
  __m512 scale[kLanes], bias[kLanes];
};

// Columns that the outputs of one segment read.
DQ_INLINE int64_t columns_of(const Wide& k) {
  const DwS8Args& a = *k.a;
  return (k.out_w - 1) * a.stride[1] + int64_t{a.kernel[1] - 1} * a.dilation[1] + 1;
}

// [4 rows] of bytes -> [channel][4 rows] in a quadruple.
DQ_INLINE void interleave_column(__m512i r0, __m512i r1, __m512i r2, __m512i r3, __m512i* out) {
  const __m512i lo01 = _mm512_unpacklo_epi8(r0, r1), hi01 = _mm512_unpackhi_epi8(r0, r1);
  const __m512i lo23 = _mm512_unpacklo_epi8(r2, r3), hi23 = _mm512_unpackhi_epi8(r2, r3);
  out[0] = _mm512_unpacklo_epi16(lo01, lo23);
  out[1] = _mm512_unpackhi_epi16(lo01, lo23);
  out[2] = _mm512_unpacklo_epi16(hi01, hi23);
  out[3] = _mm512_unpackhi_epi16(hi01, hi23);
}

// The same four rows, of two or four segments.
inline void interleave_segments(const Wide& k, int64_t iy, __m512i* columns) {
  const DwS8Args& a = *k.a;
  const int64_t count = columns_of(k), step = k.out_w * a.stride[1];
  const int wide = kLanes / k.segments;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m128i pad = _mm_set1_epi8(a.pad_value);
  __mmask16 mask[kLanes];
  int64_t group[kLanes], left[kLanes];  // of a lane: its first channel, its first column's pixel
  for (int l = 0; l < kLanes; ++l) {
    group[l] = l % wide * kBlock;
    left[l] = l / wide * step - a.padding[1];
    const int64_t there = k.n - group[l];
    mask[l] = static_cast<__mmask16>(there >= kBlock ? 0xffff : there > 0 ? (1 << there) - 1 : 0);
  }
  for (int64_t c = 0; c < count; ++c) {
    const bool whole = left[0] + c >= 0 && left[kLanes - 1] + c < a.w;
    __m512i rows[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int64_t y = iy + int64_t{j} * a.dilation[0];
      const bool inside = y >= 0 && y < a.h;
      const int8_t* row = a.x + y * a.w * a.x_stride + k.c0;
      const auto chunk = [&](int l) __attribute__((always_inline)) {
        const int64_t pixel = left[l] + c;
        if (!inside || (!whole && (pixel < 0 || pixel >= a.w))) return pad;
        return _mm_maskz_loadu_epi8(mask[l], row + pixel * a.x_stride + group[l]);
      };
      __m512i v = _mm512_castsi128_si512(chunk(0));
      v = _mm512_inserti32x4(v, chunk(1), 1);
      v = _mm512_inserti32x4(v, chunk(2), 2);
      rows[j] = _mm512_xor_si512(_mm512_inserti32x4(v, chunk(3), 3), flip);
    }
    interleave_column(rows[0], rows[1], rows[2], rows[3], columns + c * kLanes);
  }
}

// Interleaves the four rows from input row iy on (steps of the dilation).
inline void interleave(const Wide& k, int64_t iy, __m512i* columns) {
  if (k.segments > 1) return interleave_segments(k, iy, columns);
  const DwS8Args& a = *k.a;
  const int64_t count = columns_of(a);
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i pad = _mm512_xor_si512(_mm512_set1_epi8(a.pad_value), flip);
  const __mmask64 mask = k.n == kWide ? ~__mmask64{0} : (__mmask64{1} << k.n) - 1;
  const int64_t left = a.padding[1] < count ? a.padding[1] : count;
  const int64_t right = a.w + a.padding[1] < count ? a.w + a.padding[1] : count;
  for (int64_t c = 0; c < left * kLanes; ++c) columns[c] = pad;
  for (int64_t c = right * kLanes; c < count * kLanes; ++c) columns[c] = pad;
  const int8_t* row[4];
  bool inside[4];
  for (int j = 0; j < 4; ++j) {
    const int64_t y = iy + int64_t{j} * a.dilation[0];
    inside[j] = y >= 0 && y < a.h;
    row[j] = inside[j] ? a.x + y * a.w * a.x_stride + k.c0 : nullptr;
  }
  const auto body = [&](auto load) __attribute__((always_inline)) {
    for (int64_t c = left; c < right; ++c) {
      const int64_t at = (c - a.padding[1]) * a.x_stride;
      const __m512i r0 = load(0, at), r1 = load(1, at), r2 = load(2, at), r3 = load(3, at);
      interleave_column(r0, r1, r2, r3, columns + c * kLanes);
    }
  };
  if (k.n == kWide && inside[0] && inside[1] && inside[2] && inside[3]) {
    body([&](int j, int64_t at) __attribute__((always_inline)) {
      return _mm512_xor_si512(_mm512_loadu_si512(row[j] + at), flip);
    });
  } else {
    body([&](int j, int64_t at) __attribute__((always_inline)) {
      return inside[j] ? _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, row[j] + at), flip) : pad;
    });
  }
}

// A quadruple of floats in the order of the channels: its lanes transposed.
DQ_INLINE void in_order(const __m512 (&y)[kLanes], __m512 (&natural)[kLanes]) {
  const __m512 a01 = _mm512_shuffle_f32x4(y[0], y[1], 0x44);
  const __m512 b01 = _mm512_shuffle_f32x4(y[0], y[1], 0xee);
  const __m512 a23 = _mm512_shuffle_f32x4(y[2], y[3], 0x44);
  const __m512 b23 = _mm512_shuffle_f32x4(y[2], y[3], 0xee);
  natural[0] = _mm512_shuffle_f32x4(a01, a23, 0x88);
  natural[1] = _mm512_shuffle_f32x4(a01, a23, 0xdd);
  natural[2] = _mm512_shuffle_f32x4(b01, b23, 0x88);
  natural[3] = _mm512_shuffle_f32x4(b01, b23, 0xdd);
}

// Four channels of every lane of vector j as floats, where output ox of each segment of a row is.
DQ_INLINE void store_floats(const Wide& k, float* row, int64_t ox, int j, __m512 y) {
  const DwS8Args& a = *k.a;
  const int wide = kLanes / k.segments;
  const auto store = [&]<int L>() __attribute__((always_inline)) {
    const int64_t x = L / wide * k.out_w + ox;
    const int64_t channel = L % wide * kBlock + 4 * j, left = k.n - channel;
    if (x >= a.out_w || left <= 0) return;
    const auto mask = static_cast<__mmask8>(left >= 4 ? 0xf : (1 << left) - 1);
    _mm_mask_storeu_ps(row + x * a.out_stride + channel, mask, _mm512_extractf32x4_ps(y, L));
  };
  store.template operator()<0>();
  store.template operator()<1>();
  store.template operator()<2>();
  store.template operator()<3>();
}

}  // namespace
}  // namespace defakeq::avx512vnni

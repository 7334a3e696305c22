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

// Four channels of every lane of vector j as floats, into a pixel of every segment.
DQ_INLINE void store_floats(const Wide& k, float* pixel, int j, __m512 y) {
  const DwS8Args& a = *k.a;
  const int wide = kLanes / k.segments;
  const auto store = [&]<int L>() __attribute__((always_inline)) {
    float* to = pixel + L / wide * k.segment_step * a.out_stride;
    const int64_t channel = L % wide * kBlock + 4 * j, left = k.n - channel;
    if (left <= 0) return;
    const auto mask = static_cast<__mmask8>(left >= 4 ? 0xf : (1 << left) - 1);
    _mm_mask_storeu_ps(to + channel, mask, _mm512_extractf32x4_ps(y, L));
  };
  store.template operator()<0>();
  store.template operator()<1>();
  store.template operator()<2>();
  store.template operator()<3>();
}

}  // namespace
}  // namespace defakeq::avx512vnni

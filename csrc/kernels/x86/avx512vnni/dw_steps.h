// 3x3 kernels of stride 2 with plain int8 output: one half of the quadruple and then the other goes
// along an output row, with the columns of its window in registers.
#pragma once

#include "kernels/x86/avx512vnni/dw_columns.h"

namespace defakeq::avx512vnni {

namespace {

template <int kHalf, bool kFactor, int kSegments, bool kWhole>
DQ_INLINE void half_steps(const Wide& k, const __m512i& pad, int64_t oy) {
  constexpr int kJ = 2 * kHalf;
  const DwS8Args& a = *k.a;
  __m512i weight[3][2];
#pragma GCC unroll 3
  for (int kx = 0; kx < 3; ++kx) {
    weight[kx][0] = k.weight[kx * kLanes + kJ];
    weight[kx][1] = k.weight[kx * kLanes + kJ + 1];
  }
  const __m512i ones = _mm512_set1_epi32(0x00010101);
  const __m512i zero_point = _mm512_set1_epi16(static_cast<int16_t>(a.post.zero_point));
  const Finish finish(a.post);
  const int64_t out_w = k.out_w, out_stride = a.out_stride;
  int8_t* out = static_cast<int8_t*>(a.out) + oy * a.out_w * out_stride + k.c0;
  __m512i* halves = k.columns;
  Columns<3, kSegments, kWhole> rows(k, &pad, oy * 2 - a.padding[0]);
  const auto arrive = [&](__m512i(&to)[2]) __attribute__((always_inline)) {
    __m512i r[3];
    rows.next(r);
    // a fourth row would meet weights of 0
    interleave_half<kHalf>(r[0], r[1], r[2], r[2], to);
  };
  __m512i first[2], sum[2];
  arrive(first);
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    sum[j] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), first[j], ones);
  }
  for (int64_t ox = 0; ox < out_w; ++ox) {
    __m512i second[2], third[2], result[2];
    arrive(second);
    arrive(third);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      __m512i acc = k.correction[kJ + j];
      if constexpr (kFactor) {
        const __m512i last = _mm512_dpbusd_epi32(_mm512_setzero_si512(), third[j], ones);
        const __m512i window = _mm512_add_epi32(_mm512_dpbusd_epi32(sum[j], second[j], ones), last);
        sum[j] = last;
        // both fit 16 bits, and the sum's upper half is zero
        acc = _mm512_dpwssd_epi32(acc, window, k.factor[kJ + j]);
      }
      acc = _mm512_dpbusd_epi32(acc, first[j], weight[0][j]);
      acc = _mm512_dpbusd_epi32(acc, second[j], weight[1][j]);
      acc = _mm512_dpbusd_epi32(acc, third[j], weight[2][j]);
      first[j] = third[j];
      result[j] =
          Vec::rne(_mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), k.scale[kJ + j], k.bias[kJ + j]));
    }
    const __m512i words = _mm512_adds_epi16(_mm512_packs_epi32(result[0], result[1]), zero_point);
    if constexpr (kHalf == 0) {
      halves[ox] = words;
    } else {
      const __m512i bytes = finish(_mm512_packs_epi16(halves[ox], words));
      store_pixel<kSegments, kWhole>(k, out, bytes);
      out += out_stride;
    }
  }
}

template <bool kFactor, int kSegments, bool kWhole>
void step_rows(const Wide& k) {
  const DwS8Args& a = *k.a;
  const __m512i pad = _mm512_set1_epi8(a.pad_value);
  for (int64_t oy = a.oy0; oy < a.oy1; ++oy) {
    half_steps<0, kFactor, kSegments, kWhole>(k, pad, oy);
    half_steps<1, kFactor, kSegments, kWhole>(k, pad, oy);
  }
}

// No result leaves the range of int32, past which the conversion to it would change sign.
inline bool steps_fit(const Wide& k) { return results_below(k, 1073741824.0f); }

template <bool kFactor>
void all_steps(const Wide& k) {
  if (k.segments == 4) return step_rows<kFactor, 4, false>(k);
  if (k.segments == 2) return step_rows<kFactor, 2, false>(k);
  k.n == kWide ? step_rows<kFactor, 1, true>(k) : step_rows<kFactor, 1, false>(k);
}

}  // namespace
}  // namespace defakeq::avx512vnni

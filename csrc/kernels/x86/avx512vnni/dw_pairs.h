// 3x3 kernels of stride 1 with plain int8 output: two output rows at a time. A few columns are
// interleaved, multiplied and stored before the next ones, so that shuffles, products and stores
// overlap.
#pragma once

#include "kernels/x86/avx512vnni/dw_interleave.h"

namespace defakeq::avx512vnni {

namespace {

constexpr int kX = 4;  // adjacent outputs of a row

// How the factor of the window's sum enters: it lies in -127..128, weights of vpdpbusd in
// -128..127.
enum class Factor { kNone, kAdded, kSubtracted };

struct Pairs {
  const Wide* k;
  Factor factor;
  __m512i pattern[2][kLanes];  // the factor, or its negative, at the bytes of each row's window
};

// kX outputs of both rows, vector j of the quadruple: int16, four channels of each row to a lane.
template <Factor kFactor>
DQ_INLINE void pair_words(const Pairs& p, int64_t ox, int j, __m512i (&words)[kX]) {
  const Wide& k = *p.k;
  const __m512i* x = k.columns + ox * kLanes + j;
  const __m512i* w = k.weight + j;
  const __m512i correction = k.correction[j];
  const __m512 scale = k.scale[j], bias = k.bias[j];
  const __m512i zero_point = _mm512_set1_epi16(static_cast<int16_t>(k.a->post.zero_point));
  __m512i acc[2][kX];
#pragma GCC unroll 2
  for (int y = 0; y < 2; ++y) {
    if constexpr (kFactor == Factor::kNone) {
#pragma GCC unroll 4
      for (int i = 0; i < kX; ++i) acc[y][i] = correction;
    } else {
      // two adjacent windows share two columns
      const __m512i f = p.pattern[y][j];
      const __m512i start = kFactor == Factor::kAdded ? correction : _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int i = 0; i < kX; i += 2) {
        __m512i both = _mm512_dpbusd_epi32(start, x[(i + 1) * kLanes], f);
        both = _mm512_dpbusd_epi32(both, x[(i + 2) * kLanes], f);
        acc[y][i] = _mm512_dpbusd_epi32(both, x[i * kLanes], f);
        acc[y][i + 1] = _mm512_dpbusd_epi32(both, x[(i + 3) * kLanes], f);
      }
      if constexpr (kFactor == Factor::kSubtracted) {
#pragma GCC unroll 4
        for (int i = 0; i < kX; ++i) acc[y][i] = _mm512_sub_epi32(correction, acc[y][i]);
      }
    }
#pragma GCC unroll 3
    for (int kx = 0; kx < 3; ++kx) {
      const __m512i weight = w[(3 * y + kx) * kLanes];
#pragma GCC unroll 4
      for (int i = 0; i < kX; ++i) {
        acc[y][i] = _mm512_dpbusd_epi32(acc[y][i], x[(i + kx) * kLanes], weight);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kX; ++i) {
    const auto rounded = [&](__m512i v) __attribute__((always_inline)) {
      return Vec::rne(_mm512_fmadd_ps(_mm512_cvtepi32_ps(v), scale, bias));
    };
    const __m512i both = _mm512_packs_epi32(rounded(acc[0][i]), rounded(acc[1][i]));
    words[i] = _mm512_adds_epi16(both, zero_point);
  }
}

// Vectors j and j + 1, as bytes.
template <Factor kFactor>
DQ_INLINE void pair_bytes(const Pairs& p, int64_t ox, int j, __m512 (&bytes)[kX]) {
  __m512i a[kX], b[kX];
  pair_words<kFactor>(p, ox, j, a);
  pair_words<kFactor>(p, ox, j + 1, b);
#pragma GCC unroll 4
  for (int i = 0; i < kX; ++i) bytes[i] = _mm512_castsi512_ps(_mm512_packs_epi16(a[i], b[i]));
}

template <Factor kFactor, bool kWhole>
void pair_rows(const Pairs& p) {
  const Wide& k = *p.k;
  const DwS8Args& a = *k.a;
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const __mmask64 mask = kWhole ? ~__mmask64{0} : (__mmask64{1} << k.n) - 1;
  const int64_t count = columns_of(a);
  const int64_t left = a.padding[1] < count ? a.padding[1] : count;
  const int64_t right = a.w + a.padding[1] < count ? a.w + a.padding[1] : count;
  const __m512i pad = _mm512_set1_epi8(a.pad_value), flipped_pad = _mm512_xor_si512(pad, flip);
  alignas(64) int8_t pad_pixel[kWide];
  _mm512_store_si512(pad_pixel, pad);
  for (int64_t c = 0; c < left * kLanes; ++c) k.columns[c] = flipped_pad;
  for (int64_t c = right * kLanes; c < count * kLanes; ++c) k.columns[c] = flipped_pad;
  static constexpr int8_t kNoTable[256] = {};
  const bool looks_up = a.post.table != nullptr;
  const Lookup lookup(looks_up ? a.post.table : kNoTable);
  const bool relu = a.post.activation == Activation::kRelu;
  const __m512i floor =
      _mm512_set1_epi8(relu ? static_cast<int8_t>(a.post.zero_point) : int8_t{-128});
  for (int64_t oy = a.oy0; oy < a.oy1; oy += 2) {
    const int8_t* row[4];
    int64_t step[4];
    for (int r = 0; r < 4; ++r) {
      const int64_t y = oy - a.padding[0] + r;
      const bool inside = y >= 0 && y < a.h;
      row[r] = inside ? a.x + y * a.w * a.x_stride + k.c0 : pad_pixel;
      step[r] = inside ? a.x_stride : 0;
    }
    int8_t* out = static_cast<int8_t*>(a.out) + oy * a.out_w * a.out_stride + k.c0;
    // without a second row, the first is stored over it
    const int64_t below = oy + 1 < a.oy1 ? a.out_w * a.out_stride : 0;
    int64_t c = left;
    // the last few outputs may be computed twice
    for (int64_t start = 0; start < a.out_w; start += kX) {
      const int64_t ox = start < a.out_w - kX ? start : a.out_w - kX;
      int8_t* to = out + ox * a.out_stride;
      const int64_t end = ox + kX + 2 < right ? ox + kX + 2 : right;
      for (; c < end; ++c) {
        __m512i v[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          v[r] = kWhole ? _mm512_loadu_si512(row[r]) : _mm512_maskz_loadu_epi8(mask, row[r]);
          v[r] = _mm512_xor_si512(v[r], flip);
          row[r] += step[r];
        }
        interleave_column(v[0], v[1], v[2], v[3], k.columns + c * kLanes);
      }
      __m512 low[kX], up[kX];
      pair_bytes<kFactor>(p, ox, 0, low);
      pair_bytes<kFactor>(p, ox, 2, up);
#pragma GCC unroll 4
      for (int i = 0; i < kX; ++i) {
        __m512i top = _mm512_castps_si512(_mm512_shuffle_ps(low[i], up[i], 0x88));
        __m512i bottom = _mm512_castps_si512(_mm512_shuffle_ps(low[i], up[i], 0xdd));
        top = _mm512_max_epi8(top, floor);
        bottom = _mm512_max_epi8(bottom, floor);
        if (looks_up) {
          top = lookup(top);
          bottom = lookup(bottom);
        }
        if constexpr (kWhole) {
          _mm512_storeu_si512(to + below, bottom);
          _mm512_storeu_si512(to, top);
        } else {
          _mm512_mask_storeu_epi8(to + below, mask, bottom);
          _mm512_mask_storeu_epi8(to, mask, top);
        }
        to += a.out_stride;
      }
    }
  }
}

// The factors fit the bytes of a weight, and no result leaves the range of int32, past which the
// conversion to it would change sign.
inline bool row_pairs_fit(const Wide& k) {
  const __m512 products = _mm512_set1_ps(9.0f * 255.0f * 256.0f);
  __mmask16 fit = 0xffff;
  for (int j = 0; j < kLanes; ++j) {
    const __m512 correction = _mm512_abs_ps(_mm512_cvtepi32_ps(k.correction[j]));
    const __m512 most = _mm512_fmadd_ps(_mm512_add_ps(products, correction),
                                        _mm512_abs_ps(k.scale[j]), _mm512_abs_ps(k.bias[j]));
    fit &= _mm512_cmp_ps_mask(most, _mm512_set1_ps(1073741824.0f), _CMP_LT_OQ);
    fit &= _mm512_cmple_epi32_mask(_mm512_abs_epi32(k.factor[j]), _mm512_set1_epi32(128));
    fit &= _mm512_cmpneq_epi32_mask(k.factor[j], _mm512_set1_epi32(-128));
  }
  return fit == 0xffff;
}

inline void row_pairs(const Wide& k) {
  Pairs p{};
  p.k = &k;
  p.factor = Factor::kNone;
  if (k.a->window_factor != nullptr) {
    __mmask16 high = 0;
    for (int j = 0; j < kLanes; ++j) {
      high |= _mm512_cmpgt_epi32_mask(k.factor[j], _mm512_set1_epi32(127));
    }
    p.factor = high != 0 ? Factor::kSubtracted : Factor::kAdded;
    for (int j = 0; j < kLanes; ++j) {
      const __m512i f =
          high != 0 ? _mm512_sub_epi32(_mm512_setzero_si512(), k.factor[j]) : k.factor[j];
      const __m512i byte = _mm512_and_si512(f, _mm512_set1_epi32(0xff));
      p.pattern[0][j] = _mm512_mullo_epi32(byte, _mm512_set1_epi32(0x00010101));
      p.pattern[1][j] = _mm512_slli_epi32(p.pattern[0][j], 8);
    }
  }
  const bool whole = k.n == kWide;
  switch (p.factor) {
    case Factor::kNone:
      return whole ? pair_rows<Factor::kNone, true>(p) : pair_rows<Factor::kNone, false>(p);
    case Factor::kAdded:
      return whole ? pair_rows<Factor::kAdded, true>(p) : pair_rows<Factor::kAdded, false>(p);
    case Factor::kSubtracted:
      return whole ? pair_rows<Factor::kSubtracted, true>(p)
                   : pair_rows<Factor::kSubtracted, false>(p);
  }
}

}  // namespace
}  // namespace defakeq::avx512vnni

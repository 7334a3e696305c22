// 3x3 kernels of stride 1 with plain int8 output, two output rows at a time. One half of the
// quadruple and then the other goes along the row: a column is interleaved and stays in registers
// for the outputs that read it, so that no phase of shuffles or stores stands by itself. What
// limits it are the two units that multiply, which stores and saturating additions occupy as well.
#pragma once

#include "kernels/x86/avx512vnni/dw_columns.h"

namespace defakeq::avx512vnni {

namespace {

// How the factor of the window's sum enters: it lies in -127..128, weights of vpdpbusd in
// -128..127.
enum class Factor { kNone, kAdded, kSubtracted };

struct Pairs {
  const Wide* k;
  __m512i pattern[2][kLanes];  // the factor, or its negative, at the bytes of each row's window
  __m512i* halves;             // [output of a row] bytes of the first half of the quadruple
  __m512i pad;
};

// The next column of one half of the quadruple.
template <int kHalf, class Rows>
DQ_INLINE void next_column(Rows& rows, __m512i (&to)[2]) {
  __m512i r[4];
  rows.next(r);
  interleave_half<kHalf>(r[0], r[1], r[2], r[3], to);
}

// kX adjacent outputs of both rows, two vectors of the quadruple: [output][vector][row].
template <int kHalf, Factor kFactor, int kX>
DQ_INLINE void pair_sums(const Pairs& p, const __m512i (&column)[2 + kX][2],
                         const __m512i (&weight)[3][2][2], __m512i (&acc)[kX][2][2]) {
  constexpr int kJ = 2 * kHalf;
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) {
    const __m512i correction = p.k->correction[kJ + j];
#pragma GCC unroll 2
    for (int y = 0; y < 2; ++y) {
      if constexpr (kFactor == Factor::kNone) {
#pragma GCC unroll 2
        for (int x = 0; x < kX; ++x) acc[x][j][y] = correction;
      } else {
        static_assert(kX == 2);  // adjacent windows share two columns
        const __m512i f = p.pattern[y][kJ + j];
        __m512i both = kFactor == Factor::kAdded ? correction : _mm512_setzero_si512();
        both = _mm512_dpbusd_epi32(both, column[1][j], f);
        both = _mm512_dpbusd_epi32(both, column[2][j], f);
        acc[0][j][y] = _mm512_dpbusd_epi32(both, column[0][j], f);
        acc[1][j][y] = _mm512_dpbusd_epi32(both, column[3][j], f);
        if constexpr (kFactor == Factor::kSubtracted) {
          acc[0][j][y] = _mm512_sub_epi32(correction, acc[0][j][y]);
          acc[1][j][y] = _mm512_sub_epi32(correction, acc[1][j][y]);
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int kx = 0; kx < 3; ++kx) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
#pragma GCC unroll 2
      for (int y = 0; y < 2; ++y) {
        __m512i w;
        if constexpr (kFactor == Factor::kNone) {
          w = weight[kx][j][y];
        } else {
          // from memory: sums of windows leave too few registers
          const __m512i* from = p.k->weight + (3 * y + kx) * kLanes + kJ + j;
          asm("" : "+r"(from));
          w = *from;
        }
#pragma GCC unroll 2
        for (int x = 0; x < kX; ++x) {
          acc[x][j][y] = _mm512_dpbusd_epi32(acc[x][j][y], column[x + kx][j], w);
        }
      }
    }
  }
}

template <int kHalf, Factor kFactor, int kSegments, bool kWhole>
DQ_INLINE void half_rows(const Pairs& p, int64_t oy) {
  constexpr int kX = kFactor == Factor::kNone ? 1 : 2;
  constexpr int kJ = 2 * kHalf;
  const Wide& k = *p.k;
  const DwS8Args& a = *k.a;
  __m512i weight[3][2][2];
  if constexpr (kFactor == Factor::kNone) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) {
      weight[i / 4][i / 2 % 2][i % 2] = k.weight[(i % 2 * 3 + i / 4) * kLanes + kJ + i / 2 % 2];
    }
  }
  const __m512 scale[2] = {k.scale[kJ], k.scale[kJ + 1]}, bias[2] = {k.bias[kJ], k.bias[kJ + 1]};
  const __m512i zero_point = _mm512_set1_epi16(static_cast<int16_t>(a.post.zero_point));
  const Finish finish(a.post);
  const int64_t out_w = k.out_w, out_stride = a.out_stride;
  int8_t* out = static_cast<int8_t*>(a.out) + oy * a.out_w * out_stride + k.c0;
  // without a second row, the first is stored over it
  const int64_t below = oy + 1 < a.oy1 ? a.out_w * out_stride : 0;
  __m512i* halves = p.halves;
  Columns<4, kSegments, kWhole> rows(k, &p.pad, oy - a.padding[0]);
  __m512i column[2 + kX][2];
#pragma GCC unroll 4
  for (int x = 0; x < 2 + kX; ++x) next_column<kHalf>(rows, column[x]);
  for (int64_t ox = 0; ox < out_w; ox += kX) {
    __m512i acc[kX][2][2];
    pair_sums<kHalf, kFactor, kX>(p, column, weight, acc);
#pragma GCC unroll 2
    for (int x = 0; x < 2; ++x) {
      column[x][0] = column[x + kX][0];
      column[x][1] = column[x + kX][1];
    }
    // those of the next outputs, in time
    if (ox + kX < out_w) {
#pragma GCC unroll 2
      for (int x = 0; x < kX; ++x) next_column<kHalf>(rows, column[2 + x]);
    }
    __m512 y[4 * kX];
#pragma GCC unroll 8
    for (int i = 0; i < 4 * kX; ++i) y[i] = _mm512_cvtepi32_ps(acc[i / 4][i / 2 % 2][i % 2]);
#pragma GCC unroll 8
    for (int i = 0; i < 4 * kX; ++i) {
      y[i] = _mm512_fmadd_ps(y[i], scale[i / 2 % 2], bias[i / 2 % 2]);
    }
    // an odd row's last pair has no second output: the first is stored over it
    const int64_t beside = ox + 1 < out_w ? out_stride : 0;
#pragma GCC unroll 2
    for (int x = kX - 1; x >= 0; --x) {
      __m512i words[2];
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        words[j] = _mm512_packs_epi32(Vec::rne(y[4 * x + 2 * j]), Vec::rne(y[4 * x + 2 * j + 1]));
        words[j] = _mm512_add_epi16(words[j], zero_point);
      }
      const __m512i bytes = _mm512_packs_epi16(words[0], words[1]);
      if constexpr (kHalf == 0) {
        halves[ox + x] = bytes;
      } else {
        const __m512 low = _mm512_castsi512_ps(halves[ox + x]), up = _mm512_castsi512_ps(bytes);
        const __m512i top = finish(_mm512_castps_si512(_mm512_shuffle_ps(low, up, 0x88)));
        const __m512i bottom = finish(_mm512_castps_si512(_mm512_shuffle_ps(low, up, 0xdd)));
        int8_t* to = out + x * beside;
        store_pixel<kSegments, kWhole>(k, to + below, bottom);
        store_pixel<kSegments, kWhole>(k, to, top);
      }
    }
    out += kX * out_stride;
  }
}

template <Factor kFactor, int kSegments, bool kWhole>
void pair_rows(const Pairs& p) {
  const DwS8Args& a = *p.k->a;
  for (int64_t oy = a.oy0; oy < a.oy1; oy += 2) {
    half_rows<0, kFactor, kSegments, kWhole>(p, oy);
    half_rows<1, kFactor, kSegments, kWhole>(p, oy);
  }
}

// The factors fit the bytes of a weight, and no result leaves int16 when the zero point is added.
inline bool row_pairs_fit(const Wide& k) {
  __mmask16 fit = 0xffff;
  for (int j = 0; j < kLanes; ++j) {
    fit &= _mm512_cmple_epi32_mask(k.factor[j], _mm512_set1_epi32(128));
    fit &= _mm512_cmpgt_epi32_mask(k.factor[j], _mm512_set1_epi32(-128));
  }
  return fit == 0xffff && results_below(k, 32000.0f);
}

template <Factor kFactor>
void all_pairs(const Pairs& p) {
  if (p.k->segments == 4) return pair_rows<kFactor, 4, false>(p);
  if (p.k->segments == 2) return pair_rows<kFactor, 2, false>(p);
  p.k->n == kWide ? pair_rows<kFactor, 1, true>(p) : pair_rows<kFactor, 1, false>(p);
}

inline void row_pairs(const Wide& k) {
  const DwS8Args& a = *k.a;
  Pairs p{};
  p.k = &k;
  p.halves = k.columns;
  p.pad = _mm512_set1_epi8(a.pad_value);
  if (a.window_factor == nullptr) return all_pairs<Factor::kNone>(p);
  __mmask16 high = 0;
  for (int j = 0; j < kLanes; ++j) {
    high |= _mm512_cmpgt_epi32_mask(k.factor[j], _mm512_set1_epi32(127));
  }
  for (int j = 0; j < kLanes; ++j) {
    const __m512i f =
        high != 0 ? _mm512_sub_epi32(_mm512_setzero_si512(), k.factor[j]) : k.factor[j];
    const __m512i byte = _mm512_and_si512(f, _mm512_set1_epi32(0xff));
    p.pattern[0][j] = _mm512_mullo_epi32(byte, _mm512_set1_epi32(0x00010101));
    p.pattern[1][j] = _mm512_slli_epi32(p.pattern[0][j], 8);
  }
  high != 0 ? all_pairs<Factor::kSubtracted>(p) : all_pairs<Factor::kAdded>(p);
}

}  // namespace
}  // namespace defakeq::avx512vnni

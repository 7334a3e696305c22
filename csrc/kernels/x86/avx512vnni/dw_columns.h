// Walks along some input rows of a depthwise convolution, column by column.
#pragma once

#include <type_traits>

#include "kernels/x86/avx512vnni/dw_interleave.h"

namespace defakeq::avx512vnni {

namespace {

// The columns of kRows input rows from row y0 on, steps of the dilation, in order; columns beside
// the image are padding. Those of 64 channels:
template <int kRows>
struct WholeRows {
  const int8_t *row[kRows], *real[kRows], *pad;
  int64_t step[kRows], real_step[kRows];
  int64_t column, change, right;

  DQ_MEMBER WholeRows(const Wide& k, const __m512i* padding, int64_t y0, int64_t from = 0) {
    const DwS8Args& a = *k.a;
    pad = reinterpret_cast<const int8_t*>(padding);
    right = a.w + a.padding[1] < columns_of(k) ? a.w + a.padding[1] : columns_of(k);
    column = from;
    // past the image's first column, that is where they begin
    const int64_t skipped = from > a.padding[1] ? from - a.padding[1] : 0;
    change = a.padding[1] + skipped;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int64_t y = y0 + r * int64_t{a.dilation[0]};
      const bool inside = y >= 0 && y < a.h;
      real[r] = inside ? a.x + (y * a.w + skipped) * a.x_stride + k.c0 : pad;
      real_step[r] = inside ? a.x_stride : 0;
      row[r] = pad;
      step[r] = 0;
    }
  }
  DQ_MEMBER void next(__m512i (&r)[kRows]) {
    if (column++ == change) {
      for (int i = 0; i < kRows; ++i) {
        row[i] = change < right ? real[i] : pad;
        step[i] = change < right ? real_step[i] : 0;
      }
      change = change < right ? right : -1;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      r[i] = _mm512_loadu_si512(row[i]);
      row[i] += step[i];
    }
  }
};

// Those of fewer, in one segment or in several side by side, of which only the first and the last
// meet padding: segments_for() sees to it.
template <int kRows, int kSegments>
struct PartRows {
  const int8_t* row[kRows];
  int64_t step[kRows], segment[kRows];
  int64_t column, left, right;
  bool careful;               // bytes past the channels are not there to be read
  __mmask64 all, begin, end;  // bytes: all; those of the first and of the last segment
  __m512i pad;

  DQ_MEMBER PartRows(const Wide& k, const __m512i* padding, int64_t y0, int64_t from = 0) {
    constexpr int kBytes = kWide / kSegments;
    const DwS8Args& a = *k.a;
    pad = *padding;
    begin = k.n == kWide ? ~__mmask64{0} : (__mmask64{1} << k.n) - 1;
    all = end = 0;
#pragma GCC unroll 4
    for (int s = 0; s < kSegments; ++s) {
      end = begin << (s * kBytes);
      all |= end;
    }
    left = a.padding[1];
    right = a.w + a.padding[1] - (kSegments - 1) * k.segment_step * a.stride[1];
    column = from;
    careful = false;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int64_t y = y0 + r * int64_t{a.dilation[0]};
      const bool inside = y >= 0 && y < a.h;
      row[r] = inside ? a.x + (y * a.w - left + from) * a.x_stride + k.c0
                      : reinterpret_cast<const int8_t*>(padding);
      step[r] = inside ? a.x_stride : 0;
      segment[r] = inside ? k.segment_step * a.stride[1] * a.x_stride : 0;
      const int64_t there = (a.h * a.w - 1) * a.x_stride + a.channels;
      careful |= k.n < kBytes && inside && ((y + 1) * a.w - 1) * a.x_stride + k.c0 + kBytes > there;
    }
  }
  DQ_MEMBER __m512i plain(int r) const {
    const int8_t* from = row[r];
    if constexpr (kSegments == 1) return _mm512_loadu_si512(from);
    if constexpr (kSegments == 2) {
      const auto* low = reinterpret_cast<const __m256i*>(from);
      const auto* up = reinterpret_cast<const __m256i*>(from + segment[r]);
      return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(low)),
                                _mm256_loadu_si256(up), 1);
    }
    const auto part = [&](int s) __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + s * segment[r]));
    };
    __m512i v = _mm512_castsi128_si512(part(0));
    v = _mm512_inserti32x4(v, part(1), 1);
    v = _mm512_inserti32x4(v, part(2), 2);
    return _mm512_inserti32x4(v, part(3), 3);
  }
  DQ_MEMBER __m512i masked(int r, __mmask64 mask) const {
    __m512i v = pad;
    // the mask moves each segment's bytes to its lanes
#pragma GCC unroll 4
    for (int s = 0; s < kSegments; ++s) {
      const int shift = s * kWide / kSegments;
      const __mmask64 bytes = mask & (begin << shift);
      v = _mm512_mask_loadu_epi8(v, bytes, row[r] + s * segment[r] - shift);
    }
    return v;
  }
  DQ_MEMBER void next(__m512i (&r)[kRows]) {
    const bool before = column < left, after = column >= right;
    if (before || after || careful) {
      __mmask64 mask = all;
      if (before) mask &= ~begin;
      if (after) mask &= ~end;
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) r[i] = masked(i, mask);
    } else {
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) r[i] = plain(i);
    }
    ++column;
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) row[i] += step[i];
  }
};

template <int kRows, int kSegments, bool kWhole>
using Columns = std::conditional_t<kWhole, WholeRows<kRows>, PartRows<kRows, kSegments>>;

template <int kSegments, bool kWhole>
void interleave_rows(const Wide& k, int64_t y0, int64_t from, int64_t count, __m512i* to) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  const __m512i pad = _mm512_set1_epi8(k.a->pad_value);
  Columns<4, kSegments, kWhole> rows(k, &pad, y0, from);
  for (int64_t c = 0; c < count; ++c, to += kLanes) {
    __m512i r[4];
    rows.next(r);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) r[i] = _mm512_xor_si512(r[i], flip);
    interleave_column(r[0], r[1], r[2], r[3], to);
  }
}

// Interleaves `count` columns of the four rows from input row y0 on.
inline void interleave(const Wide& k, int64_t y0, int64_t from, int64_t count, __m512i* to) {
  if (k.segments == 4) return interleave_rows<4, false>(k, y0, from, count, to);
  if (k.segments == 2) return interleave_rows<2, false>(k, y0, from, count, to);
  k.n == kWide ? interleave_rows<1, true>(k, y0, from, count, to)
               : interleave_rows<1, false>(k, y0, from, count, to);
}

// Half of the quadruple that interleave_column() makes.
template <int kHalf>
DQ_INLINE void interleave_half(__m512i r0, __m512i r1, __m512i r2, __m512i r3, __m512i (&to)[2]) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i v01 = kHalf == 0 ? _mm512_unpacklo_epi8(r0, r1) : _mm512_unpackhi_epi8(r0, r1);
  __m512i v23 = kHalf == 0 ? _mm512_unpacklo_epi8(r2, r3) : _mm512_unpackhi_epi8(r2, r3);
  v01 = _mm512_xor_si512(v01, flip);
  v23 = _mm512_xor_si512(v23, flip);
  to[0] = _mm512_unpacklo_epi16(v01, v23);
  to[1] = _mm512_unpackhi_epi16(v01, v23);
}

// What is left to do to bytes: relu, table.
struct Finish {
  bool looks_up;
  __m512i floor;
  Lookup lookup;

  explicit Finish(const Post& post)
      : looks_up(post.table != nullptr),
        floor(_mm512_set1_epi8(post.activation == Activation::kRelu
                                   ? static_cast<int8_t>(post.zero_point)
                                   : int8_t{-128})),
        lookup(looks_up ? post.table : kNone) {}
  DQ_MEMBER __m512i operator()(__m512i bytes) const {
    bytes = _mm512_max_epi8(bytes, floor);
    return looks_up ? lookup(bytes) : bytes;
  }

 private:
  static constexpr int8_t kNone[256] = {};
};

// How many segments of a row stand side by side in the lanes that `groups` groups of channels
// leave.
inline int segments_for(const DwS8Args& a, int groups) {
  const int segments = kLanes / groups;
  return a.out_w / segments * a.stride[1] >= a.padding[1] + 2 ? segments : 1;
}

// The bytes of one output pixel of every segment.
template <int kSegments, bool kWhole>
DQ_INLINE void store_pixel(const Wide& k, int8_t* to, __m512i bytes) {
  if constexpr (kWhole) {
    _mm512_storeu_si512(to, bytes);
  } else if constexpr (kSegments == 1) {
    _mm512_mask_storeu_epi8(to, (__mmask64{1} << k.n) - 1, bytes);
  } else if constexpr (kSegments == 2) {
    const __mmask32 mask = k.n == 32 ? ~__mmask32{0} : (__mmask32{1} << k.n) - 1;
    _mm256_mask_storeu_epi8(to, mask, _mm512_castsi512_si256(bytes));
    _mm256_mask_storeu_epi8(to + k.segment_step * k.a->out_stride, mask,
                            _mm512_extracti64x4_epi64(bytes, 1));
  } else {
    const auto mask = static_cast<__mmask16>((1 << k.n) - 1);
    const int64_t step = k.segment_step * k.a->out_stride;
    _mm_mask_storeu_epi8(to, mask, _mm512_castsi512_si128(bytes));
    _mm_mask_storeu_epi8(to + step, mask, _mm512_extracti32x4_epi32(bytes, 1));
    _mm_mask_storeu_epi8(to + 2 * step, mask, _mm512_extracti32x4_epi32(bytes, 2));
    _mm_mask_storeu_epi8(to + 3 * step, mask, _mm512_extracti32x4_epi32(bytes, 3));
  }
}

// No result, before zero point and clamping, reaches `limit` for any input.
inline bool results_below(const Wide& k, float limit) {
  const DwS8Args& a = *k.a;
  const __m512 products =
      _mm512_set1_ps(static_cast<float>(a.kernel[0] * a.kernel[1]) * 255.0f * (128.0f + 256.0f));
  __mmask16 below = 0xffff;
  for (int j = 0; j < kLanes; ++j) {
    const __m512 correction = _mm512_abs_ps(_mm512_cvtepi32_ps(k.correction[j]));
    const __m512 most = _mm512_fmadd_ps(_mm512_add_ps(products, correction),
                                        _mm512_abs_ps(k.scale[j]), _mm512_abs_ps(k.bias[j]));
    below &= _mm512_cmp_ps_mask(most, _mm512_set1_ps(limit), _CMP_LT_OQ);
  }
  return below == 0xffff;
}

}  // namespace
}  // namespace defakeq::avx512vnni

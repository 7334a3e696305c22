#include <algorithm>

#include "kernels/simd/math.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

namespace {

struct Taps {
  const int64_t* offset;
  int count;
  int64_t length;
};

// Lane sums of one row's activations.
DQ_INLINE __m512i sum_row(const int8_t* row, const Taps& taps, __mmask64 tail) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  for (int t = 0; t < taps.count; ++t) {
    const int8_t* x = row + taps.offset[t];
    int64_t k = 0;
    for (; k + 64 <= taps.length; k += 64) {
      sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(x + k));
    }
    if (tail != 0) sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(tail, x + k));
  }
  return sum;
}

// The same of taps of up to 32 bytes.
void short_row_sums(const int8_t* const* rows, int64_t m, const Taps& taps, int32_t* sums) {
  const auto mask = static_cast<__mmask32>(~uint32_t{0} >> (32 - taps.length));
  const __m256i ones = _mm256_set1_epi8(1);
  for (int64_t r = 0; r < m; r += 4) {
    const int8_t* row[4];
    for (int i = 0; i < 4; ++i) row[i] = rows[r + i < m ? r + i : m - 1];
    __m256i sum[4] = {};
    for (int t = 0; t < taps.count; ++t) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const __m256i x = _mm256_maskz_loadu_epi8(mask, row[i] + taps.offset[t]);
        sum[i] = _mm256_dpbusd_epi32(sum[i], ones, x);
      }
    }
    const __m256i all =
        _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    const auto left = static_cast<__mmask8>(m - r >= 4 ? 15 : (1 << (m - r)) - 1);
    _mm_mask_storeu_epi32(sums + r, left, four);
  }
}

constexpr int64_t kShuffledBytes = 24 << 10;

// The rows' output block of 64 bytes from kSources windows, which stay in registers meanwhile;
// 0: any number.
template <int kSources>
void shuffle_block(const ShufflePlan& plan, int64_t block, const uint8_t* src, int64_t src_stride,
                   int64_t rows, uint8_t* dst, int64_t dst_stride) {
  const WideShuffleSource* sources = plan.wide_sources + plan.wide_first[block];
  const int count = plan.wide_first[block + 1] - plan.wide_first[block];
  const __m512i fill = _mm512_loadu_si512(plan.fill + block * kWideBlock);
  const __mmask64 there = first_bytes(plan.src_length);
  const __mmask64 stored = first_bytes(plan.length - block * kWideBlock);
  constexpr int kHeld = kSources == 0 ? 1 : kSources;
  __m512i index[kHeld];
  __mmask64 lanes[kHeld];
  int64_t offset[kHeld];
  for (int s = 0; s < kSources; ++s) {
    index[s] = _mm512_loadu_si512(sources[s].index);
    lanes[s] = sources[s].lanes;
    offset[s] = sources[s].offset;
  }
  dst += block * kWideBlock;
  for (int64_t r = 0; r < rows; ++r) {
    __m512i bytes = fill;
    if constexpr (kSources == 0) {
      for (int s = 0; s < count; ++s) {
        bytes = _mm512_mask_permutexvar_epi8(
            bytes, sources[s].lanes, _mm512_loadu_si512(sources[s].index),
            _mm512_maskz_loadu_epi8(there, src + sources[s].offset));
      }
    } else {
#pragma GCC unroll 4
      for (int s = 0; s < kSources; ++s) {
        bytes = _mm512_mask_permutexvar_epi8(bytes, lanes[s], index[s],
                                             _mm512_maskz_loadu_epi8(there, src + offset[s]));
      }
    }
    _mm512_mask_storeu_epi8(dst, stored, bytes);
    src += src_stride;
    dst += dst_stride;
  }
}

void shuffle_part(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows,
                  uint8_t* dst, int64_t dst_stride) {
  for (int64_t b = 0; b * kWideBlock < plan.length; ++b) {
    const int count = plan.wide_first[b + 1] - plan.wide_first[b];
    const auto block = count == 1   ? shuffle_block<1>
                       : count == 2 ? shuffle_block<2>
                       : count == 3 ? shuffle_block<3>
                       : count == 4 ? shuffle_block<4>
                                    : shuffle_block<0>;
    block(plan, b, src, src_stride, rows, dst, dst_stride);
  }
}

}  // namespace

void row_sums(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
              int64_t length, int32_t* sums) {
  const Taps t{tap_offset, taps, length};
  if (length <= 32) return short_row_sums(rows, m, t, sums);
  const __mmask64 tail = (__mmask64{1} << (length % 64)) - 1;
  int64_t r = 0;
  for (; r + 4 <= m; r += 4) {
    const __m512i a = sum_row(rows[r], t, tail), b = sum_row(rows[r + 1], t, tail);
    const __m512i c = sum_row(rows[r + 2], t, tail), d = sum_row(rows[r + 3], t, tail);
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    const __m512i all =
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(sums + r),
        _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
  }
  for (; r < m; ++r) sums[r] = _mm512_reduce_add_epi32(sum_row(rows[r], t, tail));
}

void shuffle(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows,
             uint8_t* dst, int64_t dst_stride) {
  // So many rows that both sides of them stay in the first-level cache while the blocks pass.
  const int64_t part = std::max<int64_t>(kShuffledBytes / (plan.src_length + plan.length), 8);
  for (int64_t r = 0; r < rows; r += part) {
    shuffle_part(plan, src + r * src_stride, src_stride, std::min(part, rows - r),
                 dst + r * dst_stride, dst_stride);
  }
}

}  // namespace defakeq::avx512vnni

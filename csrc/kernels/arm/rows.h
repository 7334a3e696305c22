// Sums, shuffles and look-ups of bytes, for every ARM tier.
#pragma once

#include "kernels/arm/finish.h"
#include "kernels/simd/tiles.h"

namespace defakeq {
namespace {

// Adds the bytes of x where `ones` has a one, not a zero.
DQ_INLINE int32x4_t add_bytes(int32x4_t sum, int8x16_t x, int8x16_t ones) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, x, ones);
#else
  return vpadalq_s16(sum, vpaddlq_s8(vmulq_s8(x, ones)));
#endif
}

// R rows of runs of at least 16 bytes. `tail`: ones where the last 16 bytes of a run have not been
// added before.
template <int R>
DQ_INLINE void sum_long_rows(const int8_t* const* rows, const int64_t* tap_offset, int taps,
                             int64_t length, int8x16_t tail, int32x4_t (&sum)[4]) {
  const int8x16_t ones = vdupq_n_s8(1);
  for (int t = 0; t < taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) x[r] = rows[r] + tap_offset[t];
    int64_t k = 0;
    for (; k + kBlock <= length; k += kBlock) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sum[r] = add_bytes(sum[r], vld1q_s8(x[r] + k), ones);
    }
    if (k == length) continue;
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      sum[r] = add_bytes(sum[r], vld1q_s8(x[r] + length - kBlock), tail);
    }
  }
}

template <int R>
DQ_INLINE void sum_short_rows(const int8_t* const* rows, const int64_t* tap_offset, int taps,
                              int64_t length, int32x4_t (&sum)[4]) {
  const int8x16_t ones = vdupq_n_s8(1);
  for (int t = 0; t < taps; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      sum[r] = add_bytes(sum[r], load_bytes(rows[r] + tap_offset[t], length), ones);
    }
  }
}

inline void row_sums_of(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
                        int64_t length, int32_t* sums) {
  static constexpr int8_t kOnes[2 * kBlock] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const int8x16_t tail = vld1q_s8(kOnes + length % kBlock);
  const auto run = [&]<int R>(int64_t r, int32x4_t(&sum)[4]) __attribute__((always_inline)) {
    for (auto& s : sum) s = vdupq_n_s32(0);
    if (length >= kBlock) {
      sum_long_rows<R>(rows + r, tap_offset, taps, length, tail, sum);
    } else {
      sum_short_rows<R>(rows + r, tap_offset, taps, length, sum);
    }
  };
  int32x4_t sum[4];
  int64_t r = 0;
  for (; r + 4 <= m; r += 4) {
    run.template operator()<4>(r, sum);
    vst1q_s32(sums + r, vpaddq_s32(vpaddq_s32(sum[0], sum[1]), vpaddq_s32(sum[2], sum[3])));
  }
  for (; r < m; ++r) {
    run.template operator()<1>(r, sum);
    sums[r] = vaddvq_s32(sum[0]);
  }
}

// Bytes index[i] of kSources vectors of 16 as one; an index past them leaves fill[i].
template <int kSources>
DQ_INLINE uint8x16_t pick_bytes(const int8x16_t (&from)[4], uint8x16_t index, uint8x16_t fill) {
  const auto part = [&](int s)
                        __attribute__((always_inline)) { return vreinterpretq_u8_s8(from[s]); };
  if constexpr (kSources == 1) {
    return vqtbx1q_u8(fill, part(0), index);
  } else if constexpr (kSources == 2) {
    return vqtbx2q_u8(fill, {{part(0), part(1)}}, index);
  } else if constexpr (kSources == 3) {
    return vqtbx3q_u8(fill, {{part(0), part(1), part(2)}}, index);
  } else {
    return vqtbx4q_u8(fill, {{part(0), part(1), part(2), part(3)}}, index);
  }
}

struct ShuffleRows {
  const int8_t* src;
  int64_t src_stride;
  int64_t rows;
  int8_t* dst;
  int64_t dst_stride;
};

// A block of n bytes, for all rows: what it needs stays in registers while they pass.
template <int kSources>
inline void shuffle_block(const ShuffleSource* sources, const uint8_t* fill, const ShuffleRows& g,
                          int64_t n) {
  const uint8x16_t start = vld1q_u8(fill);
  uint8x16_t index = vdupq_n_u8(0xff);
  const int8_t* from[4];
#pragma GCC unroll 4
  for (int s = 0; s < kSources; ++s) {
    const uint8x16_t mask = vld1q_u8(sources[s].mask);
    index = vbslq_u8(vcltq_u8(mask, vdupq_n_u8(kBlock)),
                     vaddq_u8(mask, vdupq_n_u8(static_cast<uint8_t>(s * kBlock))), index);
    from[s] = g.src + sources[s].offset;
  }
  int8_t* dst = g.dst;
  const auto next = [&]() __attribute__((always_inline)) {
    int8x16_t bytes[4];
#pragma GCC unroll 4
    for (int s = 0; s < kSources; ++s) bytes[s] = load_step(from[s], g.src_stride);
    return vreinterpretq_s8_u8(pick_bytes<kSources>(bytes, index, start));
  };
  int64_t r = g.rows;
  if (n < kBlock) {
    for (; r > 0; --r, dst += g.dst_stride) store_bytes(dst, n, next());
    return;
  }
  for (; r >= 4; r -= 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store_step(dst, g.dst_stride, next());
  }
  for (; r > 0; --r) store_step(dst, g.dst_stride, next());
}

// A block of any number of sources.
inline void shuffle_many(const ShuffleSource* sources, int count, const uint8_t* fill,
                         const ShuffleRows& g, int64_t n) {
  const uint8x16_t start = vld1q_u8(fill);
  for (int64_t r = 0; r < g.rows; ++r) {
    uint8x16_t bytes = start;
    for (int s = 0; s < count; ++s) {
      const int8x16_t from = vld1q_s8(g.src + r * g.src_stride + sources[s].offset);
      bytes = vqtbx1q_u8(bytes, vreinterpretq_u8_s8(from), vld1q_u8(sources[s].mask));
    }
    store_bytes(g.dst + r * g.dst_stride, n, vreinterpretq_s8_u8(bytes));
  }
}

inline void shuffle_rows(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride,
                         int64_t rows, uint8_t* dst, int64_t dst_stride) {
  ShuffleRows g = {reinterpret_cast<const int8_t*>(src), src_stride, rows,
                   reinterpret_cast<int8_t*>(dst), dst_stride};
  for (int64_t b = 0; b * kBlock < plan.length; ++b, g.dst += kBlock) {
    const ShuffleSource* sources = plan.sources + plan.first[b];
    const int count = plan.first[b + 1] - plan.first[b];
    const uint8_t* fill = plan.fill + b * kBlock;
    const int64_t left = plan.length - b * kBlock, n = left < kBlock ? left : kBlock;
    if (count == 0 || count > 4) {
      shuffle_many(sources, count, fill, g, n);
    } else {
      simd::with_rows<4>(count,
                         [&]<int kSources>() { shuffle_block<kSources>(sources, fill, g, n); });
    }
  }
}

}  // namespace
}  // namespace defakeq

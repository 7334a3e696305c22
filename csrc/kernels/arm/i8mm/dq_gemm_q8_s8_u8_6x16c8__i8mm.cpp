// usmmla: 2 rows by 2 outputs by 8 positions an instruction, unsigned codes as they are. Codes are
// arranged by pairs of steps to [8 pairs of outputs][2 outputs][8]; the last step of an odd run
// stays [16][4]. Sums of a pair are lanes output 0 of both rows, output 1 of both rows.
#include "kernels/arm/finish.h"
#include "kernels/arm/kernels.h"
#include "kernels/simd/tiles.h"

namespace defakeq::i8mm {

namespace {

constexpr int kRows = 6;
constexpr int kRowsAsTheyAre = 4;  // where rows are not paired beforehand
constexpr int kPairs = kBlock / 2;

// Two rows of 8 activations each, the second one zero when there is none.
template <int R>
DQ_INLINE void pair_rows(const int8x16_t (&v)[R], int8x16_t (&low)[(R + 1) / 2],
                         int8x16_t (&high)[(R + 1) / 2]) {
  const auto wide = [](int8x16_t x) { return vreinterpretq_s64_s8(x); };
#pragma GCC unroll 3
  for (int p = 0; p < (R + 1) / 2; ++p) {
    const int64x2_t a = wide(v[2 * p]);
    const int64x2_t b = 2 * p + 1 < R ? wide(v[2 * p + 1 < R ? 2 * p + 1 : 0]) : vdupq_n_s64(0);
    low[p] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
    high[p] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
  }
}

template <int P>
DQ_INLINE void add_eight(const uint8_t* w, const int8x16_t (&x)[P], int32x4_t (&acc)[P][kPairs]) {
#pragma GCC unroll 8
  for (int i = 0; i < kPairs; ++i) {
    const uint8x16_t wv = vld1q_u8(w + i * 16);
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      // the left operand is unsigned
      __asm__("usmmla %0.4s, %1.16b, %2.16b" : "+w"(acc[p][i]) : "w"(wv), "w"(x[p]));
    }
  }
}

// The last 4 positions of an odd run, their codes as [16][4].
template <int R>
DQ_INLINE void add_four(const uint8_t* w, const int8_t* const (&x)[R], int64_t k,
                        int32x4_t (&acc)[(R + 1) / 2][kPairs]) {
  constexpr int P = (R + 1) / 2;
  int8x16_t v[R], low[P], high[P];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    int32_t four;
    std::memcpy(&four, x[r] + k, 4);
    v[r] = vreinterpretq_s8_s32(vsetq_lane_s32(four, vdupq_n_s32(0), 0));
  }
  pair_rows<R>(v, low, high);
  uint8_t wide[kPairs * 16];
  const uint32x4_t zero = vdupq_n_u32(0);
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const uint32x4_t fours = vreinterpretq_u32_u8(vld1q_u8(w + i * 16));
    vst1q_u8(wide + i * 32, vreinterpretq_u8_u32(vzip1q_u32(fours, zero)));
    vst1q_u8(wide + i * 32 + 16, vreinterpretq_u8_u32(vzip2q_u32(fours, zero)));
  }
  add_eight<P>(wide, low, acc);
}

// Bytes of a tile's rows that are brought into pairs beforehand, for both blocks of a strip.
constexpr int64_t kPanel = 36 * 1024;

// Whether every tap is whole eights, and the rows of a tile fit.
DQ_INLINE bool pairs_ahead(const GemmS8Args& a) {
  return a.steps % 2 == 0 && a.taps * a.steps * 4 * kRows <= kPanel;
}

// Six rows of `count` times 32 bytes.
DQ_INLINE void pair_six(const int8_t* const (&x)[kRows], int64_t count, int8_t* panel) {
  if (count == 0) return;
  const int8_t *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3], *x4 = x[4], *x5 = x[5];
  __asm__ volatile(
      "1:\n\t"
      "ldp q0, q1, [%[x0]], #32\n\t"
      "ldp q2, q3, [%[x1]], #32\n\t"
      "ldp q4, q5, [%[x2]], #32\n\t"
      "ldp q6, q7, [%[x3]], #32\n\t"
      "ldp q16, q17, [%[x4]], #32\n\t"
      "ldp q18, q19, [%[x5]], #32\n\t"
      "subs %[count], %[count], #1\n\t"
      "zip1 v20.2d, v0.2d, v2.2d\n\t"
      "zip1 v21.2d, v4.2d, v6.2d\n\t"
      "zip1 v22.2d, v16.2d, v18.2d\n\t"
      "zip2 v23.2d, v0.2d, v2.2d\n\t"
      "zip2 v24.2d, v4.2d, v6.2d\n\t"
      "zip2 v25.2d, v16.2d, v18.2d\n\t"
      "zip1 v26.2d, v1.2d, v3.2d\n\t"
      "zip1 v27.2d, v5.2d, v7.2d\n\t"
      "zip1 v28.2d, v17.2d, v19.2d\n\t"
      "zip2 v29.2d, v1.2d, v3.2d\n\t"
      "zip2 v30.2d, v5.2d, v7.2d\n\t"
      "zip2 v31.2d, v17.2d, v19.2d\n\t"
      "st1 {v20.16b, v21.16b, v22.16b, v23.16b}, [%[panel]], #64\n\t"
      "st1 {v24.16b, v25.16b, v26.16b, v27.16b}, [%[panel]], #64\n\t"
      "st1 {v28.16b, v29.16b, v30.16b, v31.16b}, [%[panel]], #64\n\t"
      "b.ne 1b\n\t"
      : [x0] "+r"(x0), [x1] "+r"(x1), [x2] "+r"(x2), [x3] "+r"(x3), [x4] "+r"(x4), [x5] "+r"(x5),
        [count] "+r"(count), [panel] "+r"(panel)
      :
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19",
        "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

// All taps of R rows as [eight positions][pair of rows][16].
template <int R>
DQ_INLINE void pair_ahead(const GemmS8Args& a, int64_t row, int8_t* panel) {
  constexpr int P = (R + 1) / 2;
  const int64_t length = a.steps * 4;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    int8x16_t v[R], low[P], high[P];
    int64_t k = 0;
    if constexpr (R == kRows) {
      k = length / 32 * 32;
      pair_six(x, k / 32, panel);
      panel += k * kRows;
    }
    for (; k + 16 <= length; k += 16, panel += 2 * P * 16) {
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) v[r] = vld1q_s8(x[r] + k);
      pair_rows<R>(v, low, high);
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) {
        vst1q_s8(panel + p * 16, low[p]);
        vst1q_s8(panel + (P + p) * 16, high[p]);
      }
    }
    if (k < length) {
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) v[r] = vcombine_s8(vld1_s8(x[r] + k), vdup_n_s8(0));
      pair_rows<R>(v, low, high);
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) vst1q_s8(panel + p * 16, low[p]);
      panel += P * 16;
    }
  }
}

template <int P>
using PairSums = int32x4_t[P][kPairs];

template <int P>
DQ_INLINE void start_at(const int32_t* start, PairSums<P>& acc) {
#pragma GCC unroll 2
  for (auto& pair : acc) {
#pragma GCC unroll 8
    for (int i = 0; i < kPairs; ++i) pair[i] = vld1q_s32(start + i * 4);
  }
}

// The whole reduction of rows that are paired, from `start` on, which is in pairs too.
template <int P>
DQ_INLINE void sum_pairs(int64_t eights, const uint8_t* w, const int8_t* panel,
                         const int32_t* start, PairSums<P>& acc) {
  start_at<P>(start, acc);
  const auto add = [&]() __attribute__((always_inline)) {
    int8x16_t x[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) x[p] = vld1q_s8(panel + p * 16);
    add_eight<P>(w, x, acc);
    panel += P * 16;
    w += 128;
  };
  for (; eights >= 4; eights -= 4) {
    add();
    add();
    add();
    add();
  }
  for (; eights > 0; --eights) add();
}

// Three pairs of rows. 24 sums, v8 to v31, leave registers for three vectors of activations and
// four of codes, which one instruction each loads; GCC loads every vector and copies some.
#define DQ_MUL(w, a, b, c)  \
  "usmmla v" #a ".4s, v" #w \
  ".16b, v0.16b\n\t"        \
  "usmmla v" #b ".4s, v" #w \
  ".16b, v1.16b\n\t"        \
  "usmmla v" #c ".4s, v" #w ".16b, v2.16b\n\t"
#define DQ_CODES "ld1 {v3.16b, v4.16b, v5.16b, v6.16b}, [x9], #64\n\t"
#define DQ_EIGHT                                                                     \
  "ld1 {v0.16b, v1.16b, v2.16b}, [x10], #48\n\t" DQ_CODES DQ_MUL(3, 8, 16, 24)       \
      DQ_MUL(4, 9, 17, 25) DQ_MUL(5, 10, 18, 26) DQ_MUL(6, 11, 19, 27)               \
          DQ_CODES DQ_MUL(3, 12, 20, 28) DQ_MUL(4, 13, 21, 29) DQ_MUL(5, 14, 22, 30) \
              DQ_MUL(6, 15, 23, 31)
#define DQ_START(a, b, c) "mov v" #b ".16b, v" #a ".16b\n\tmov v" #c ".16b, v" #a ".16b\n\t"
#define DQ_SUM(p, i, v) register int32x4_t s##p##i __asm__("v" #v)
#define DQ_SUMS(p, a, b, c, d, e, f, g, h) \
  DQ_SUM(p, 0, a);                         \
  DQ_SUM(p, 1, b);                         \
  DQ_SUM(p, 2, c);                         \
  DQ_SUM(p, 3, d);                         \
  DQ_SUM(p, 4, e);                         \
  DQ_SUM(p, 5, f);                         \
  DQ_SUM(p, 6, g);                         \
  DQ_SUM(p, 7, h)
#define DQ_RESULTS(p)                                                                       \
  "=w"(s##p##0), "=w"(s##p##1), "=w"(s##p##2), "=w"(s##p##3), "=w"(s##p##4), "=w"(s##p##5), \
      "=w"(s##p##6), "=w"(s##p##7)
#define DQ_ALL(p) {s##p##0, s##p##1, s##p##2, s##p##3, s##p##4, s##p##5, s##p##6, s##p##7}

DQ_INLINE void sum_three_pairs(int64_t eights, const uint8_t* w, const int8_t* panel,
                               const int32_t* start, PairSums<3>& acc) {
  DQ_SUMS(0, 8, 9, 10, 11, 12, 13, 14, 15);
  DQ_SUMS(1, 16, 17, 18, 19, 20, 21, 22, 23);
  DQ_SUMS(2, 24, 25, 26, 27, 28, 29, 30, 31);
  // registers by name, since there may be 30 operands
  __asm__ volatile(
      "ldp q8, q9, [%[start]]\n\t"
      "ldp q10, q11, [%[start], #32]\n\t"
      "ldp q12, q13, [%[start], #64]\n\t"
      "ldp q14, q15, [%[start], #96]\n\t"
      DQ_START(8, 16, 24) DQ_START(9, 17, 25) DQ_START(10, 18, 26) DQ_START(11, 19, 27)
      DQ_START(12, 20, 28) DQ_START(13, 21, 29) DQ_START(14, 22, 30) DQ_START(15, 23, 31)
      "mov x9, %[w]\n\t"
      "mov x10, %[panel]\n\t"
      "lsr x11, %[eights], #2\n\t"
      "cbz x11, 2f\n\t"
      "1:\n\t"
      DQ_EIGHT DQ_EIGHT DQ_EIGHT DQ_EIGHT
      "subs x11, x11, #1\n\t"
      "b.ne 1b\n\t"
      "2:\n\t"
      "ands x11, %[eights], #3\n\t"
      "b.eq 4f\n\t"
      "3:\n\t"
      DQ_EIGHT
      "subs x11, x11, #1\n\t"
      "b.ne 3b\n\t"
      "4:\n\t"
      : DQ_RESULTS(0), DQ_RESULTS(1), DQ_RESULTS(2)
      : [w] "r"(w), [panel] "r"(panel), [start] "r"(start), [eights] "r"(eights)
      : "memory", "cc", "x9", "x10", "x11", "v0", "v1", "v2", "v3", "v4", "v5", "v6");
  const PairSums<3> sums = {DQ_ALL(0), DQ_ALL(1), DQ_ALL(2)};
#pragma GCC unroll 3
  for (int p = 0; p < 3; ++p) {
#pragma GCC unroll 8
    for (int i = 0; i < kPairs; ++i) acc[p][i] = sums[p][i];
  }
}
#undef DQ_MUL
#undef DQ_CODES
#undef DQ_EIGHT
#undef DQ_START
#undef DQ_SUM
#undef DQ_SUMS
#undef DQ_RESULTS
#undef DQ_ALL

// The whole reduction of rows as they are.
template <int R>
DQ_INLINE void sum_rows(const GemmS8Args& a, int64_t row, const uint8_t* w, const int32_t* start,
                        PairSums<(R + 1) / 2>& acc) {
  constexpr int P = (R + 1) / 2;
  start_at<(R + 1) / 2>(start, acc);
  const int64_t length = a.steps * 4;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    int64_t k = 0;
    for (; k + 16 <= length; k += 16, w += 256) {
      int8x16_t v[R], low[P], high[P];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) v[r] = vld1q_s8(x[r] + k);
      pair_rows<R>(v, low, high);
      add_eight<P>(w, low, acc);
      add_eight<P>(w + 128, high, acc);
    }
    if (k + 8 <= length) {
      int8x16_t v[R], low[P], high[P];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) v[r] = vcombine_s8(vld1_s8(x[r] + k), vdup_n_s8(0));
      pair_rows<R>(v, low, high);
      add_eight<P>(w, low, acc);
      k += 8;
      w += 128;
    }
    if (k < length) {
      add_four<R>(w, x, k, acc);
      w += 64;
    }
  }
}

// What belongs to a block's outputs, each twice: for both rows of a pair.
struct PairLanes {
  int32_t start[2 * kBlock], zero[2 * kBlock];
  float scale[2 * kBlock], bias[2 * kBlock];
};

template <class T>
DQ_INLINE void twice(const T* from, T* to) {
  for (int i = 0; i < kBlock; ++i) to[2 * i] = to[2 * i + 1] = from[i];
}

DQ_INLINE void set_lanes(const GemmS8Args& a, const Finish& f, int block, PairLanes& lanes) {
  const int col = block * kBlock;
  twice(start_of(a, f, block), lanes.start);
  twice(a.zero_point + col, lanes.zero);
  twice(a.scale + col, lanes.scale);
  twice(a.bias + col, lanes.bias);
}

// The plain int8 epilogue without a residual or a bias a row: pairs part as bytes.
template <bool kBare, int R>
DQ_INLINE void finish_pairs(const GemmS8Args& a, const PlainInt8& plain, const PairLanes& lanes,
                            int64_t row, int block, PairSums<(R + 1) / 2>& acc) {
  constexpr int P = (R + 1) / 2;
  int32x4_t row_sum[P];
#pragma GCC unroll 3
  for (int p = 0; p < P; ++p) {
    int64_t both = 0;
    std::memcpy(&both, a.row_sum + row + 2 * p, 2 * p + 1 < R ? 8 : 4);
    row_sum[p] = vreinterpretq_s32_s64(vdupq_n_s64(both));
  }
  int16x8_t half[P][kParts];
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    int32x4_t y[P][2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const int at = 4 * (2 * i + j);
      const int32x4_t zero = vld1q_s32(lanes.zero + at);
      const float32x4_t scale = vld1q_f32(lanes.scale + at);
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) {
        const int32x4_t v = vmlsq_s32(acc[p][2 * i + j], zero, row_sum[p]);
        const float32x4_t z = vfmaq_f32(vld1q_f32(lanes.bias + at), vcvtq_f32_s32(v), scale);
        y[p][j] = vcvtnq_s32_f32(kBare ? z : vmulq_n_f32(z, plain.inv_scale));
      }
    }
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      half[p][i] =
          vqaddq_s16(vqmovn_high_s32(vqmovn_s32(y[p][0]), y[p][1]), vdupq_n_s16(plain.zero_point));
      // one after the other: GCC starts all at once, and has no registers for them
      if (i + 1 < kParts) {
        int32x4_t &even = acc[p][2 * i + 2], &odd = acc[p][2 * i + 3];
        __asm__("" : "+w"(even), "+w"(odd), "+w"(half[p][i]));
      }
    }
  }
  const int col = block * kBlock;
  int8_t* out = static_cast<int8_t*>(a.out) + row * a.out_stride + col;
#pragma GCC unroll 3
  for (int p = 0; p < P; ++p) {
    int8x16_t low = vqmovn_high_s16(vqmovn_s16(half[p][0]), half[p][1]);
    int8x16_t high = vqmovn_high_s16(vqmovn_s16(half[p][2]), half[p][3]);
    if constexpr (!kBare) {
      const int8x16_t lowest = vdupq_n_s8(plain.lowest), highest = vdupq_n_s8(plain.highest);
      low = vminq_s8(vmaxq_s8(low, lowest), highest);
      high = vminq_s8(vmaxq_s8(high, lowest), highest);
    }
    store_bytes(out, a.n - col, vuzp1q_s8(low, high));
    out += a.out_stride;
    if (2 * p + 1 < R) store_bytes(out, a.n - col, vuzp2q_s8(low, high));
    out += a.out_stride;
  }
}

// `panel`: the rows in pairs, or null.
template <int R>
DQ_INLINE void tile(const GemmS8Args& a, const Finish& f, const PairLanes& lanes, int64_t row,
                    int block, const int8_t* panel) {
  constexpr int P = (R + 1) / 2;
  PairSums<P> acc;
  const uint8_t* w = a.w + block * a.w_stride;
  if constexpr (R <= kRowsAsTheyAre) {
    panel != nullptr ? sum_pairs<P>(a.taps * a.steps / 2, w, panel, lanes.start, acc)
                     : sum_rows<R>(a, row, w, lanes.start, acc);
  } else {
    sum_three_pairs(a.taps * a.steps / 2, w, panel, lanes.start, acc);
  }
  if (f.int8_only && a.post.residual == nullptr && a.row_bias == nullptr) {
    f.plain.bare ? finish_pairs<true, R>(a, f.plain, lanes, row, block, acc)
                 : finish_pairs<false, R>(a, f.plain, lanes, row, block, acc);
    return;
  }
  int32x4_t rows[R][kParts];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) {
      const int32x4_t even = acc[r / 2][2 * i], odd = acc[r / 2][2 * i + 1];
      rows[r][i] = r % 2 == 0 ? vuzp1q_s32(even, odd) : vuzp2q_s32(even, odd);
    }
  }
  finish_tile<R>(a, f, row, block, rows);
}

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  const Finish f = finish_of(a, 0);
  PairLanes lanes[kTileBlocks];
  for (int b = 0; b < a.blocks; ++b) set_lanes(a, f, b, lanes[b]);
  if (pairs_ahead(a)) {
    alignas(64) int8_t panel[kPanel];
    simd::for_tiles<kRows>(a.m, [&]<int R>(int64_t row) {
      pair_ahead<R>(a, row, panel);
      for (int b = 0; b < a.blocks; ++b) tile<R>(a, f, lanes[b], row, b, panel);
    });
  } else {
    simd::for_tiles<kRowsAsTheyAre>(a.m, [&]<int R>(int64_t row) {
      for (int b = 0; b < a.blocks; ++b) tile<R>(a, f, lanes[b], row, b, nullptr);
    });
  }
  if (f.int8_only) replace_outputs(a.post, a.out, a.out_stride, a.m, a.n);
}

void arrange_codes(uint8_t* codes, int, int64_t steps, int64_t) {
  for (int64_t s = 0; s + 2 <= steps; s += 2, codes += 128) {
    uint32x4_t first[kParts], second[kParts];
    for (int i = 0; i < kParts; ++i) {
      first[i] = vreinterpretq_u32_u8(vld1q_u8(codes + i * 16));
      second[i] = vreinterpretq_u32_u8(vld1q_u8(codes + 64 + i * 16));
    }
    for (int i = 0; i < kParts; ++i) {
      vst1q_u8(codes + i * 32, vreinterpretq_u8_u32(vzip1q_u32(first[i], second[i])));
      vst1q_u8(codes + i * 32 + 16, vreinterpretq_u8_u32(vzip2q_u32(first[i], second[i])));
    }
  }
}

}  // namespace defakeq::i8mm

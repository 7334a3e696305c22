// sdot by lane: 5 rows of 16 activations in registers, 16 outputs. Both operands are signed, so
// 8-bit codes are arranged as code - 128; fewer bits are small enough as they are.
#include "kernels/arm/finish.h"
#include "kernels/arm/kernels.h"
#include "kernels/simd/tiles.h"

namespace defakeq::neondot {

namespace {

constexpr int kRows = 5;

// Step kStep of the 16 activations x[r].
template <int kStep, int R>
DQ_INLINE void add_step(const int8_t* w, const int8x16_t (&x)[R], int32x4_t (&acc)[R][kParts]) {
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const int8x16_t wv = vld1q_s8(w + kStep * 64 + i * 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][i] = vdotq_laneq_s32(acc[r][i], wv, x[r], kStep);
  }
}

template <int R>
DQ_INLINE void product(const GemmS8Args& a, int64_t row, int block, const int32_t* start,
                       int32x4_t (&acc)[R][kParts]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; ++i) acc[r][i] = vld1q_s32(start + i * 4);
  }
  const auto* w = reinterpret_cast<const int8_t*>(a.w + block * a.w_stride);
  const int64_t length = a.steps * 4;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    int64_t k = 0;
    for (; k + 16 <= length; k += 16, w += 256) {
      int8x16_t xv[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) xv[r] = vld1q_s8(x[r] + k);
      add_step<0, R>(w, xv, acc);
      add_step<1, R>(w, xv, acc);
      add_step<2, R>(w, xv, acc);
      add_step<3, R>(w, xv, acc);
    }
    for (; k < length; k += 4, w += 64) {
      int8x16_t xv[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, x[r] + k, 4);
        xv[r] = vreinterpretq_s8_s32(vdupq_n_s32(four));
      }
      add_step<0, R>(w, xv, acc);
    }
  }
}

// The whole tile in assembly: with 20 sums, 5 activations and 4 weights in registers GCC copies
// some of them every step. v0-v4: activations, v5-v8 and v9-v11: weights, of which four or three
// are loaded ahead by one instruction, v12-v31: sums.
#define DQ_DOT(w, lane, a0, a1, a2, a3, a4)     \
  "sdot v" #a0 ".4s, v" #w ".16b, v0.4b[" #lane \
  "]\n\t"                                       \
  "sdot v" #a1 ".4s, v" #w ".16b, v1.4b[" #lane \
  "]\n\t"                                       \
  "sdot v" #a2 ".4s, v" #w ".16b, v2.4b[" #lane \
  "]\n\t"                                       \
  "sdot v" #a3 ".4s, v" #w ".16b, v3.4b[" #lane \
  "]\n\t"                                       \
  "sdot v" #a4 ".4s, v" #w ".16b, v4.4b[" #lane "]\n\t"
// Outputs 0-3, 4-7, 8-11 and 12-15 of the block.
#define DQ_DOT0(w, lane) DQ_DOT(w, lane, 12, 16, 20, 24, 28)
#define DQ_DOT1(w, lane) DQ_DOT(w, lane, 13, 17, 21, 25, 29)
#define DQ_DOT2(w, lane) DQ_DOT(w, lane, 14, 18, 22, 26, 30)
#define DQ_DOT3(w, lane) DQ_DOT(w, lane, 15, 19, 23, 27, 31)
#define DQ_LOAD4 "ld1 {v5.16b, v6.16b, v7.16b, v8.16b}, [%[w]], #64\n\t"
#define DQ_LOAD3 "ld1 {v9.16b, v10.16b, v11.16b}, [%[w]], #48\n\t"
#define DQ_LOAD2 "ld1 {v5.16b, v6.16b}, [%[w]], #32\n\t"
#define DQ_COPY(to, from) "mov v" #to ".16b, v" #from ".16b\n\t"
// A row of the plain int8 epilogue: v0-v3 zero points, v4-v7 scales, v8 row sums, v9 the output's
// zero point.
#define DQ_FINISH(a, b, c, d, lane)    \
  "mls v" #a ".4s, v0.4s, v8.s[" #lane \
  "]\n\t"                              \
  "mls v" #b ".4s, v1.4s, v8.s[" #lane \
  "]\n\t"                              \
  "mls v" #c ".4s, v2.4s, v8.s[" #lane \
  "]\n\t"                              \
  "mls v" #d ".4s, v3.4s, v8.s[" #lane \
  "]\n\t"                              \
  "ldp q10, q11, [%[x2]]\n\t"          \
  "scvtf v" #a ".4s, v" #a             \
  ".4s\n\t"                            \
  "scvtf v" #b ".4s, v" #b             \
  ".4s\n\t"                            \
  "scvtf v" #c ".4s, v" #c             \
  ".4s\n\t"                            \
  "scvtf v" #d ".4s, v" #d             \
  ".4s\n\t"                            \
  "fmla v10.4s, v" #a                  \
  ".4s, v4.4s\n\t"                     \
  "fmla v11.4s, v" #b                  \
  ".4s, v5.4s\n\t"                     \
  "fcvtns v" #a                        \
  ".4s, v10.4s\n\t"                    \
  "fcvtns v" #b                        \
  ".4s, v11.4s\n\t"                    \
  "ldp q10, q11, [%[x2], #32]\n\t"     \
  "fmla v10.4s, v" #c                  \
  ".4s, v6.4s\n\t"                     \
  "fmla v11.4s, v" #d                  \
  ".4s, v7.4s\n\t"                     \
  "fcvtns v" #c                        \
  ".4s, v10.4s\n\t"                    \
  "fcvtns v" #d                        \
  ".4s, v11.4s\n\t"                    \
  "sqxtn v" #a ".4h, v" #a             \
  ".4s\n\t"                            \
  "sqxtn v" #c ".4h, v" #c             \
  ".4s\n\t"                            \
  "sqxtn2 v" #a ".8h, v" #b            \
  ".4s\n\t"                            \
  "sqxtn2 v" #c ".8h, v" #d            \
  ".4s\n\t"                            \
  "sqadd v" #a ".8h, v" #a             \
  ".8h, v9.8h\n\t"                     \
  "sqadd v" #c ".8h, v" #c             \
  ".8h, v9.8h\n\t"                     \
  "sqxtn v" #a ".8b, v" #a             \
  ".8h\n\t"                            \
  "sqxtn2 v" #a ".16b, v" #c           \
  ".8h\n\t"                            \
  "st1 {v" #a ".16b}, [%[x4]], %[offset]\n\t"
#define DQ_STORE(v0, v1, at) "stp q" #v0 ", q" #v1 ", [%[acc], #" #at "]\n\t"

// What the epilogue in assembly reads, in this order.
struct Tail {
  const int32_t* zero;  // zero points of the codes as they are arranged
  const float *scale, *bias;
  const int32_t* row_sum;
  int8_t* out;
  int64_t out_stride, zero_point;
};

// The sums go to acc, or as int8 where `tail` says.
DQ_INLINE void product(const GemmS8Args& a, int64_t row, int block, const int32_t* start,
                       const Tail* tail, int32x4_t (&acc)[5][kParts]) {
  const uint8_t* w = a.w + block * a.w_stride;
  const int64_t* tap_offset = a.tap_offset;
  int64_t taps = a.taps, count, offset;
  const int8_t *x0, *x1, *x2, *x3, *x4;
  __asm__ volatile(
"ldp q12, q13, [%[start]]\n\t"
      "ldp q14, q15, [%[start], #32]\n\t"
      DQ_COPY(16, 12) DQ_COPY(17, 13) DQ_COPY(18, 14) DQ_COPY(19, 15)
      DQ_COPY(20, 12) DQ_COPY(21, 13) DQ_COPY(22, 14) DQ_COPY(23, 15)
      DQ_COPY(24, 12) DQ_COPY(25, 13) DQ_COPY(26, 14) DQ_COPY(27, 15)
      DQ_COPY(28, 12) DQ_COPY(29, 13) DQ_COPY(30, 14) DQ_COPY(31, 15)
      "1:\n\t"
      "ldr %[offset], [%[tap_offset]], #8\n\t"
      "ldp %[x0], %[x1], [%[rows]]\n\t"
      "ldp %[x2], %[x3], [%[rows], #16]\n\t"
      "ldr %[x4], [%[rows], #32]\n\t"
      "add %[x0], %[x0], %[offset]\n\t"
      "add %[x1], %[x1], %[offset]\n\t"
      "add %[x2], %[x2], %[offset]\n\t"
      "add %[x3], %[x3], %[offset]\n\t"
      "add %[x4], %[x4], %[offset]\n\t"
      "lsr %[count], %[steps], #2\n\t"
      "cbz %[count], 3f\n\t"
      "2:\n\t"
      DQ_LOAD4
      "ldr q0, [%[x0]], #16\n\t"
      "ldr q1, [%[x1]], #16\n\t"
      "ldr q2, [%[x2]], #16\n\t"
      "ldr q3, [%[x3]], #16\n\t"
      "ldr q4, [%[x4]], #16\n\t"
      "subs %[count], %[count], #1\n\t"
      DQ_LOAD3 DQ_DOT0(5, 0) DQ_DOT1(6, 0) DQ_DOT2(7, 0) DQ_DOT3(8, 0)
      DQ_LOAD4 DQ_DOT0(9, 1) DQ_DOT1(10, 1) DQ_DOT2(11, 1)
      DQ_LOAD3 DQ_DOT3(5, 1) DQ_DOT0(6, 2) DQ_DOT1(7, 2) DQ_DOT2(8, 2)
      DQ_LOAD2 DQ_DOT3(9, 2) DQ_DOT0(10, 3) DQ_DOT1(11, 3)
      DQ_DOT2(5, 3) DQ_DOT3(6, 3)
      "b.ne 2b\n\t"
      "3:\n\t"
      "ands %[count], %[steps], #3\n\t"
      "b.eq 5f\n\t"
      "4:\n\t"
      "ldr s0, [%[x0]], #4\n\t"
      "ldr s1, [%[x1]], #4\n\t"
      "ldr s2, [%[x2]], #4\n\t"
      "ldr s3, [%[x3]], #4\n\t"
      "ldr s4, [%[x4]], #4\n\t"
      "subs %[count], %[count], #1\n\t"
      DQ_LOAD4 DQ_DOT0(5, 0) DQ_DOT1(6, 0) DQ_DOT2(7, 0) DQ_DOT3(8, 0)
      "b.ne 4b\n\t"
      "5:\n\t"
      "subs %[taps], %[taps], #1\n\t"
      "b.ne 1b\n\t"
      "cbz %[tail], 6f\n\t"
      "ldp %[x0], %[x1], [%[tail]]\n\t"
      "ldp %[x2], %[x3], [%[tail], #16]\n\t"
      "ldp %[x4], %[offset], [%[tail], #32]\n\t"
      "ldr %[count], [%[tail], #48]\n\t"
      "ldp q0, q1, [%[x0]]\n\t"
      "ldp q2, q3, [%[x0], #32]\n\t"
      "ldp q4, q5, [%[x1]]\n\t"
      "ldp q6, q7, [%[x1], #32]\n\t"
      "ldr q8, [%[x3]]\n\t"
      "dup v9.8h, %w[count]\n\t"
      DQ_FINISH(12, 13, 14, 15, 0) DQ_FINISH(16, 17, 18, 19, 1) DQ_FINISH(20, 21, 22, 23, 2)
      DQ_FINISH(24, 25, 26, 27, 3)
      "ldr s8, [%[x3], #16]\n\t"
      DQ_FINISH(28, 29, 30, 31, 0)
      "b 7f\n\t"
      "6:\n\t"
      DQ_STORE(12, 13, 0) DQ_STORE(14, 15, 32) DQ_STORE(16, 17, 64) DQ_STORE(18, 19, 96)
      DQ_STORE(20, 21, 128) DQ_STORE(22, 23, 160) DQ_STORE(24, 25, 192) DQ_STORE(26, 27, 224)
      DQ_STORE(28, 29, 256) DQ_STORE(30, 31, 288)
      "7:\n\t"
      : [w] "+&r"(w), [tap_offset] "+&r"(tap_offset), [taps] "+&r"(taps), [count] "=&r"(count),
        [offset] "=&r"(offset), [x0] "=&r"(x0), [x1] "=&r"(x1), [x2] "=&r"(x2), [x3] "=&r"(x3),
        [x4] "=&r"(x4)
      : [rows] "r"(a.rows + row), [steps] "r"(a.steps), [start] "r"(start), [tail] "r"(tail),
        [acc] "r"(&acc[0][0])
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12",
        "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25",
        "v26", "v27", "v28", "v29", "v30", "v31");
}

#undef DQ_DOT
#undef DQ_DOT0
#undef DQ_DOT1
#undef DQ_DOT2
#undef DQ_DOT3
#undef DQ_LOAD4
#undef DQ_LOAD3
#undef DQ_LOAD2
#undef DQ_COPY
#undef DQ_FINISH
#undef DQ_STORE

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  const Finish f = finish_of(a, a.bits == 8 ? 128 : 0);
  int32_t zero[kTileBlocks * kBlock];
  for (int i = 0; i < a.blocks * kBlock; ++i) zero[i] = a.zero_point[i] - f.offset;
  simd::for_tiles<kRows>(a.m, [&]<int R>(int64_t row) {
    for (int b = 0; b < a.blocks; ++b) {
      int32x4_t acc[R][kParts];
      const int32_t* start = start_of(a, f, b);
      if constexpr (R == kRows) {
        const int col = b * kBlock;
        if (f.int8_only && f.plain.bare && a.post.residual == nullptr && a.row_bias == nullptr) {
          const int64_t n = a.n - col;
          int8_t* out = static_cast<int8_t*>(a.out) + row * a.out_stride + col;
          int8_t part[R * kBlock];
          const Tail tail = {zero + col,
                             a.scale + col,
                             a.bias + col,
                             a.row_sum + row,
                             n >= kBlock ? out : part,
                             n >= kBlock ? a.out_stride : kBlock,
                             a.post.zero_point};
          product(a, row, b, start, &tail, acc);
          for (int r = 0; n < kBlock && r < R; ++r) {
            store_bytes(out + r * a.out_stride, n, vld1q_s8(part + r * kBlock));
          }
          continue;
        }
        product(a, row, b, start, nullptr, acc);
      } else {
        product(a, row, b, start, acc);
      }
      finish_tile<R>(a, f, row, b, acc);
    }
  });
  if (f.int8_only) replace_outputs(a.post, a.out, a.out_stride, a.m, a.n);
}

void arrange_codes(uint8_t* codes, int bits, int64_t steps, int64_t length) {
  if (bits != 8) return;
  for (int64_t i = 0; i < steps * 64; i += 16) {
    vst1q_u8(codes + i, veorq_u8(vld1q_u8(codes + i), vdupq_n_u8(128)));
  }
  for (int64_t k = length; k < steps * 4; ++k) {
    for (int n = 0; n < kBlock; ++n) codes[(k / 4 * kBlock + n) * 4 + k % 4] = 0;
  }
}

}  // namespace defakeq::neondot

// Low-bit weights without a dot product, in assembly: 5 rows by 4 outputs, 32 positions a round.
// GCC copies some of the 20 int16 sums every round otherwise.
#pragma once

#include <arm_neon.h>

#include "kernels/kernel_table.h"

namespace defakeq::neon {
namespace {

// v0-v3, v4-v7: weights of 4 outputs and two groups of 16 positions; x0, x1: a row's activations.
#define DQ_GROUP(x, w0, w1, w2, w3, a, b, c, d)                                                   \
  "smlal v" #a ".8h, v" #w0 ".8b, v" #x ".8b\n\tsmlal v" #b ".8h, v" #w1 ".8b, v" #x              \
  ".8b\n\tsmlal v" #c ".8h, v" #w2 ".8b, v" #x ".8b\n\tsmlal v" #d ".8h, v" #w3 ".8b, v" #x       \
  ".8b\n\tsmlal2 v" #a ".8h, v" #w0 ".16b, v" #x ".16b\n\tsmlal2 v" #b ".8h, v" #w1 ".16b, v" #x  \
  ".16b\n\tsmlal2 v" #c ".8h, v" #w2 ".16b, v" #x ".16b\n\tsmlal2 v" #d ".8h, v" #w3 ".16b, v" #x \
  ".16b\n\t"
#define DQ_ROW(row, x0, x1, a, b, c, d)                                                 \
  "ldp q" #x0 ", q" #x1 ", [%[" #row "]], #32\n\t" DQ_GROUP(x0, 0, 1, 2, 3, a, b, c, d) \
      DQ_GROUP(x1, 4, 5, 6, 7, a, b, c, d)
#define DQ_SINGLE(row, x0, a, b, c, d) \
  "ldr q" #x0 ", [%[" #row "]], #16\n\t" DQ_GROUP(x0, 0, 1, 2, 3, a, b, c, d)
// 8 positions.
#define DQ_REST(row, x, a, b, c, d)                                                                \
  "ldr d" #x ", [%[" #row "]]\n\tsmlal v" #a ".8h, v0.8b, v" #x ".8b\n\tsmlal v" #b                \
  ".8h, v1.8b, v" #x ".8b\n\tsmlal v" #c ".8h, v2.8b, v" #x ".8b\n\tsmlal v" #d ".8h, v3.8b, v" #x \
  ".8b\n\t"
// int16 sums to acc, for the first time and again; they start again from 0.
#define DQ_ZERO(a, b) "movi v" #a ".4s, #0\n\tmovi v" #b ".4s, #0\n\t"
#define DQ_KEEP(a, b, at)                                                              \
  "saddlp v0.4s, v" #a ".8h\n\tsaddlp v1.4s, v" #b ".8h\n\tstp q0, q1, [%[acc], #" #at \
  "]\n\t" DQ_ZERO(a, b)
#define DQ_ADD(a, b, at)                                                             \
  "ldp q0, q1, [%[acc], #" #at "]\n\tsadalp v0.4s, v" #a ".8h\n\tsadalp v1.4s, v" #b \
  ".8h\n\tstp q0, q1, [%[acc], #" #at "]\n\t" DQ_ZERO(a, b)
// The four outputs of a row, from its int16 sums alone and with those in acc; v8: the start.
#define DQ_ROW_OUT(at)                                                                   \
  "addp v0.4s, v0.4s, v1.4s\n\taddp v2.4s, v2.4s, v3.4s\n\taddp v0.4s, v0.4s, v2.4s\n\t" \
  "add v0.4s, v0.4s, v8.4s\n\tstr q0, [%[out], #" #at "]\n\t"
#define DQ_LAST(a, b, c, d, at)                                                \
  "saddlp v0.4s, v" #a ".8h\n\tsaddlp v1.4s, v" #b ".8h\n\tsaddlp v2.4s, v" #c \
  ".8h\n\tsaddlp v3.4s, v" #d ".8h\n\t" DQ_ROW_OUT(at)
#define DQ_LAST_AND(a, b, c, d, at, next)                                                    \
  "ldp q0, q1, [%[acc], #" #at "]\n\tldp q2, q3, [%[acc], #" #next "]\n\tsadalp v0.4s, v" #a \
  ".8h\n\tsadalp v1.4s, v" #b ".8h\n\tsadalp v2.4s, v" #c ".8h\n\tsadalp v3.4s, v" #d        \
  ".8h\n\t" DQ_ROW_OUT(at)

struct ChainRows {
  const int8_t* rows[5];
  const int64_t* tap_offset;
  int64_t taps, groups;  // of 16 positions a tap
  int64_t rest;          // bytes of weights between the groups of one tap and of the next
  int64_t eight;         // 1 where what is left of a tap is 8 positions, else 0
};

// out[4 r .. 4 r + 3]: start + the sums of row r over whole groups of all taps, and over what is
// left of them where that is 8 positions, for outputs [4 q, 4 q + 4). At most `most` groups meet in
// int16, an 8 counting as one. Rows are 64 bytes apart.
inline void sum_chains(const ChainRows& x, int64_t most, const int8_t* w, int q,
                       const int32_t* start, int32x4_t* out) {
  w += q * 64;
  const int64_t* tap_offset = x.tap_offset;
  int64_t taps = x.taps, left = most, stored = 0, groups, run, offset;
  const int8_t *x0, *x1, *x2, *x3, *x4;
  int32x4_t acc[20];
  __asm__ volatile(
      "movi v12.4s, #0\n\tmovi v13.4s, #0\n\tmovi v14.4s, #0\n\tmovi v15.4s, #0\n\t"
      "movi v16.4s, #0\n\tmovi v17.4s, #0\n\tmovi v18.4s, #0\n\tmovi v19.4s, #0\n\t"
      "movi v20.4s, #0\n\tmovi v21.4s, #0\n\tmovi v22.4s, #0\n\tmovi v23.4s, #0\n\t"
      "movi v24.4s, #0\n\tmovi v25.4s, #0\n\tmovi v26.4s, #0\n\tmovi v27.4s, #0\n\t"
      "movi v28.4s, #0\n\tmovi v29.4s, #0\n\tmovi v30.4s, #0\n\tmovi v31.4s, #0\n\t"
      "1:\n\t"  // a tap
      "ldr %[offset], [%[tap_offset]], #8\n\t"
      "ldp %[x0], %[x1], [%[rows]]\n\t"
      "ldp %[x2], %[x3], [%[rows], #16]\n\t"
      "ldr %[x4], [%[rows], #32]\n\t"
      "add %[x0], %[x0], %[offset]\n\t"
      "add %[x1], %[x1], %[offset]\n\t"
      "add %[x2], %[x2], %[offset]\n\t"
      "add %[x3], %[x3], %[offset]\n\t"
      "add %[x4], %[x4], %[offset]\n\t"
      "mov %[groups], %[per_tap]\n\t"
      "2:\n\t"  // as many groups as int16 still holds
      "cbz %[groups], 7f\n\t"
      "cbz %[left], 8f\n\t"
      "9:\n\t"
      "cmp %[groups], %[left]\n\t"
      "csel %[run], %[groups], %[left], lt\n\t"
      "sub %[groups], %[groups], %[run]\n\t"
      "sub %[left], %[left], %[run]\n\t"
      "subs %[run], %[run], #2\n\t"
      "b.lt 4f\n\t"
      "3:\n\t"
      "ldp q0, q1, [%[w]], #512\n\t"
      "ldp q2, q3, [%[w], #-480]\n\t"
      "ldp q4, q5, [%[w], #-256]\n\t"
      "ldp q6, q7, [%[w], #-224]\n\t"
      DQ_ROW(x0, 8, 9, 12, 13, 14, 15)
      DQ_ROW(x1, 10, 11, 16, 17, 18, 19)
      DQ_ROW(x2, 8, 9, 20, 21, 22, 23)
      DQ_ROW(x3, 10, 11, 24, 25, 26, 27)
      DQ_ROW(x4, 8, 9, 28, 29, 30, 31)
      "subs %[run], %[run], #2\n\t"
      "b.ge 3b\n\t"
      "4:\n\t"
      "tbz %[run], #0, 5f\n\t"
      "ldp q0, q1, [%[w]]\n\t"
      "ldp q2, q3, [%[w], #32]\n\t"
      "add %[w], %[w], #256\n\t"
      DQ_SINGLE(x0, 8, 12, 13, 14, 15)
      DQ_SINGLE(x1, 9, 16, 17, 18, 19)
      DQ_SINGLE(x2, 10, 20, 21, 22, 23)
      DQ_SINGLE(x3, 11, 24, 25, 26, 27)
      DQ_SINGLE(x4, 8, 28, 29, 30, 31)
      "5:\n\t"
      "b 2b\n\t"
      "8:\n\t"
      "mov %[left], %[most]\n\t"
      "cbnz %[stored], 6f\n\t"
      "mov %[stored], #1\n\t"
      DQ_KEEP(12, 13, 0) DQ_KEEP(14, 15, 32)
      DQ_KEEP(16, 17, 64) DQ_KEEP(18, 19, 96)
      DQ_KEEP(20, 21, 128) DQ_KEEP(22, 23, 160)
      DQ_KEEP(24, 25, 192) DQ_KEEP(26, 27, 224)
      DQ_KEEP(28, 29, 256) DQ_KEEP(30, 31, 288)
      "b 9b\n\t"
      "6:\n\t"
      DQ_ADD(12, 13, 0) DQ_ADD(14, 15, 32)
      DQ_ADD(16, 17, 64) DQ_ADD(18, 19, 96)
      DQ_ADD(20, 21, 128) DQ_ADD(22, 23, 160)
      DQ_ADD(24, 25, 192) DQ_ADD(26, 27, 224)
      DQ_ADD(28, 29, 256) DQ_ADD(30, 31, 288)
      "b 9b\n\t"
      "7:\n\t"  // what is left of the tap
      "cbz %[eight], 12f\n\t"
      "cbz %[left], 8b\n\t"
      "sub %[left], %[left], #1\n\t"
      "sub %[run], %[w], %[back]\n\t"
      "ldp d0, d1, [%[run]]\n\t"
      "ldp d2, d3, [%[run], #16]\n\t"
      DQ_REST(x0, 8, 12, 13, 14, 15)
      DQ_REST(x1, 9, 16, 17, 18, 19)
      DQ_REST(x2, 10, 20, 21, 22, 23)
      DQ_REST(x3, 11, 24, 25, 26, 27)
      DQ_REST(x4, 8, 28, 29, 30, 31)
      "12:\n\t"
      "add %[w], %[w], %[rest]\n\t"
      "subs %[taps], %[taps], #1\n\t"
      "b.ne 1b\n\t"
      "ldr q8, [%[start]]\n\t"
      "cbnz %[stored], 10f\n\t"
      DQ_LAST(12, 13, 14, 15, 0)
DQ_LAST(16, 17, 18, 19, 64)
DQ_LAST(20, 21, 22, 23, 128)
DQ_LAST(24, 25, 26, 27, 192)
DQ_LAST(28, 29, 30, 31, 256)
      "b 11f\n\t"
      "10:\n\t"
      DQ_LAST_AND(12, 13, 14, 15, 0, 32)
DQ_LAST_AND(16, 17, 18, 19, 64, 96)
DQ_LAST_AND(20, 21, 22, 23, 128, 160)
DQ_LAST_AND(24, 25, 26, 27, 192, 224)
DQ_LAST_AND(28, 29, 30, 31, 256, 288)
      "11:\n\t"
      : [w] "+&r"(w), [tap_offset] "+&r"(tap_offset), [taps] "+&r"(taps), [left] "+&r"(left),
        [stored] "+&r"(stored), [groups] "=&r"(groups), [run] "=&r"(run), [offset] "=&r"(offset),
        [x0] "=&r"(x0), [x1] "=&r"(x1), [x2] "=&r"(x2), [x3] "=&r"(x3), [x4] "=&r"(x4)
      : [rows] "r"(x.rows), [per_tap] "r"(x.groups), [most] "r"(most), [rest] "r"(x.rest),
        [eight] "r"(x.eight), [back] "r"(int64_t{q * 32}), [acc] "r"(acc), [start] "r"(start), [out] "r"(out)
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11",
        "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24",
        "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

#undef DQ_GROUP
#undef DQ_ROW
#undef DQ_SINGLE
#undef DQ_REST
#undef DQ_ZERO
#undef DQ_KEEP
#undef DQ_ADD
#undef DQ_ROW_OUT
#undef DQ_LAST
#undef DQ_LAST_AND

}  // namespace
}  // namespace defakeq::neon

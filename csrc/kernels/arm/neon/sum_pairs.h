// 8-bit weights without a dot product, in assembly: 4 rows by 4 outputs, two products an int16
// lane. GCC spills some of the 16 sums otherwise.
#pragma once

#include <arm_neon.h>

#include "kernels/kernel_table.h"

namespace defakeq::neon {
namespace {

// A row: v0-v3 the weights of 4 outputs, v4 the activations, v5-v8 or v9-v12 the products.
#define DQ_ROW(row, x, t0, t1, t2, t3, a, b, c, d)                                              \
  "ldr q" #x ", [%[" #row                                                                       \
  "]], #16\n\t"                                                                                 \
  "smull v" #t0 ".8h, v0.8b, v" #x ".8b\n\tsmull v" #t1 ".8h, v1.8b, v" #x ".8b\n\tsmull v" #t2 \
  ".8h, v2.8b, v" #x ".8b\n\tsmull v" #t3 ".8h, v3.8b, v" #x ".8b\n\tsmlal2 v" #t0              \
  ".8h, v0.16b, v" #x ".16b\n\tsmlal2 v" #t1 ".8h, v1.16b, v" #x ".16b\n\tsmlal2 v" #t2         \
  ".8h, v2.16b, v" #x ".16b\n\tsmlal2 v" #t3 ".8h, v3.16b, v" #x ".16b\n\tsadalp v" #a          \
  ".4s, v" #t0 ".8h\n\tsadalp v" #b ".4s, v" #t1 ".8h\n\tsadalp v" #c ".4s, v" #t2              \
  ".8h\n\tsadalp v" #d ".4s, v" #t3 ".8h\n\t"
// The same for 8 positions.
#define DQ_REST(row, x, t0, t1, t2, t3, a, b, c, d)                                             \
  "ldr d" #x ", [%[" #row                                                                       \
  "]]\n\t"                                                                                      \
  "smull v" #t0 ".8h, v0.8b, v" #x ".8b\n\tsmull v" #t1 ".8h, v1.8b, v" #x ".8b\n\tsmull v" #t2 \
  ".8h, v2.8b, v" #x ".8b\n\tsmull v" #t3 ".8h, v3.8b, v" #x ".8b\n\tsadalp v" #a ".4s, v" #t0  \
  ".8h\n\tsadalp v" #b ".4s, v" #t1 ".8h\n\tsadalp v" #c ".4s, v" #t2 ".8h\n\tsadalp v" #d      \
  ".4s, v" #t3 ".8h\n\t"
#define DQ_STORE(a, b, at) "stp q" #a ", q" #b ", [%[acc], #" #at "]\n\t"

// Puts the sums of outputs [4 q, 4 q + 4) into acc: over whole groups of 16 positions of all taps,
// and over what is left of them where it is 8.
inline void add_pairs(const GemmS8Args& a, int64_t row, const int8_t* w, int q,
                      int32x4_t (&acc)[4][4]) {
  w += q * 64;
  const int64_t* tap_offset = a.tap_offset;
  int64_t taps = a.taps, groups, offset;
  const int8_t *x0, *x1, *x2, *x3;
  __asm__ volatile(
      "movi v16.4s, #0\n\tmovi v17.4s, #0\n\tmovi v18.4s, #0\n\tmovi v19.4s, #0\n\t"
      "movi v20.4s, #0\n\tmovi v21.4s, #0\n\tmovi v22.4s, #0\n\tmovi v23.4s, #0\n\t"
      "movi v24.4s, #0\n\tmovi v25.4s, #0\n\tmovi v26.4s, #0\n\tmovi v27.4s, #0\n\t"
      "movi v28.4s, #0\n\tmovi v29.4s, #0\n\tmovi v30.4s, #0\n\tmovi v31.4s, #0\n\t"
      "1:\n\t"
      "ldr %[offset], [%[tap_offset]], #8\n\t"
      "ldp %[x0], %[x1], [%[rows]]\n\t"
      "ldp %[x2], %[x3], [%[rows], #16]\n\t"
      "add %[x0], %[x0], %[offset]\n\t"
      "add %[x1], %[x1], %[offset]\n\t"
      "add %[x2], %[x2], %[offset]\n\t"
      "add %[x3], %[x3], %[offset]\n\t"
      "lsr %[groups], %[steps], #2\n\t"
      "cbz %[groups], 3f\n\t"
      "2:\n\t"
      "ld1 {v0.16b, v1.16b, v2.16b, v3.16b}, [%[w]], %[group]\n\t"
      "subs %[groups], %[groups], #1\n\t"
      DQ_ROW(x0, 4, 5, 6, 7, 8, 16, 17, 18, 19)
      DQ_ROW(x1, 13, 9, 10, 11, 12, 20, 21, 22, 23)
      DQ_ROW(x2, 4, 5, 6, 7, 8, 24, 25, 26, 27)
      DQ_ROW(x3, 13, 9, 10, 11, 12, 28, 29, 30, 31)
      "b.ne 2b\n\t"
      "3:\n\t"
      "cbz %[eight], 4f\n\t"
      "sub %[groups], %[w], %[back]\n\t"
      "ldp d0, d1, [%[groups]]\n\t"
      "ldp d2, d3, [%[groups], #16]\n\t"
      DQ_REST(x0, 4, 5, 6, 7, 8, 16, 17, 18, 19)
      DQ_REST(x1, 13, 9, 10, 11, 12, 20, 21, 22, 23)
      DQ_REST(x2, 4, 5, 6, 7, 8, 24, 25, 26, 27)
      DQ_REST(x3, 13, 9, 10, 11, 12, 28, 29, 30, 31)
      "4:\n\t"
      "add %[w], %[w], %[rest]\n\t"
      "subs %[taps], %[taps], #1\n\t"
      "b.ne 1b\n\t"
      DQ_STORE(16, 17, 0) DQ_STORE(18, 19, 32) DQ_STORE(20, 21, 64) DQ_STORE(22, 23, 96)
      DQ_STORE(24, 25, 128) DQ_STORE(26, 27, 160) DQ_STORE(28, 29, 192) DQ_STORE(30, 31, 224)
      : [w] "+&r"(w), [tap_offset] "+&r"(tap_offset), [taps] "+&r"(taps), [groups] "=&r"(groups),
        [offset] "=&r"(offset), [x0] "=&r"(x0), [x1] "=&r"(x1), [x2] "=&r"(x2), [x3] "=&r"(x3)
      : [rows] "r"(a.rows + row), [steps] "r"(a.steps), [rest] "r"(a.steps % 4 * 64),
        [group] "r"(int64_t{256}), [eight] "r"(int64_t{a.steps % 4 == 2}),
        [back] "r"(int64_t{q * 32}), [acc] "r"(&acc[0][0])
      : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11",
        "v12", "v13", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26",
        "v27", "v28", "v29", "v30", "v31");
}

#undef DQ_ROW
#undef DQ_REST
#undef DQ_STORE

}  // namespace
}  // namespace defakeq::neon

// The products of one position of some tiles by 16 outputs, in assembly: compilers copy the sums
// about.
#pragma once

#include <cstdint>

namespace defakeq::neon {
namespace {

// Tile r: v<r> its channels, 4 sums of 4 outputs each. v5, v6 (or v7, v8): weights of a channel.
#define DQ_TILE(x, lane, low, high, a, b, c, d)       \
  "smlal v" #a ".4s, v" #low ".4h, v" #x ".h[" #lane  \
  "]\n\t"                                             \
  "smlal2 v" #b ".4s, v" #low ".8h, v" #x ".h[" #lane \
  "]\n\t"                                             \
  "smlal v" #c ".4s, v" #high ".4h, v" #x ".h[" #lane \
  "]\n\t"                                             \
  "smlal2 v" #d ".4s, v" #high ".8h, v" #x ".h[" #lane "]\n\t"
#define DQ_TILES_1(lane, low, high) DQ_TILE(0, lane, low, high, 9, 10, 11, 12)
#define DQ_TILES_2(lane, low, high) \
  DQ_TILES_1(lane, low, high) DQ_TILE(1, lane, low, high, 13, 14, 15, 16)
#define DQ_TILES_3(lane, low, high) \
  DQ_TILES_2(lane, low, high) DQ_TILE(2, lane, low, high, 17, 18, 19, 20)
#define DQ_TILES_4(lane, low, high) \
  DQ_TILES_3(lane, low, high) DQ_TILE(3, lane, low, high, 21, 22, 23, 24)
#define DQ_TILES_5(lane, low, high) \
  DQ_TILES_4(lane, low, high) DQ_TILE(4, lane, low, high, 25, 26, 27, 28)
#define DQ_LOAD_1(size, step) "ldr " #size "0, [%[x0]], #" #step "\n\t"
#define DQ_LOAD_2(size, step) DQ_LOAD_1(size, step) "ldr " #size "1, [%[x1]], #" #step "\n\t"
#define DQ_LOAD_3(size, step) DQ_LOAD_2(size, step) "ldr " #size "2, [%[x2]], #" #step "\n\t"
#define DQ_LOAD_4(size, step) DQ_LOAD_3(size, step) "ldr " #size "3, [%[x3]], #" #step "\n\t"
#define DQ_LOAD_5(size, step) DQ_LOAD_4(size, step) "ldr " #size "4, [%[x4]], #" #step "\n\t"
#define DQ_CLEAR(a, b, c, d)                                \
  "movi v" #a ".4s, #0\n\tmovi v" #b ".4s, #0\n\tmovi v" #c \
  ".4s, #0\n\t"                                             \
  "movi v" #d ".4s, #0\n\t"
#define DQ_CLEAR_1 DQ_CLEAR(9, 10, 11, 12)
#define DQ_CLEAR_2 DQ_CLEAR_1 DQ_CLEAR(13, 14, 15, 16)
#define DQ_CLEAR_3 DQ_CLEAR_2 DQ_CLEAR(17, 18, 19, 20)
#define DQ_CLEAR_4 DQ_CLEAR_3 DQ_CLEAR(21, 22, 23, 24)
#define DQ_CLEAR_5 DQ_CLEAR_4 DQ_CLEAR(25, 26, 27, 28)
#define DQ_STORE(a, b, c, d, at, next) \
  "stp q" #a ", q" #b ", [%[out], #" #at "]\n\tstp q" #c ", q" #d ", [%[out], #" #next "]\n\t"
#define DQ_STORE_1 DQ_STORE(9, 10, 11, 12, 0, 32)
#define DQ_STORE_2 DQ_STORE_1 DQ_STORE(13, 14, 15, 16, 64, 96)
#define DQ_STORE_3 DQ_STORE_2 DQ_STORE(17, 18, 19, 20, 128, 160)
#define DQ_STORE_4 DQ_STORE_3 DQ_STORE(21, 22, 23, 24, 192, 224)
#define DQ_STORE_5 DQ_STORE_4 DQ_STORE(25, 26, 27, 28, 256, 288)
// Eight channels at a time, four at the end of an odd number of steps.
#define DQ_MULTIPLY(tiles) \
  DQ_CLEAR_##tiles                                                                               \
  "lsr %[eights], %[steps], #1\n\t"                                                              \
  "cbz %[eights], 2f\n\t"                                                                        \
  "1:\n\t"                                                                                       \
  DQ_LOAD_##tiles(q, 16)                                                                         \
  "ldp q5, q6, [%[u]]\n\t"                                                                       \
  "ldp q7, q8, [%[u], #32]\n\t" DQ_TILES_##tiles(0, 5, 6)                                        \
  "ldp q5, q6, [%[u], #64]\n\t" DQ_TILES_##tiles(1, 7, 8)                                        \
  "ldp q7, q8, [%[u], #96]\n\t" DQ_TILES_##tiles(2, 5, 6)                                        \
  "ldp q5, q6, [%[u], #128]\n\t" DQ_TILES_##tiles(3, 7, 8)                                       \
  "ldp q7, q8, [%[u], #160]\n\t" DQ_TILES_##tiles(4, 5, 6)                                       \
  "ldp q5, q6, [%[u], #192]\n\t" DQ_TILES_##tiles(5, 7, 8)                                       \
  "ldp q7, q8, [%[u], #224]\n\t" DQ_TILES_##tiles(6, 5, 6)                                       \
  "add %[u], %[u], #256\n\t"                                                                     \
  "subs %[eights], %[eights], #1\n\t" DQ_TILES_##tiles(7, 7, 8)                                  \
  "b.ne 1b\n\t"                                                                                  \
  "2:\n\t"                                                                                       \
  "tbz %[steps], #0, 3f\n\t"                                                                     \
  DQ_LOAD_##tiles(d, 8)                                                                          \
  "ldp q5, q6, [%[u]]\n\t"                                                                       \
  "ldp q7, q8, [%[u], #32]\n\t" DQ_TILES_##tiles(0, 5, 6)                                        \
  "ldp q5, q6, [%[u], #64]\n\t" DQ_TILES_##tiles(1, 7, 8)                                        \
  "ldp q7, q8, [%[u], #96]\n\t" DQ_TILES_##tiles(2, 5, 6) DQ_TILES_##tiles(3, 7, 8)              \
  "3:\n\t"                                                                                       \
  DQ_STORE_##tiles

// out: [R][16] sums of `steps` steps of 4 channels.
template <int R>
void multiply_tiles(const int16_t* v, int64_t tile_stride, const int16_t* u, int64_t steps,
                    int32_t* out) {
  static_assert(R >= 1 && R <= 5);
  const int16_t *x0 = v, *x1 = v + tile_stride, *x2 = x1 + tile_stride, *x3 = x2 + tile_stride,
                *x4 = x3 + tile_stride;
  int64_t eights;
#define DQ_ASM(tiles)                                                                             \
  __asm__ volatile(DQ_MULTIPLY(tiles)                                                             \
                   : [x0] "+r"(x0), [x1] "+r"(x1), [x2] "+r"(x2), [x3] "+r"(x3), [x4] "+r"(x4),   \
                     [u] "+r"(u), [eights] "=&r"(eights)                                          \
                   : [steps] "r"(steps), [out] "r"(out)                                           \
                   : "memory", "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9",  \
                     "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", \
                     "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28")
  if constexpr (R == 1) DQ_ASM(1);
  if constexpr (R == 2) DQ_ASM(2);
  if constexpr (R == 3) DQ_ASM(3);
  if constexpr (R == 4) DQ_ASM(4);
  if constexpr (R == 5) DQ_ASM(5);
}

#undef DQ_ASM
#undef DQ_MULTIPLY
#undef DQ_TILE
#undef DQ_TILES_1
#undef DQ_TILES_2
#undef DQ_TILES_3
#undef DQ_TILES_4
#undef DQ_TILES_5
#undef DQ_LOAD_1
#undef DQ_LOAD_2
#undef DQ_LOAD_3
#undef DQ_LOAD_4
#undef DQ_LOAD_5
#undef DQ_CLEAR
#undef DQ_CLEAR_1
#undef DQ_CLEAR_2
#undef DQ_CLEAR_3
#undef DQ_CLEAR_4
#undef DQ_CLEAR_5
#undef DQ_STORE
#undef DQ_STORE_1
#undef DQ_STORE_2
#undef DQ_STORE_3
#undef DQ_STORE_4
#undef DQ_STORE_5

}  // namespace
}  // namespace defakeq::neon

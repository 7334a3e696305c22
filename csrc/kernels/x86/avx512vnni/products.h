// The integer products of a tile: R rows by NB blocks of 16 outputs, from codes or from planes that
// are expanded in registers, behind the products.
#pragma once

#include <cstring>

#include "kernels/kernel_table.h"
#include "kernels/simd/math.h"
#include "kernels/x86/avx512vnni/expand.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq {
namespace {

DQ_INLINE __m512i broadcast4(const int8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// One step, from byte k of the rows on.
template <int R, int NB>
DQ_INLINE void add_step(const int8_t* const (&x)[R], int64_t k, const __m512i (&codes)[NB],
                        __m512i (&acc)[R][NB]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const __m512i xv = broadcast4(x[r] + k);
#pragma GCC unroll 2
    for (int b = 0; b < NB; ++b) acc[r][b] = _mm512_dpbusd_epi32(acc[r][b], codes[b], xv);
  }
}

// The whole tile. kBits: a.w holds planes of so many bits, 8: codes. kAhead: asks for the weights
// of the next blocks meanwhile.
template <int kBits, bool kAhead, int R, int NB>
DQ_INLINE void add_products(const GemmS8Args& a, int64_t row, int first_block,
                            __m512i (&acc)[R][NB]) {
  const int64_t length = a.steps * 4, ahead = NB * a.w_stride;
  const uint8_t* w[NB];
#pragma GCC unroll 2
  for (int b = 0; b < NB; ++b) w[b] = a.w + (first_block + b) * a.w_stride;
  for (int t = 0; t < a.taps; ++t) {
    // Read again in each run: kept over the loop, the pointers fill vector registers.
    const int8_t* const* rows = a.rows + row;
    asm("" : "+r"(rows));
    const int8_t* x[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) x[r] = rows[r] + a.tap_offset[t];
    int64_t k = 0;
    if constexpr (kBits == 8) {
      for (; k < length; k += 4) {
        // One index register for all rows: left alone, the compiler keeps and increments a pointer
        // a row, and the extra instructions cost the out-of-order window.
        asm("" : "+r"(k));
        __m512i codes[NB];
#pragma GCC unroll 2
        for (int b = 0; b < NB; ++b) {
          const uint8_t* at = w[b] + k * kBlock;
          codes[b] = _mm512_loadu_si512(at);
          if constexpr (kAhead) {
            _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T1);
          }
        }
        add_step<R, NB>(x, k, codes, acc);
      }
#pragma GCC unroll 2
      for (int b = 0; b < NB; ++b) w[b] += length * kBlock;
    } else {
      for (; k + 4 * kPlaneSteps <= length; k += 4 * kPlaneSteps) {
        asm("" : "+r"(k));
        if constexpr (kAhead) {
#pragma GCC unroll 2
          for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
            for (int i = 0; i < kBits; ++i) {
              _mm_prefetch(reinterpret_cast<const char*>(w[b] + ahead + i * 64), _MM_HINT_T1);
            }
          }
        }
        const auto add_pair = [&]<int I>() __attribute__((always_inline)) {
          __m512i codes[2][NB];
#pragma GCC unroll 2
          for (int b = 0; b < NB; ++b) {
            codes[0][b] = expand_step<kBits, 2 * I>(w[b]);
            codes[1][b] = expand_step<kBits, 2 * I + 1>(w[b]);
          }
          add_step<R, NB>(x, k + 8 * I, codes[0], acc);
          add_step<R, NB>(x, k + 8 * I + 4, codes[1], acc);
        };
        add_pair.template operator()<0>();
        add_pair.template operator()<1>();
        add_pair.template operator()<2>();
        add_pair.template operator()<3>();
#pragma GCC unroll 2
        for (int b = 0; b < NB; ++b) w[b] += kBits * 64;
      }
      for (int step = 0; k < length; k += 4, ++step) {
        __m512i codes[NB];
#pragma GCC unroll 2
        for (int b = 0; b < NB; ++b) codes[b] = expand_step<kBits>(w[b], step);
        add_step<R, NB>(x, k, codes, acc);
      }
    }
  }
}

}  // namespace
}  // namespace defakeq

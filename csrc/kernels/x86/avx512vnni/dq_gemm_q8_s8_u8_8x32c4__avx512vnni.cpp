// Weight codes are the unsigned operand of vpdpbusd, the activations its signed one, broadcast from
// memory; nothing saturates, so the accumulators are exact.
#include <cstring>

#include "kernels/simd/epilogue.h"
#include "kernels/simd/tiles.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

namespace {

DQ_INLINE __m512i broadcast4(const int8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

template <int R, int NB>
DQ_INLINE void tile(const GemmS8Args& a, int64_t row, int first_block) {
  __m512i acc[R][NB];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < NB; ++b) acc[r][b] = _mm512_setzero_si512();
  }
  const uint8_t* w[NB];
#pragma GCC unroll 2
  for (int b = 0; b < NB; ++b) w[b] = a.w + (first_block + b) * a.w_stride;
  const int64_t length = a.steps * 4;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    for (int64_t k = 0; k < length; k += 4) {
      __m512i wv[NB];
#pragma GCC unroll 2
      for (int b = 0; b < NB; ++b) wv[b] = _mm512_loadu_si512(w[b] + k * kBlock);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i xv = broadcast4(x[r] + k);
#pragma GCC unroll 2
        for (int b = 0; b < NB; ++b) acc[r][b] = _mm512_dpbusd_epi32(acc[r][b], wv[b], xv);
      }
    }
#pragma GCC unroll 2
    for (int b = 0; b < NB; ++b) w[b] += length * kBlock;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < NB; ++b) {
      const __m512i one[1] = {acc[r][b]};
      simd::finish_acc<Vec>(a, row + r, first_block + b, one);
    }
  }
}

template <int NB>
void strip(const GemmS8Args& a, int block) {
  simd::for_tiles<kTileRows>(a.m, [&]<int R>(int64_t row) { tile<R, NB>(a, row, block); });
}

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  int block = 0;
  for (; block + 2 <= a.blocks; block += 2) strip<2>(a, block);
  if (block < a.blocks) strip<1>(a, block);
}

}  // namespace defakeq::avx512vnni

// Few rows: the codes are expanded in registers and never stored.
#include <cstring>

#include "kernels/simd/epilogue.h"
#include "kernels/simd/tiles.h"
#include "kernels/x86/avx512vnni/expand.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

namespace {

// One copy for all tiles, of sums in the order [row][block].
[[gnu::noinline]] void finish(const GemmS8Args& a, int64_t row, int rows, int first_block,
                              int blocks, const __m512i* sums) {
  for (int r = 0; r < rows; ++r) {
    for (int b = 0; b < blocks; ++b) {
      const __m512i one[1] = {*sums++};
      simd::finish_acc<Vec>(a, row + r, first_block + b, one);
    }
  }
}

template <int kBits, int R, int NB>
DQ_INLINE void tile(const GemmS8Args& a, int64_t row, int first_block) {
  __m512i acc[R][NB];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) acc[r][b] = _mm512_setzero_si512();
  }
  const uint8_t* w = a.w + first_block * a.w_stride;
  const int8_t* x[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[0];
  for (int64_t s = 0; s < a.steps; s += kPlaneSteps) {
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) {
      __m512i codes[kPlaneSteps];
      expand_block<kBits>(w + b * a.w_stride, codes);
#pragma GCC unroll 8
      for (int v = 0; v < kPlaneSteps; ++v) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          int32_t four;
          std::memcpy(&four, x[r] + (s + v) * 4, 4);
          acc[r][b] = _mm512_dpbusd_epi32(acc[r][b], codes[v], _mm512_set1_epi32(four));
        }
      }
    }
    w += kBits * 64;
  }
  __m512i sums[R * NB];
#pragma GCC unroll 16
  for (int i = 0; i < R * NB; ++i) sums[i] = acc[i / NB][i % NB];
  finish(a, row, R, first_block, NB, sums);
}

// Steps up to which sums of codes left where they lie in a byte, at most 240 * 128, fit int32.
constexpr int64_t kInPlaceSteps = 32768;

// One row of 2- or 4-bit codes: they are not shifted down, each place in a byte has its own sum.
template <int kBits, int NB>
DQ_INLINE void tile_in_place(const GemmS8Args& a, int64_t row, int first_block) {
  constexpr int kPlaces = 8 / kBits;
  __m512i acc[NB][kPlaces];
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 4
    for (int j = 0; j < kPlaces; ++j) acc[b][j] = _mm512_setzero_si512();
  }
  const uint8_t* w = a.w + first_block * a.w_stride;
  const int8_t* x = a.rows[row] + a.tap_offset[0];
  for (int64_t s = 0; s < a.steps; s += kPlaneSteps) {
#pragma GCC unroll 4
    for (int i = 0; i < kBits; ++i) {
      __m512i plane[NB];
#pragma GCC unroll 4
      for (int b = 0; b < NB; ++b) plane[b] = _mm512_loadu_si512(w + b * a.w_stride + i * 64);
#pragma GCC unroll 4
      for (int j = 0; j < kPlaces; ++j) {
        const __m512i mask = _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << (j * kBits)));
        int32_t four;
        std::memcpy(&four, x + (s + kPlaces * i + j) * 4, 4);
        const __m512i xs = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) {
          acc[b][j] = _mm512_dpbusd_epi32(acc[b][j], _mm512_and_si512(plane[b], mask), xs);
        }
      }
    }
    w += kBits * 64;
  }
  __m512i sums[NB];
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    sums[b] = acc[b][0];
#pragma GCC unroll 4
    for (int j = 1; j < kPlaces; ++j) {
      sums[b] =
          _mm512_add_epi32(sums[b], _mm512_srai_epi32(acc[b][j], static_cast<unsigned>(j * kBits)));
    }
  }
  finish(a, row, 1, first_block, NB, sums);
}

template <int kBits, int R, int NB>
DQ_INLINE void any_tile(const GemmS8Args& a, int64_t row, int first_block) {
  if constexpr (R == 1 && (kBits == 2 || kBits == 4)) {
    if (a.steps <= kInPlaceSteps) return tile_in_place<kBits, NB>(a, row, first_block);
  }
  tile<kBits, R, NB>(a, row, first_block);
}

template <int kBits>
void strips(const GemmS8Args& a) {
  int block = 0;
  for (; block + kGemvBlocks <= a.blocks; block += kGemvBlocks) {
    simd::for_tiles<kGemvRows>(
        a.m, [&]<int R>(int64_t row) { any_tile<kBits, R, kGemvBlocks>(a, row, block); });
  }
  for (; block < a.blocks; ++block) {
    simd::for_tiles<kGemvRows>(a.m,
                               [&]<int R>(int64_t row) { any_tile<kBits, R, 1>(a, row, block); });
  }
}

template <int kBits>
void expand(const uint8_t* planes, int64_t steps, uint8_t* codes) {
  for (int64_t s = 0; s < steps; s += kPlaneSteps) {
    __m512i v[kPlaneSteps];
    expand_block<kBits>(planes, v);
    const int64_t left = steps - s < kPlaneSteps ? steps - s : kPlaneSteps;
    if (left == kPlaneSteps) {
#pragma GCC unroll 8
      for (int i = 0; i < kPlaneSteps; ++i) _mm512_storeu_si512(codes + i * 64, v[i]);
    } else {
      for (int64_t i = 0; i < left; ++i) _mm512_storeu_si512(codes + i * 64, v[i]);
    }
    planes += kBits * 64;
    codes += kPlaneSteps * 64;
  }
}

}  // namespace

void gemv_s8(const GemmS8Args& a) {
  simd::with_bits(a.bits, [&]<int kBits>() { strips<kBits>(a); });
}

void expand_codes(const uint8_t* planes, int bits, int64_t steps, uint8_t* codes) {
  simd::with_bits(bits, [&]<int kBits>() { expand<kBits>(planes, steps, codes); });
}

}  // namespace defakeq::avx512vnni

// Few rows: the codes are expanded in registers and never stored. What the int16 sums may hold is
// said in the gemm file.
#include <cstring>

#include "kernels/simd/epilogue.h"
#include "kernels/simd/planes.h"
#include "kernels/simd/tiles.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"

namespace defakeq::avx2 {

namespace {

constexpr int kParts = kBlock / Vec::W;

DQ_INLINE __m256i shift_left(__m256i v, int by) {
  return by > 0 ? _mm256_slli_epi16(v, by) : by < 0 ? _mm256_srli_epi16(v, -by) : v;
}

// The 32 codes of half `half` (8 outputs) of step v of a plane block.
template <int kBits>
DQ_INLINE __m256i codes_of(const uint8_t* planes, int v, int half) {
  constexpr simd::Planes kPlanes = simd::planes_of(kBits);
  const auto plane = [&](int i) __attribute__((always_inline)) {
    return Vec::load_i(planes + i * 64 + half * 32);
  };
  if constexpr (kBits == 8) return plane(v);
  __m256i code = _mm256_setzero_si256();
  if constexpr (kPlanes.four) {
    code = _mm256_and_si256(shift_left(plane(v / 2), v % 2 * -4), _mm256_set1_epi8(15));
  }
  if constexpr (kPlanes.two) {
    const __m256i bits = _mm256_and_si256(
        shift_left(plane(kPlanes.offset_two + v / 4), kPlanes.shift_two - v % 4 * 2),
        _mm256_set1_epi8(static_cast<char>(3 << kPlanes.shift_two)));
    code = kPlanes.four ? _mm256_or_si256(code, bits) : bits;
  }
  if constexpr (kPlanes.one) {
    const __m256i bits =
        _mm256_and_si256(shift_left(plane(kPlanes.offset_one), kPlanes.shift_one - v),
                         _mm256_set1_epi8(static_cast<char>(1 << kPlanes.shift_one)));
    code = kBits == 1 ? bits : _mm256_or_si256(code, bits);
  }
  return code;
}

// One plane block: kPlaneSteps steps of x[r] + k.
template <int kBits, int R>
DQ_INLINE void add_plane_block(const uint8_t* w, const int8_t* const (&x)[R], int64_t k,
                               __m256i (&acc)[R][kParts]) {
  // Steps whose sums fit int16.
  constexpr int kMost = kBits >= 7 ? 1 : 1 << (7 - kBits);
  constexpr int kRun = kMost < kPlaneSteps ? kMost : kPlaneSteps;
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int v0 = 0; v0 < kPlaneSteps; v0 += kRun) {
    __m256i sum[R][kParts];
#pragma GCC unroll 8
    for (int v = v0; v < v0 + kRun; ++v) {
      __m256i codes[kParts];
#pragma GCC unroll 2
      for (int i = 0; i < kParts; ++i) codes[i] = codes_of<kBits>(w, v, i);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        int32_t four;
        std::memcpy(&four, x[r] + k + v * 4, 4);
        const __m256i xv = _mm256_set1_epi32(four);
        if constexpr (kBits == 8) {
          const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(xv, 8), 8);
          const __m256i odd = _mm256_srai_epi16(xv, 8);
          const __m256i mask = _mm256_set1_epi16(255);
#pragma GCC unroll 2
          for (int i = 0; i < kParts; ++i) {
            sum[r][i] = _mm256_add_epi32(_mm256_madd_epi16(_mm256_and_si256(codes[i], mask), even),
                                         _mm256_madd_epi16(_mm256_srli_epi16(codes[i], 8), odd));
          }
        } else {
#pragma GCC unroll 2
          for (int i = 0; i < kParts; ++i) {
            const __m256i pairs = _mm256_maddubs_epi16(codes[i], xv);
            sum[r][i] = v == v0 ? pairs : _mm256_add_epi16(sum[r][i], pairs);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < kParts; ++i) {
        acc[r][i] = _mm256_add_epi32(acc[r][i],
                                     kBits == 8 ? sum[r][i] : _mm256_madd_epi16(sum[r][i], ones));
      }
    }
  }
}

template <int kBits, int R>
DQ_INLINE void tile(const GemmS8Args& a, int64_t row, int block) {
  __m256i acc[R][kParts];
  const int8_t* x[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    x[r] = a.rows[row + r] + a.tap_offset[0];
#pragma GCC unroll 2
    for (int i = 0; i < kParts; ++i) acc[r][i] = _mm256_setzero_si256();
  }
  const uint8_t* w = a.w + block * a.w_stride;
  for (int64_t s = 0; s < a.steps; s += kPlaneSteps) {
    add_plane_block<kBits, R>(w, x, s * 4, acc);
    w += kBits * 64;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) simd::finish_acc<Vec>(a, row + r, block, acc[r]);
}

template <int kBits>
void strips(const GemmS8Args& a) {
  for (int block = 0; block < a.blocks; ++block) {
    simd::for_tiles<kGemvRows>(a.m, [&]<int R>(int64_t row) { tile<kBits, R>(a, row, block); });
  }
}

template <int kBits>
void expand(const uint8_t* planes, int64_t steps, uint8_t* codes) {
  for (int64_t s = 0; s < steps; s += kPlaneSteps) {
    const int64_t left = steps - s;
#pragma GCC unroll 8
    for (int v = 0; v < kPlaneSteps; ++v) {
      if (v >= left) break;
#pragma GCC unroll 2
      for (int i = 0; i < kParts; ++i) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + v * 64 + i * 32),
                            codes_of<kBits>(planes, v, i));
      }
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

}  // namespace defakeq::avx2

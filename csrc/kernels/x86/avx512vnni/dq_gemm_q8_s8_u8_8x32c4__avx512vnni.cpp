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

// -zero_point and -128 * zero_point of an output as 16-bit halves: with a row sum split the same
// way (7 low bits, the rest), one vpdpwssd takes the zero points out.
struct ZeroPairs {
  __m512i block[2];

  ZeroPairs(const GemmS8Args& a, int col, int blocks) {
    const __m512i low_half = _mm512_set1_epi32(0xffff);
    for (int b = 0; b < blocks; ++b) {
      const __m512i negated = _mm512_sub_epi32(_mm512_setzero_si512(),
                                               _mm512_loadu_si512(a.zero_point + col + b * kBlock));
      block[b] =
          _mm512_or_si512(_mm512_and_si512(negated, low_half), _mm512_slli_epi32(negated, 16 + 7));
    }
  }
};

DQ_INLINE __m512i row_pair(int32_t sum) {
  const uint32_t bits = static_cast<uint32_t>(sum);
  return _mm512_set1_epi32(static_cast<int32_t>((bits & 127u) | ((bits >> 7) << 16)));
}

// The plain int8 epilogue over both blocks of a row: what finish_acc does, with the packs doing the
// clamping below. The accumulators started at the correction.
template <bool kRelu>
DQ_INLINE void finish_pair(const GemmS8Args& a, const ZeroPairs& zero, int64_t row, int col,
                           const __m512i (&acc)[2]) {
  const __m512i sum = row_pair(a.row_sum[row]);
  const __m512 high = _mm512_set1_ps(a.post.high);
  __m512i q[2];
#pragma GCC unroll 2
  for (int b = 0; b < 2; ++b) {
    const int at = col + b * kBlock;
    const __m512i v = _mm512_dpwssd_epi32(acc[b], sum, zero.block[b]);
    __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), _mm512_loadu_ps(a.scale + at),
                               _mm512_loadu_ps(a.bias + at));
    if constexpr (kRelu) y = _mm512_max_ps(y, _mm512_setzero_ps());
    q[b] = Vec::rne(_mm512_min_ps(high, y));
  }
  const __m512i words = _mm512_adds_epi16(
      _mm512_packs_epi32(q[0], q[1]), _mm512_set1_epi16(static_cast<int16_t>(a.post.zero_point)));
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm512_cvtsepi16_epi8(words),
                                                    _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  int8_t* out = static_cast<int8_t*>(a.out) + row * a.out_stride + col;
  const int n = a.n - col;
  if (n >= 2 * kBlock) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
  } else {
    _mm256_mask_storeu_epi8(out, (__mmask32{1} << n) - 1, bytes);
  }
}

bool plain_int8(const GemmS8Args& a) {
  return a.post.out_dtype == DType::kInt8 && a.post.inv_scale == 1.0f &&
         a.post.residual == nullptr && a.row_scale == nullptr && a.row_bias == nullptr &&
         (a.post.activation == Activation::kNone || a.post.activation == Activation::kRelu) &&
         a.post.low == static_cast<float>(-128 - a.post.zero_point);
}

template <int R, int NB>
DQ_INLINE void tile(const GemmS8Args& a, const ZeroPairs* plain, int64_t row, int first_block) {
  __m512i acc[R][NB];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int b = 0; b < NB; ++b) {
      acc[r][b] = plain != nullptr ? _mm512_loadu_si512(a.correction + (first_block + b) * kBlock)
                                   : _mm512_setzero_si512();
    }
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
      // One index register for all rows: left alone, the compiler keeps and increments a pointer a
      // row, and the extra instructions cost the out-of-order window.
      asm("" : "+r"(k));
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
  if constexpr (NB == 2) {
    if (plain != nullptr) {
      const int col = first_block * kBlock;
      if (a.post.activation == Activation::kRelu) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) finish_pair<true>(a, *plain, row + r, col, acc[r]);
      } else {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) finish_pair<false>(a, *plain, row + r, col, acc[r]);
      }
      return;
    }
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
  const ZeroPairs pairs(a, block * kBlock, NB);
  const ZeroPairs* plain = NB == 2 && plain_int8(a) ? &pairs : nullptr;
  simd::for_tiles<kTileRows>(a.m, [&]<int R>(int64_t row) { tile<R, NB>(a, plain, row, block); });
}

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  int block = 0;
  for (; block + 2 <= a.blocks; block += 2) strip<2>(a, block);
  if (block < a.blocks) strip<1>(a, block);
}

}  // namespace defakeq::avx512vnni

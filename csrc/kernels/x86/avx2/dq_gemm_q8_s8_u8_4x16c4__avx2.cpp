// Codes of up to 7 bits are the unsigned operand of vpmaddubsw, whose pair sums then fit int16
// (127 * 128 * 2 < 2^15), and 2^(7 - bits) of those sums still do: so many steps are added up
// before they are widened. 8-bit codes are split into their even and odd bytes as int16 and meet
// activations widened once a row tile in vpmaddwd. Nothing saturates in either way.
#include <cstring>

#include "kernels/simd/epilogue.h"
#include "kernels/simd/tiles.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"

namespace defakeq::avx2 {

namespace {

constexpr int kRows = 4;
constexpr int kParts = kBlock / Vec::W;
constexpr int64_t kWideSteps = 256;  // steps of widened activations held on the stack

DQ_INLINE __m256i broadcast4(const void* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}

// Keeps an accumulator of an inner loop in its register: GCC also stores it every step otherwise.
DQ_INLINE void keep(__m256i& v) { __asm__("" : "+x"(v)); }

// How the accumulators leave.
enum class Finish { kAny, kInt8, kInt8Relu };

Finish finish_of(const GemmS8Args& a) {
  if (a.post.out_dtype != DType::kInt8 || a.post.residual != nullptr || a.row_scale != nullptr ||
      a.row_bias != nullptr) {
    return Finish::kAny;
  }
  if (a.post.activation == Activation::kNone) return Finish::kInt8;
  return a.post.activation == Activation::kRelu ? Finish::kInt8Relu : Finish::kAny;
}

// What finish_acc does for the plain int8 epilogue, without its branches.
template <bool kRelu>
DQ_INLINE void finish_int8(const GemmS8Args& a, int64_t row, int block,
                           const __m256i (&acc)[kParts]) {
  const int col = block * kBlock;
  const __m256i sum = _mm256_set1_epi32(a.row_sum[row]);
  __m256i q[kParts];
#pragma GCC unroll 2
  for (int i = 0; i < kParts; ++i) {
    const int at = col + i * Vec::W;
    __m256i v = _mm256_add_epi32(acc[i], Vec::load_i(a.correction + at));
    v = _mm256_sub_epi32(v, _mm256_mullo_epi32(sum, Vec::load_i(a.zero_point + at)));
    __m256 y = Vec::fma(Vec::to_f(v), Vec::load(a.scale + at), Vec::load(a.bias + at));
    if constexpr (kRelu) y = Vec::max(y, _mm256_setzero_ps());
    q[i] = simd::requantize<Vec>(a.post, y);
  }
  const __m256i words = _mm256_packs_epi32(q[0], q[1]);
  const __m128i bytes = _mm_shuffle_epi32(
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)), 0xd8);
  int8_t* out = static_cast<int8_t*>(a.out) + row * a.out_stride + col;
  const int n = a.n - col;
  if (n >= kBlock) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
  } else {
    int8_t tail[kBlock];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(tail), bytes);
    std::memcpy(out, tail, static_cast<size_t>(n));
  }
}

template <int R>
DQ_INLINE void finish(const GemmS8Args& a, Finish how, int64_t row, int block,
                      const __m256i (&acc)[R][kParts]) {
  if (how == Finish::kInt8) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) finish_int8<false>(a, row + r, block, acc[r]);
  } else if (how == Finish::kInt8Relu) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) finish_int8<true>(a, row + r, block, acc[r]);
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) simd::finish_acc<Vec>(a, row + r, block, acc[r]);
  }
}

template <int R>
DQ_INLINE void clear(__m256i (&acc)[R][kParts]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < kParts; ++i) acc[r][i] = _mm256_setzero_si256();
  }
}

// kSteps steps from x[r] + k on, summed in int16 and added to acc.
template <int kSteps, int R>
DQ_INLINE void add_steps(const uint8_t* w, const int8_t* const (&x)[R], int64_t k,
                         __m256i (&acc)[R][kParts]) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
  for (int i = 0; i < kParts; ++i) {
    __m256i wv[kSteps];
#pragma GCC unroll 4
    for (int s = 0; s < kSteps; ++s) wv[s] = Vec::load_i(w + s * 64 + i * 32);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      __m256i sum = _mm256_maddubs_epi16(wv[0], broadcast4(x[r] + k));
#pragma GCC unroll 4
      for (int s = 1; s < kSteps; ++s) {
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(wv[s], broadcast4(x[r] + k + 4 * s)));
      }
      acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(sum, ones));
      keep(acc[r][i]);
    }
  }
}

// 5 to 7 bits: kSteps is 2 or 1.
template <int kSteps, int R>
DQ_INLINE void tile_short(const GemmS8Args& a, Finish how, int64_t row, int block) {
  __m256i acc[R][kParts];
  clear<R>(acc);
  const uint8_t* w = a.w + block * a.w_stride;
  const int64_t length = a.steps * 4;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    int64_t k = 0;
    for (; k + 4 * kSteps <= length; k += 4 * kSteps) {
      add_steps<kSteps, R>(w, x, k, acc);
      w += kSteps * 64;
    }
    if constexpr (kSteps > 1) {
      for (; k < length; k += 4) {
        add_steps<1, R>(w, x, k, acc);
        w += 64;
      }
    }
  }
  finish<R>(a, how, row, block, acc);
}

// 1 to 4 bits: the int16 sums of `most` steps stay in registers, the int32 sums in memory.
template <int R>
DQ_INLINE void tile_long(const GemmS8Args& a, int64_t most, Finish how, int64_t row, int block) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[R][kParts], sum[R][kParts];
  clear<R>(acc);
  clear<R>(sum);
  const auto widen = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int i = 0; i < kParts; ++i) {
        acc[r][i] = _mm256_add_epi32(acc[r][i], _mm256_madd_epi16(sum[r][i], ones));
      }
    }
    clear<R>(sum);
  };
  const uint8_t* w = a.w + block * a.w_stride;
  int64_t left = most;
  for (int t = 0; t < a.taps; ++t) {
    const int8_t* x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = a.rows[row + r] + a.tap_offset[t];
    for (int64_t s = 0; s < a.steps;) {
      const int64_t run = left < a.steps - s ? left : a.steps - s;
      left -= run;
      const int64_t end = (s + run) * 4;
      for (int64_t k = s * 4; k < end; k += 4) {
        const __m256i w0 = Vec::load_i(w), w1 = Vec::load_i(w + 32);
        w += 64;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m256i xv = broadcast4(x[r] + k);
          sum[r][0] = _mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(w0, xv));
          sum[r][1] = _mm256_add_epi16(sum[r][1], _mm256_maddubs_epi16(w1, xv));
        }
      }
      s += run;
      if (left == 0) {
        widen();
        left = most;
      }
    }
  }
  widen();
  finish<R>(a, how, row, block, acc);
}

// Bytes 0, 2 of every 4 as int16 in even, bytes 1, 3 in odd.
DQ_INLINE void widen_steps(const int8_t* x, int64_t steps, int32_t* even, int32_t* odd) {
  int64_t s = 0;
  for (; s + 8 <= steps; s += 8) {
    const __m256i v = Vec::load_i(x + s * 4);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(even + s),
                        _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(odd + s), _mm256_srai_epi16(v, 8));
  }
  for (; s < steps; ++s) {
    int32_t four;
    std::memcpy(&four, x + s * 4, 4);
    const __m128i v = _mm_cvtsi32_si128(four);
    even[s] = _mm_cvtsi128_si32(_mm_srai_epi16(_mm_slli_epi16(v, 8), 8));
    odd[s] = _mm_cvtsi128_si32(_mm_srai_epi16(v, 8));
  }
}

// 8 bits, `blocks` blocks from first_block on.
template <int R>
void tile_wide(const GemmS8Args& a, Finish how, int64_t row, int first_block, int blocks) {
  alignas(32) int32_t x[R][2][kWideSteps];
  __m256i acc[kTileBlocks][R][kParts];
  for (int b = 0; b < blocks; ++b) clear<R>(acc[b]);
  const __m256i mask = _mm256_set1_epi16(255);
  const int64_t total = a.taps * a.steps;
  int tap = 0;
  int64_t at = 0;  // step within the tap
  for (int64_t first = 0; first < total; first += kWideSteps) {
    const int64_t count = total - first < kWideSteps ? total - first : kWideSteps;
    for (int64_t s = 0; s < count;) {
      const int64_t run = a.steps - at < count - s ? a.steps - at : count - s;
      for (int r = 0; r < R; ++r) {
        widen_steps(a.rows[row + r] + a.tap_offset[tap] + at * 4, run, x[r][0] + s, x[r][1] + s);
      }
      s += run;
      at += run;
      if (at == a.steps) {
        at = 0;
        ++tap;
      }
    }
    for (int b = 0; b < blocks; ++b) {
      const uint8_t* w = a.w + (first_block + b) * a.w_stride + first * 64;
      __m256i part[R][kParts];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int i = 0; i < kParts; ++i) part[r][i] = acc[b][r][i];
      }
      for (int64_t s = 0; s < count; ++s) {
        __m256i even[kParts], odd[kParts];
#pragma GCC unroll 2
        for (int i = 0; i < kParts; ++i) {
          const __m256i v = Vec::load_i(w + s * 64 + i * 32);
          even[i] = _mm256_and_si256(v, mask);
          odd[i] = _mm256_srli_epi16(v, 8);
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m256i xe = _mm256_set1_epi32(x[r][0][s]), xo = _mm256_set1_epi32(x[r][1][s]);
#pragma GCC unroll 2
          for (int i = 0; i < kParts; ++i) {
            part[r][i] = _mm256_add_epi32(part[r][i], _mm256_madd_epi16(even[i], xe));
            keep(part[r][i]);
            part[r][i] = _mm256_add_epi32(part[r][i], _mm256_madd_epi16(odd[i], xo));
            keep(part[r][i]);
          }
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int i = 0; i < kParts; ++i) acc[b][r][i] = part[r][i];
      }
    }
  }
  for (int b = 0; b < blocks; ++b) finish<R>(a, how, row, first_block + b, acc[b]);
}

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  const Finish how = finish_of(a);
  if (a.bits == 8) {
    for (int b = 0; b < a.blocks; b += kTileBlocks) {
      const int blocks = a.blocks - b < kTileBlocks ? a.blocks - b : kTileBlocks;
      simd::for_tiles<kRows>(a.m,
                             [&]<int R>(int64_t row) { tile_wide<R>(a, how, row, b, blocks); });
    }
    return;
  }
  const int64_t most = int64_t{1} << (7 - a.bits);
  for (int b = 0; b < a.blocks; ++b) {
    simd::for_tiles<kRows>(a.m, [&]<int R>(int64_t row) {
      switch (most) {
        case 1:
          return tile_short<1, R>(a, how, row, b);
        case 2:
        case 4:  // two steps' codes and sums fit the registers, four steps' do not
          return tile_short<2, R>(a, how, row, b);
        default:
          return tile_long<R>(a, most, how, row, b);
      }
    });
  }
}

void finish_s8(const GemmS8Args& a) {
  const Finish how = finish_of(a);
  for (int64_t row = 0; row < a.m; ++row) {
    for (int b = 0; b < a.blocks; ++b) {
      const int32_t* sums = a.sums + row * a.sums_stride + b * kBlock;
      const __m256i acc[1][kParts] = {{Vec::load_i(sums), Vec::load_i(sums + Vec::W)}};
      finish<1>(a, how, row, b, acc);
    }
  }
}

}  // namespace defakeq::avx2

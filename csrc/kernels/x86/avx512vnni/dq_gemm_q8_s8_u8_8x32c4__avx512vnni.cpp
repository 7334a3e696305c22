// Weight codes are the unsigned operand of vpdpbusd, the activations its signed one, broadcast from
// memory; nothing saturates, so the accumulators are exact.
#include <cmath>

#include "kernels/simd/epilogue.h"
#include "kernels/simd/tiles.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/products.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

namespace {

// -zero_point and -128 * zero_point of an output as 16-bit halves: with a row sum split the same
// way (7 low bits, the rest), one vpdpwssd takes the zero points out. The rest fits 16 bits in
// reductions up to this length.
constexpr int64_t kLongestPaired = 32767;

DQ_INLINE __m512i zero_pairs(const int32_t* zero_point) {
  const __m512i negated = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_loadu_si512(zero_point));
  return _mm512_or_si512(_mm512_and_si512(negated, _mm512_set1_epi32(0xffff)),
                         _mm512_slli_epi32(negated, 16 + 7));
}

DQ_INLINE __m512i row_pairs(__m512i sums) {
  return _mm512_or_si512(_mm512_and_si512(sums, _mm512_set1_epi32(127)),
                         _mm512_slli_epi32(_mm512_srli_epi32(sums, 7), 16));
}

// The epilogue's work is cut into units: the 16 outputs of one block of one row, in the order
// [row][block]. Four units leave as one vector of bytes.

// The bytes of four units, the rows of which begin at out; `rows` of them are there.
template <int NB>
DQ_INLINE void store_units(const GemmS8Args& a, int8_t* out, int64_t stride, int rows,
                           __mmask32 mask, __m512i bytes) {
  if (a.windows != nullptr) {
    const int there = rows < 4 / NB ? rows : 4 / NB;
    for (int w = 0; w < a.window_count; ++w) {
      const OutputWindow& window = a.windows[w];
      for (int i = 0; i < there; ++i) {
        const __m512i moved = _mm512_mask_permutexvar_epi8(
            _mm512_set1_epi8(a.absent), window.lanes, _mm512_loadu_si512(window.lane[i]), bytes);
        _mm512_mask_storeu_epi8(out + i * stride + window.offset, window.stored, moved);
      }
    }
    return;
  }
  const auto store = [&]<int I>() __attribute__((always_inline)) {
    if (I >= rows) return;
    if constexpr (NB == 2) {
      _mm256_mask_storeu_epi8(out + I * stride, mask, _mm512_extracti64x4_epi64(bytes, I));
    } else {
      _mm_mask_storeu_epi8(out + I * stride, static_cast<__mmask16>(mask),
                           _mm512_extracti32x4_epi32(bytes, I));
    }
  };
  store.template operator()<0>();
  store.template operator()<1>();
  if constexpr (NB == 1) {
    store.template operator()<2>();
    store.template operator()<3>();
  }
}

// Columns [col, col + 16 NB) that are there.
template <int NB>
DQ_INLINE __mmask32 columns_left(const GemmS8Args& a, int col) {
  const int left = a.n - col;
  return left >= NB * kBlock ? ~__mmask32{0} >> (32 - NB * kBlock) : (__mmask32{1} << left) - 1;
}

// The epilogues that networks are made of; kGeneral stands for all others. kBytes: int8, with or
// without relu. kResidual: the same with an int8 residual. kFloat: float32 output, maybe with a
// float32 residual. kScaled: a row scale and an output scale of their own. kBiased:
// int8 from a bias a row, with or without relu and an int8 residual.
enum class Finish { kBytes, kResidual, kFloat, kScaled, kBiased, kGeneral };

// The bias of a tile: row r's at first + r * stride.
struct Bias {
  const float* first;
  int64_t stride;
};

// Whether all |y| stay below 2^30, so that packs can do all of the clamping.
bool stays_small(const GemmS8Args& a, int col, int blocks) {
  // |code - zero_point| <= 510, |activation| <= 128
  const __m512 reach = _mm512_set1_ps(510.0f * 128.0f * static_cast<float>(a.taps * a.steps * 4));
  __m512 most = _mm512_setzero_ps();
  for (int b = 0; b < blocks; ++b) {
    const int at = col + b * kBlock;
    const __m512 y = _mm512_fmadd_ps(_mm512_abs_ps(_mm512_loadu_ps(a.scale + at)), reach,
                                     _mm512_abs_ps(_mm512_loadu_ps(a.bias + at)));
    most = _mm512_max_ps(most, y);
  }
  return _mm512_reduce_max_ps(most) + 512.0f * std::fabs(a.post.residual_scale) < 1073741824.0f;
}

Finish finish_of(const GemmS8Args& a, int col, int blocks) {
  const Post& post = a.post;
  const bool relu = post.activation == Activation::kRelu;
  if ((post.activation != Activation::kNone && !relu) || a.taps * a.steps * 4 > kLongestPaired) {
    return Finish::kGeneral;
  }
  if (a.row_bias != nullptr || a.half_rows != nullptr) {
    const bool residual = post.residual == nullptr || post.residual_dtype == DType::kInt8;
    return a.row_scale == nullptr && post.out_dtype == DType::kInt8 && residual ? Finish::kBiased
                                                                                : Finish::kGeneral;
  }
  if (a.row_scale != nullptr) {
    return relu || post.residual != nullptr || post.out_dtype != DType::kInt8 ? Finish::kGeneral
                                                                              : Finish::kScaled;
  }
  if (post.out_dtype == DType::kFloat32) {
    return relu || (post.residual != nullptr && post.residual_dtype != DType::kFloat32)
               ? Finish::kGeneral
               : Finish::kFloat;
  }
  if (post.inv_scale != 1.0f || post.low != static_cast<float>(-128 - post.zero_point) ||
      !stays_small(a, col, blocks)) {
    return Finish::kGeneral;
  }
  if (post.residual == nullptr) return Finish::kBytes;
  return post.residual_dtype == DType::kInt8 ? Finish::kResidual : Finish::kGeneral;
}

// What the tiles of a strip share.
struct Shared {
  Finish finish;
  bool lowest;                 // whether the outputs' zero point is -128
  __m512i zero_point, floor;   // of the outputs, as 16 and 8 bits
  bool one_zero;               // all weights have the same zero point
  __m512i minus_zero;          // that one, negated
  __m512i pairs[kTileBlocks];  // zero_pairs

  Shared(const GemmS8Args& a, int col, int blocks)
      : finish(finish_of(a, col, blocks)),
        lowest(a.post.zero_point == -128),
        zero_point(_mm512_set1_epi16(static_cast<int16_t>(a.post.zero_point))),
        // the real zero is the byte zero_point
        floor(_mm512_set1_epi8(
            static_cast<char>(a.post.activation == Activation::kRelu ? a.post.zero_point : -128))),
        one_zero(true),
        minus_zero(_mm512_set1_epi32(-a.zero_point[col])) {
    for (int b = 0; b < blocks; ++b) {
      const int32_t* zero = a.zero_point + col + b * kBlock;
      pairs[b] = zero_pairs(zero);
      const __m512i sum = _mm512_add_epi32(_mm512_loadu_si512(zero), minus_zero);
      one_zero = one_zero && _mm512_test_epi32_mask(sum, sum) == 0;
    }
  }
};

// int32 results of four units -> their bytes in order; the packs clamp.
DQ_INLINE __m512i pack_units(const __m512i (&q)[4], const Shared& shared) {
  const __m512i low = _mm512_packs_epi32(q[0], q[1]), up = _mm512_packs_epi32(q[2], q[3]);
  __m512i bytes;
  if (shared.lowest) {
    bytes = _mm512_xor_si512(_mm512_packus_epi16(low, up), _mm512_set1_epi8(-128));
  } else {
    bytes = _mm512_packs_epi16(_mm512_adds_epi16(low, shared.zero_point),
                               _mm512_adds_epi16(up, shared.zero_point));
    bytes = _mm512_max_epi8(bytes, shared.floor);
  }
  return _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
}

// The residuals of a tile whose last columns are missing: rows of 16 * NB bytes.
template <int NB>
[[gnu::noinline]] void copy_residual(const int8_t* from, int64_t stride, int rows, __mmask32 mask,
                                     int8_t* to) {
  for (int r = 0; r < rows; ++r) {
    const __m256i bytes = _mm256_maskz_loadu_epi8(mask, from + r * stride);
    if constexpr (NB == 2) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + r * NB * kBlock), bytes);
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + r * NB * kBlock),
                       _mm256_castsi256_si128(bytes));
    }
  }
}

DQ_INLINE __mmask16 lanes_left(const GemmS8Args& a, int at) {
  const int left = a.n - at;
  return static_cast<__mmask16>(left >= kBlock ? 0xffff : (1 << left) - 1);
}

// What finish_acc does for one of them, with the packs doing the clamping. Whatever it needs is in
// locals, which no store of bytes may change.
template <int R, int NB, Finish kFinish>
DQ_INLINE void finish_tile(const GemmS8Args& a, const Shared& shared, int64_t row, int col,
                           const Bias& of_rows, const __m512i (&acc)[R][NB]) {
  const Post post = a.post;
  const int64_t stride = a.out_stride;
  const __mmask32 mask = columns_left<NB>(a, col);
  __m512 scale[NB], bias[NB];
  __mmask16 lanes[NB];
#pragma GCC unroll 2
  for (int b = 0; b < NB; ++b) {
    const int at = col + b * kBlock;
    scale[b] = _mm512_loadu_ps(a.scale + at);
    bias[b] = _mm512_loadu_ps(a.bias + at);
    lanes[b] = static_cast<__mmask16>(mask >> (b * kBlock));
  }
  const float* row_scale = a.row_scale + (kFinish == Finish::kScaled ? row : 0);
  const __m512 residual_scale = _mm512_set1_ps(post.residual_scale);
  const __m512i residual_zero = _mm512_set1_epi32(post.residual_zero_point);
  constexpr bool kMayAddBytes = kFinish == Finish::kResidual || kFinish == Finish::kBiased;
  const int8_t* near = static_cast<const int8_t*>(post.residual) + row * post.residual_stride + col;
  int64_t near_stride = post.residual_stride;
  alignas(64) int8_t copied[kMayAddBytes ? R * NB * kBlock : 1];
  if constexpr (kMayAddBytes) {
    if (post.residual != nullptr && a.n - col < NB * kBlock) {
      copy_residual<NB>(near, near_stride, R, mask, copied);
      near = copied;
      near_stride = NB * kBlock;
    }
  }
  const float* addend = static_cast<const float*>(post.residual) + row * post.residual_stride + col;
  int8_t* out = static_cast<int8_t*>(a.out) + row * stride + col;
  float* floats = static_cast<float*>(a.out) + row * stride + col;
#pragma GCC unroll 16
  for (int first = 0; first < R * NB; first += 4) {
    __m512i q[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (first + i >= R * NB) {
        q[i] = _mm512_setzero_si512();
        continue;
      }
      const int r = (first + i) / NB, b = (first + i) % NB;
      __m512 y = _mm512_cvtepi32_ps(acc[r][b]);
      if constexpr (kFinish == Finish::kScaled) y = _mm512_mul_ps(y, _mm512_set1_ps(row_scale[r]));
      y = _mm512_fmadd_ps(y, scale[b],
                          kFinish == Finish::kBiased
                              ? _mm512_loadu_ps(of_rows.first + r * of_rows.stride + b * kBlock)
                              : bias[b]);
      if constexpr (kFinish == Finish::kFloat) {
        if (post.residual != nullptr) {
          y = _mm512_fmadd_ps(
              _mm512_maskz_loadu_ps(lanes[b], addend + r * post.residual_stride + b * kBlock),
              residual_scale, y);
        }
        _mm512_mask_storeu_ps(floats + r * stride + b * kBlock, lanes[b], y);
        continue;
      }
      if (kFinish == Finish::kResidual ||
          (kFinish == Finish::kBiased && post.residual != nullptr)) {
        const __m512i bytes = Vec::load_s8(near + r * near_stride + b * kBlock);
        y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(bytes, residual_zero)),
                            residual_scale, y);
      }
      if constexpr (kFinish == Finish::kScaled || kFinish == Finish::kBiased) {
        y = _mm512_mul_ps(y, _mm512_set1_ps(post.inv_scale));
        y = _mm512_max_ps(_mm512_min_ps(_mm512_set1_ps(post.high), y), _mm512_set1_ps(post.low));
      }
      q[i] = Vec::rne(y);
    }
    if constexpr (kFinish == Finish::kFloat) continue;
    __m512i bytes = pack_units(q, shared);
    if (post.table != nullptr) bytes = Lookup(post.table)(bytes);
    store_units<NB>(a, out + first / NB * stride, stride, R - first / NB, mask, bytes);
  }
}

// Everything else that an accumulator may become: one loop over units in memory, not a copy of it
// for every accumulator of every tile.
template <int NB>
[[gnu::noinline]] void finish_units(const GemmS8Args& a, const Shared& shared, int64_t row,
                                    int rows, int col, const Bias& bias, const __m512i* acc) {
  const Post& post = a.post;
  const bool float_out = post.out_dtype == DType::kFloat32;
  __mmask16 masks[NB];
  for (int b = 0; b < NB; ++b) masks[b] = lanes_left(a, col + b * kBlock);
  for (int first = 0; first < rows * NB; first += 4) {
    __m512i q[4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int r = (first + i) / NB, b = (first + i) % NB;
      if (r >= rows) break;
      const int at = col + b * kBlock;
      const __m512i zero = _mm512_mullo_epi32(_mm512_set1_epi32(a.row_sum[row + r]),
                                              _mm512_loadu_si512(a.zero_point + at));
      __m512 f = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc[first + i], zero));
      if (a.row_scale != nullptr) f = _mm512_mul_ps(f, _mm512_set1_ps(a.row_scale[row + r]));
      __m512 y = _mm512_fmadd_ps(f, _mm512_loadu_ps(a.scale + at),
                                 _mm512_loadu_ps(bias.first + r * bias.stride + b * kBlock));
      if (post.residual != nullptr) {
        const int64_t from = (row + r) * post.residual_stride + at;
        __m512 v;
        if (post.residual_dtype == DType::kFloat32) {
          v = _mm512_maskz_loadu_ps(masks[b], static_cast<const float*>(post.residual) + from);
        } else {
          const __m128i bytes =
              _mm_maskz_loadu_epi8(masks[b], static_cast<const int8_t*>(post.residual) + from);
          v = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepi8_epi32(bytes),
                                                  _mm512_set1_epi32(post.residual_zero_point)));
        }
        y = _mm512_fmadd_ps(v, _mm512_set1_ps(post.residual_scale), y);
      }
      if (post.activation == Activation::kRelu) {
        y = _mm512_max_ps(y, _mm512_setzero_ps());
      } else if (post.activation != Activation::kNone) {
        y = simd::activate<Vec>(post.activation, y);
      }
      if (float_out) {
        _mm512_mask_storeu_ps(static_cast<float*>(a.out) + (row + r) * a.out_stride + at, masks[b],
                              y);
        continue;
      }
      y = _mm512_mul_ps(y, _mm512_set1_ps(post.inv_scale));
      y = _mm512_max_ps(_mm512_min_ps(_mm512_set1_ps(post.high), y), _mm512_set1_ps(post.low));
      q[i] = Vec::rne(y);
    }
    if (float_out) continue;
    __m512i bytes = pack_units(q, shared);
    if (post.table != nullptr) bytes = Lookup(post.table)(bytes);
    store_units<NB>(a, static_cast<int8_t*>(a.out) + (row + first / NB) * a.out_stride + col,
                    a.out_stride, rows - first / NB, columns_left<NB>(a, col), bytes);
  }
}

// The bias plus the half-precision inputs' products, one fma a step: [R][NB][16] floats.
template <int R, int NB>
DQ_INLINE void half_chain(const GemmS8Args& a, int64_t row, int first_block, float* sums) {
  __m512 acc[R][NB];
  const float* w[NB];
#pragma GCC unroll 2
  for (int b = 0; b < NB; ++b) {
    const int64_t col = (first_block + b) * kBlock;
    w[b] = a.half_w + (first_block + b) * a.half_w_stride;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      acc[r][b] = _mm512_loadu_ps(
          (a.row_bias != nullptr ? a.row_bias + (row + r) * a.row_bias_stride : a.bias) + col);
    }
  }
  for (int t = 0; t < a.taps; ++t) {
    const float* x[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) x[r] = a.half_rows[row + r] + a.half_tap_offset[t];
    for (int64_t k = 0; k < a.half_length; ++k) {
      __m512 wv[NB];
#pragma GCC unroll 2
      for (int b = 0; b < NB; ++b) wv[b] = _mm512_loadu_ps(w[b] + k * kBlock);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const __m512 xv = _mm512_set1_ps(x[r][k]);
#pragma GCC unroll 2
        for (int b = 0; b < NB; ++b) acc[r][b] = _mm512_fmadd_ps(wv[b], xv, acc[r][b]);
      }
    }
#pragma GCC unroll 2
    for (int b = 0; b < NB; ++b) w[b] += a.half_length * kBlock;
  }
#pragma GCC unroll 16
  for (int i = 0; i < R * NB; ++i) _mm512_store_ps(sums + i * kBlock, acc[i / NB][i % NB]);
}

// Asks for the lines of the tile's windows: fetched while it multiplies, they do not hold up the
// stores behind them. Whole rows need no such help.
template <int R>
DQ_INLINE void ask_for_windows(const GemmS8Args& a, int64_t row) {
  for (int w = 0; w < a.window_count; ++w) {
    const char* out = static_cast<const char*>(a.out) + row * a.out_stride + a.windows[w].offset;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) _mm_prefetch(out + r * a.out_stride, _MM_HINT_T0);
  }
}

// What takes the zero points out, of rows [first, last): it is ready before a tile begins, and
// broadcast from memory, which takes no arithmetic unit.
void row_terms(const GemmS8Args& a, const Shared& shared, int64_t first, int64_t last,
               int32_t* terms) {
  if (shared.finish == Finish::kGeneral) return;
  for (int64_t row = first; row < last; row += kBlock) {
    const auto there =
        static_cast<__mmask16>(last - row >= kBlock ? 0xffff : (1 << (last - row)) - 1);
    const __m512i sums = _mm512_maskz_loadu_epi32(there, a.row_sum + row);
    _mm512_storeu_si512(terms + (row - first), shared.one_zero
                                                   ? _mm512_mullo_epi32(sums, shared.minus_zero)
                                                   : row_pairs(sums));
  }
}

// What the products are added to: corrections, less the zero points' part where that is not left to
// finish_units.
template <int R, int NB>
DQ_INLINE void begin(const GemmS8Args& a, const Shared& shared, int first_block,
                     const int32_t* terms, __m512i (&acc)[R][NB]) {
  __m512i correction[NB];
#pragma GCC unroll 2
  for (int b = 0; b < NB; ++b) {
    correction[b] = _mm512_loadu_si512(a.correction + (first_block + b) * kBlock);
  }
  const auto each = [&](auto&& first) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int b = 0; b < NB; ++b) acc[r][b] = first(r, b);
    }
  };
  if (shared.finish == Finish::kGeneral) {
    each([&](int, int b) { return correction[b]; });
  } else if (shared.one_zero) {
    each(
        [&](int r, int b) { return _mm512_add_epi32(correction[b], _mm512_set1_epi32(terms[r])); });
  } else {
    each([&](int r, int b) {
      return _mm512_dpwssd_epi32(correction[b], shared.pairs[b], _mm512_set1_epi32(terms[r]));
    });
  }
}

// kAhead: asks for the weights of the next blocks meanwhile.
template <int R, int NB, bool kAhead = false>
DQ_INLINE void tile(const GemmS8Args& a, const Shared& shared, int64_t row, int first_block,
                    const int32_t* terms) {
  const int col = first_block * kBlock;
  alignas(64) float sums[R * NB * kBlock];
  Bias bias{a.bias + col, 0};
  if (a.half_rows != nullptr) {
    half_chain<R, NB>(a, row, first_block, sums);
    bias = {sums, NB * kBlock};
  } else if (a.row_bias != nullptr) {
    bias = {a.row_bias + row * a.row_bias_stride + col, a.row_bias_stride};
  }
  __m512i acc[R][NB];
  begin<R, NB>(a, shared, first_block, terms, acc);
  if (a.windows != nullptr) ask_for_windows<R>(a, row);
  if (a.sums != nullptr) {
    const int32_t* from = a.sums + row * a.sums_stride + col;
#pragma GCC unroll 16
    for (int i = 0; i < R * NB; ++i) {
      acc[i / NB][i % NB] = _mm512_add_epi32(
          acc[i / NB][i % NB], _mm512_loadu_si512(from + i / NB * a.sums_stride + i % NB * kBlock));
    }
  } else {
    simd::with_bits(a.planes ? a.bits : 8, [&]<int kBits>() __attribute__((always_inline)) {
      add_products<kBits, kAhead, R, NB>(a, row, first_block, acc);
    });
  }
  switch (shared.finish) {
    case Finish::kBytes:
      return finish_tile<R, NB, Finish::kBytes>(a, shared, row, col, bias, acc);
    case Finish::kResidual:
      return finish_tile<R, NB, Finish::kResidual>(a, shared, row, col, bias, acc);
    case Finish::kFloat:
      return finish_tile<R, NB, Finish::kFloat>(a, shared, row, col, bias, acc);
    case Finish::kScaled:
      return finish_tile<R, NB, Finish::kScaled>(a, shared, row, col, bias, acc);
    case Finish::kBiased:
      return finish_tile<R, NB, Finish::kBiased>(a, shared, row, col, bias, acc);
    case Finish::kGeneral:
      break;
  }
  __m512i all[R * NB];
#pragma GCC unroll 16
  for (int i = 0; i < R * NB; ++i) all[i] = acc[i / NB][i % NB];
  finish_units<NB>(a, shared, row, R, col, bias, all);
}

// Weights that are read once an image come from beyond the second-level cache, which few rows do
// not hide: up to so many, the first tile runs ahead. Blocks of several taps are long enough for
// the hardware to do that by itself.
constexpr int64_t kFewRows = 256;

template <int R>
[[gnu::noinline]] void first_tile(const GemmS8Args& a, const Shared& shared, int block,
                                  const int32_t* terms) {
  tile<R, 2, true>(a, shared, 0, block, terms);
}

// Rows whose terms are made at once.
constexpr int64_t kTermRows = 512;

template <int NB>
void strip(const GemmS8Args& a, int block) {
  const Shared shared(a, block * kBlock, NB);
  const bool ahead = a.m <= kFewRows && a.taps == 1;
  alignas(64) int32_t terms[kTermRows];
  for (int64_t first = 0; first < a.m; first += kTermRows) {
    const int64_t last = a.m - first < kTermRows ? a.m : first + kTermRows;
    row_terms(a, shared, first, last, terms);
    simd::for_tiles<kTileRows>(last - first, [&]<int R>(int64_t at) {
      if constexpr (NB == 2 && R >= 7) {
        if (ahead && at == 0) return first_tile<R>(a, shared, block, terms);
      }
      tile<R, NB>(a, shared, first + at, block, terms + at);
    });
  }
}

}  // namespace

void gemm_s8(const GemmS8Args& a) {
  int block = 0;
  for (; block + 2 <= a.blocks; block += 2) strip<2>(a, block);
  if (block < a.blocks) strip<1>(a, block);
}

}  // namespace defakeq::avx512vnni

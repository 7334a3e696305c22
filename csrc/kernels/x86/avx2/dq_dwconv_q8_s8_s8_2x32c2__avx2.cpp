// Depthwise convolution, 32 channels at a time. Two input rows are interleaved as int16 to [column]
// [channel] [2 rows], so that one vpmaddwd takes two taps of a kernel column; activations are
// x + 128, whose products with int8 weights vpmaddubsw could not hold. The unpacks permute channels
// within four vectors in the way that the final packs undo. 3-row kernels of stride 1 compute two
// output rows from four interleaved rows.
#include <cstring>

#include "kernels/simd/epilogue.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"

namespace defakeq::avx2 {

namespace {

constexpr int kWide = 32;
constexpr int kQuads = 4;  // vectors that hold 32 channels as 32-bit lanes

int64_t columns_of(const DwS8Args& a) {
  return (a.out_w - 1) * a.stride[1] + int64_t{a.kernel[1] - 1} * a.dilation[1] + 1;
}

bool takes_pairs(const DwS8Args& a) {
  return a.kernel[0] == 3 && a.kernel[1] == 3 && a.stride[0] == 1 && a.stride[1] == 1 &&
         a.dilation[0] == 1 && a.dilation[1] == 1;
}

// Interleaved pairs of rows that one output row (or pair of them) reads.
int row_pairs_of(const DwS8Args& a) { return (a.kernel[0] + 1) / 2; }

// Weight vectors: one a row pair, kernel column and quad; the 3x3 pairs' lower outputs have theirs.
int64_t weights_of(const DwS8Args& a) {
  return int64_t{row_pairs_of(a)} * a.kernel[1] * kQuads * (takes_pairs(a) ? 2 : 1);
}

// Vector j of a quadruple holds channels 16 l + 4 j .. + 3 in its lane l: gathers 16-byte chunk j
// of both 16-channel groups.
DQ_INLINE __m256i lanes_of(const void* base, int j, int groups) {
  const char* p = static_cast<const char*>(base) + j * 16;
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i high = groups > 1
                           ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + kBlock * 4))
                           : _mm_setzero_si128();
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

struct Wide {
  const DwS8Args* a;
  int64_t c0;
  int n;             // valid channels
  int groups;        // valid 16-channel groups
  __m256i* columns;  // [row pair][column][4]
  __m256i* weight;   // [row pair][kw][4], for 3x3 pairs again for the lower output row
  __m256i correction[kQuads], factor[kQuads];
  __m256 scale[kQuads], bias[kQuads];
};

// Input rows iy and iy + dilation.
void interleave(const Wide& k, int64_t iy, __m256i* columns) {
  const DwS8Args& a = *k.a;
  const int64_t count = columns_of(a);
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
  const __m256i zero = _mm256_setzero_si256();
  const __m256i pad = _mm256_xor_si256(_mm256_set1_epi8(a.pad_value), flip);
  const __m256i pad_pair = _mm256_unpacklo_epi8(pad, zero);
  const int64_t left = a.padding[1] < count ? a.padding[1] : count;
  const int64_t right = a.w + a.padding[1] < count ? a.w + a.padding[1] : count;
  for (int64_t c = 0; c < left * kQuads; ++c) columns[c] = pad_pair;
  for (int64_t c = right * kQuads; c < count * kQuads; ++c) columns[c] = pad_pair;
  const int8_t* row[2];
  bool inside[2];
  for (int j = 0; j < 2; ++j) {
    const int64_t y = iy + int64_t{j} * a.dilation[0];
    inside[j] = y >= 0 && y < a.h;
    row[j] = inside[j] ? a.x + y * a.w * a.x_stride + k.c0 : nullptr;
  }
  const auto body = [&](auto load) __attribute__((always_inline)) {
    for (int64_t c = left; c < right; ++c) {
      const int64_t at = (c - a.padding[1]) * a.x_stride;
      const __m256i r0 = load(0, at), r1 = load(1, at);
      const __m256i low = _mm256_unpacklo_epi8(r0, r1), high = _mm256_unpackhi_epi8(r0, r1);
      __m256i* out = columns + c * kQuads;
      out[0] = _mm256_unpacklo_epi8(low, zero);
      out[1] = _mm256_unpackhi_epi8(low, zero);
      out[2] = _mm256_unpacklo_epi8(high, zero);
      out[3] = _mm256_unpackhi_epi8(high, zero);
    }
  };
  if (k.n == kWide && inside[0] && inside[1]) {
    body([&](int j, int64_t at) __attribute__((always_inline)) {
      return _mm256_xor_si256(Vec::load_i(row[j] + at), flip);
    });
  } else if (k.n % 4 == 0) {
    const __m256i mask =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(k.n / 4), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    body([&](int j, int64_t at) __attribute__((always_inline)) {
      if (!inside[j]) return pad;
      return _mm256_xor_si256(
          _mm256_maskload_epi32(reinterpret_cast<const int*>(row[j] + at), mask), flip);
    });
  } else {
    body([&](int j, int64_t at) __attribute__((always_inline)) {
      if (!inside[j]) return pad;
      int8_t bytes[kWide] = {};
      std::memcpy(bytes, row[j] + at, static_cast<size_t>(k.n));
      return _mm256_xor_si256(Vec::load_i(bytes), flip);
    });
  }
}

DQ_INLINE void finish(const Wide& k, int64_t oy, int64_t ox, const __m256i (&acc)[kQuads]) {
  const DwS8Args& a = *k.a;
  const Post& post = a.post;
  __m256 y[kQuads];
#pragma GCC unroll 4
  for (int j = 0; j < kQuads; ++j) {
    __m256 f = _mm256_cvtepi32_ps(acc[j]);
    if (a.has_row_scale) f = _mm256_mul_ps(f, _mm256_set1_ps(a.row_scale));
    y[j] = _mm256_fmadd_ps(f, k.scale[j], k.bias[j]);
  }
  const int64_t pixel = oy * a.out_w + ox;
  if (post.out_dtype == DType::kInt8 && post.residual == nullptr) {
    if (post.activation != Activation::kNone) {
#pragma GCC unroll 4
      for (int j = 0; j < kQuads; ++j) y[j] = simd::activate<Vec>(post.activation, y[j]);
    }
    __m256i q[kQuads];
#pragma GCC unroll 4
    for (int j = 0; j < kQuads; ++j) q[j] = simd::requantize<Vec>(post, y[j]);
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    int8_t* out = static_cast<int8_t*>(a.out) + pixel * a.out_stride + k.c0;
    if (k.n == kWide) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
    } else {
      int8_t tail[kWide];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(tail), bytes);
      std::memcpy(out, tail, static_cast<size_t>(k.n));
    }
    return;
  }
  // Lane transpose back to channel order.
  __m256 natural[2][2] = {
      {_mm256_permute2f128_ps(y[0], y[1], 0x20), _mm256_permute2f128_ps(y[2], y[3], 0x20)},
      {_mm256_permute2f128_ps(y[0], y[1], 0x31), _mm256_permute2f128_ps(y[2], y[3], 0x31)}};
  for (int l = 0; l < k.groups; ++l) {
    const int left = k.n - l * kBlock;
    simd::finish_block<Vec>(post, a.out, a.out_stride, pixel, k.c0 + l * kBlock,
                            left < kBlock ? left : kBlock, natural[l]);
  }
}

DQ_INLINE void add_window(const Wide& k, __m256i (&acc)[kQuads], const __m256i (&window)[kQuads]) {
#pragma GCC unroll 4
  for (int j = 0; j < kQuads; ++j) {
    acc[j] = _mm256_add_epi32(acc[j], _mm256_mullo_epi32(window[j], k.factor[j]));
  }
}

// Output rows oy and oy + 1 (when second) of a 3x3, stride-1 kernel, kX adjacent outputs. The upper
// row's taps are rows 0, 1 | 2, -, the lower row's -, 0 | 1, 2 of the two interleaved pairs.
template <bool kFactor, int kX>
DQ_INLINE void pair_outputs(const Wide& k, int64_t oy, int64_t ox, bool second) {
  const int64_t count = columns_of(*k.a);
  const __m256i* lower_weight = k.weight + 2 * 3 * kQuads;
  __m256i acc[2][kX][kQuads], window[2][kX][kQuads];
#pragma GCC unroll 4
  for (int j = 0; j < kQuads; ++j) {
#pragma GCC unroll 2
    for (int x = 0; x < kX; ++x) {
      acc[0][x][j] = acc[1][x][j] = k.correction[j];
      window[0][x][j] = window[1][x][j] = _mm256_setzero_si256();
    }
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      // (1, 1) and (0, 1) as int16 pairs, or (1, 0) and (1, 1)
      const __m256i upper_ones = _mm256_set1_epi32(p == 0 ? 0x00010001 : 0x00000001);
      const __m256i lower_ones = _mm256_set1_epi32(p == 0 ? 0x00010000 : 0x00010001);
#pragma GCC unroll 3
      for (int kx = 0; kx < 3; ++kx) {
        const __m256i upper = k.weight[(p * 3 + kx) * kQuads + j];
        const __m256i lower = lower_weight[(p * 3 + kx) * kQuads + j];
#pragma GCC unroll 2
        for (int x = 0; x < kX; ++x) {
          const __m256i v = k.columns[(p * count + ox + x + kx) * kQuads + j];
          acc[0][x][j] = _mm256_add_epi32(acc[0][x][j], _mm256_madd_epi16(v, upper));
          acc[1][x][j] = _mm256_add_epi32(acc[1][x][j], _mm256_madd_epi16(v, lower));
          if constexpr (kFactor) {
            window[0][x][j] = _mm256_add_epi32(window[0][x][j], _mm256_madd_epi16(v, upper_ones));
            window[1][x][j] = _mm256_add_epi32(window[1][x][j], _mm256_madd_epi16(v, lower_ones));
          }
        }
      }
    }
  }
  for (int y = 0; y < (second ? 2 : 1); ++y) {
#pragma GCC unroll 2
    for (int x = 0; x < kX; ++x) {
      if constexpr (kFactor) add_window(k, acc[y][x], window[y][x]);
      finish(k, oy + y, ox + x, acc[y][x]);
    }
  }
}

template <bool kFactor>
void pairs(const Wide& k) {
  const DwS8Args& a = *k.a;
  const int64_t count = columns_of(a);
  for (int64_t oy = a.oy0; oy < a.oy1; oy += 2) {
    interleave(k, oy - a.padding[0], k.columns);
    interleave(k, oy - a.padding[0] + 2, k.columns + count * kQuads);
    const bool second = oy + 1 < a.oy1;
    int64_t ox = 0;
    for (; ox + 2 <= a.out_w; ox += 2) pair_outputs<kFactor, 2>(k, oy, ox, second);
    if (ox < a.out_w) pair_outputs<kFactor, 1>(k, oy, ox, second);
  }
}

template <bool kFactor>
void singles(const Wide& k) {
  const DwS8Args& a = *k.a;
  const int row_pairs = row_pairs_of(a);
  const int64_t count = columns_of(a);
  for (int64_t oy = a.oy0; oy < a.oy1; ++oy) {
    for (int p = 0; p < row_pairs; ++p) {
      interleave(k, oy * a.stride[0] - a.padding[0] + int64_t{2 * p} * a.dilation[0],
                 k.columns + p * count * kQuads);
    }
    for (int64_t ox = 0; ox < a.out_w; ++ox) {
      __m256i acc[kQuads], window[kQuads];
#pragma GCC unroll 4
      for (int j = 0; j < kQuads; ++j) {
        acc[j] = k.correction[j];
        window[j] = _mm256_setzero_si256();
      }
      for (int p = 0; p < row_pairs; ++p) {
        const __m256i ones = _mm256_set1_epi32(a.kernel[0] - 2 * p >= 2 ? 0x00010001 : 0x00000001);
        const __m256i* x = k.columns + (p * count + ox * a.stride[1]) * kQuads;
        const __m256i* w = k.weight + p * a.kernel[1] * kQuads;
        for (int kx = 0; kx < a.kernel[1]; ++kx) {
#pragma GCC unroll 4
          for (int j = 0; j < kQuads; ++j) {
            acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(x[j], w[j]));
            if constexpr (kFactor) {
              window[j] = _mm256_add_epi32(window[j], _mm256_madd_epi16(x[j], ones));
            }
          }
          x += a.dilation[1] * kQuads;
          w += kQuads;
        }
      }
      if constexpr (kFactor) add_window(k, acc, window);
      finish(k, oy, ox, acc);
    }
  }
}

// [16-channel group][rows / 4][kw][16][4 rows] of int8 to row pairs of int16.
void widen_weights(const Wide& k, const int8_t* weight) {
  const DwS8Args& a = *k.a;
  const int64_t group_bytes = int64_t{(a.kernel[0] + 3) / 4} * a.kernel[1] * kBlock * 4;
  alignas(32) int16_t pair[kWide][2], lower[kWide][2];
  const auto at = [&](int c, int ky, int kx) {
    if (ky < 0 || ky >= a.kernel[0] || c / kBlock >= k.groups) return int16_t{0};
    return int16_t{weight[c / kBlock * group_bytes +
                          ((ky / 4 * a.kernel[1] + kx) * kBlock + c % kBlock) * 4 + ky % 4]};
  };
  for (int p = 0; p < row_pairs_of(a); ++p) {
    for (int kx = 0; kx < a.kernel[1]; ++kx) {
      for (int c = 0; c < kWide; ++c) {
        for (int y = 0; y < 2; ++y) {
          pair[c][y] = at(c, 2 * p + y, kx);
          lower[c][y] = at(c, 2 * p + y - 1, kx);
        }
      }
      __m256i* out = k.weight + (p * a.kernel[1] + kx) * kQuads;
      for (int j = 0; j < kQuads; ++j) {
        out[j] = lanes_of(pair, j, 2);
        if (takes_pairs(a)) out[2 * 3 * kQuads + j] = lanes_of(lower, j, 2);
      }
    }
  }
}

}  // namespace

size_t dw_s8_scratch(const DwS8Args& a) {
  return static_cast<size_t>(row_pairs_of(a) * columns_of(a) * kQuads + weights_of(a)) *
         sizeof(__m256i);
}

void dw_s8(const DwS8Args& a) {
  const int64_t channel_bytes = int64_t{(a.kernel[0] + 3) / 4} * a.kernel[1] * 4;
  Wide k{};
  k.a = &a;
  k.columns = static_cast<__m256i*>(a.scratch);
  k.weight = k.columns + row_pairs_of(a) * columns_of(a) * kQuads;
  const bool pair = takes_pairs(a);
  for (k.c0 = 0; k.c0 < a.channels; k.c0 += kWide) {
    const int64_t left = a.channels - k.c0;
    k.n = static_cast<int>(left < kWide ? left : kWide);
    k.groups = (k.n + kBlock - 1) / kBlock;
    widen_weights(k, a.weight + k.c0 * channel_bytes);
    for (int j = 0; j < kQuads; ++j) {
      k.correction[j] = lanes_of(a.correction + k.c0, j, k.groups);
      k.scale[j] = _mm256_castsi256_ps(lanes_of(a.scale + k.c0, j, k.groups));
      k.bias[j] = _mm256_castsi256_ps(lanes_of(a.bias + k.c0, j, k.groups));
      if (a.window_factor != nullptr) {
        k.factor[j] = lanes_of(a.window_factor + k.c0, j, k.groups);
      }
    }
    if (a.window_factor != nullptr) {
      pair ? pairs<true>(k) : singles<true>(k);
    } else {
      pair ? pairs<false>(k) : singles<false>(k);
    }
  }
}

}  // namespace defakeq::avx2

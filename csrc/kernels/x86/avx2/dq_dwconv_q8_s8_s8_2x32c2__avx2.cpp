// Depthwise convolution, 32 channels at a time. Two input rows are interleaved as int16 to [column]
// [channel] [2 rows], so that one vpmaddwd takes two taps of a kernel column; activations are
// x + 128, whose products with int8 weights vpmaddubsw could not hold. The unpacks permute channels
// within four vectors in the way that the final packs undo. At a vertical stride of 1 two output
// rows are computed from the same pairs of rows, and the next two output rows reuse all pairs but
// one.
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

// Output rows are computed in twos where the second reads the first's input rows moved by one.
bool takes_twos(const DwS8Args& a) { return a.stride[0] == 1 && a.dilation[0] == 1; }

// Interleaved pairs of rows that one output row, or two, read.
int row_pairs_of(const DwS8Args& a) {
  return takes_twos(a) ? a.kernel[0] / 2 + 1 : (a.kernel[0] + 1) / 2;
}

// Vector j of a quadruple holds channels 16 l + 4 j .. + 3 in its lane l: gathers 16-byte chunk j
// of both 16-channel groups.
DQ_INLINE __m256i lanes_of(const void* base, int64_t group_bytes, int j, int groups) {
  const char* p = static_cast<const char*>(base) + j * 16;
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i high = groups > 1
                           ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + group_bytes))
                           : _mm_setzero_si128();
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

struct Wide {
  const DwS8Args* a;
  int64_t c0;
  int n;             // valid channels
  int groups;        // valid 16-channel groups
  __m256i* columns;  // [row pair][column][4]
  __m256i* weight;   // [row pair][kw][4][upper output row, lower output row]
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

// 1 as int16 for each of rows y and y + 1 that the kernel has.
DQ_INLINE __m256i ones_of(const DwS8Args& a, int y) {
  return _mm256_set1_epi32((y >= 0 && y < a.kernel[0] ? 1 : 0) |
                           (y + 1 < a.kernel[0] ? 0x10000 : 0));
}

// Output rows oy and oy + 1 (when second), kX adjacent outputs. Pair p holds the kernel's rows
// 2 p, 2 p + 1 of the upper output and 2 p - 1, 2 p of the lower one; pairs are kept in a ring
// whose first is `head`. kKernel: 3 for 3x3 kernels, else 0.
template <bool kFactor, int kX, int kKernel>
DQ_INLINE void two_rows(const Wide& k, int head, int64_t oy, int64_t ox, bool second) {
  const DwS8Args& a = *k.a;
  const int64_t count = columns_of(a);
  const int pairs = kKernel == 3 ? 2 : row_pairs_of(a);
  const int width = kKernel == 3 ? 3 : a.kernel[1];
  __m256i acc[2][kX][kQuads], window[2][kX][kQuads];
#pragma GCC unroll 4
  for (int j = 0; j < kQuads; ++j) {
    __m256i sum[2][kX], ones_sum[2][kX];
#pragma GCC unroll 2
    for (int x = 0; x < kX; ++x) {
      sum[0][x] = sum[1][x] = k.correction[j];
      ones_sum[0][x] = ones_sum[1][x] = _mm256_setzero_si256();
    }
    const __m256i* w = k.weight + j * 2;
#pragma GCC unroll 2
    for (int p = 0; p < pairs; ++p) {
      const int slot = head + p < pairs ? head + p : head + p - pairs;
      const __m256i* column = k.columns + (slot * count + ox * a.stride[1]) * kQuads + j;
      const __m256i upper_ones = ones_of(a, 2 * p), lower_ones = ones_of(a, 2 * p - 1);
#pragma GCC unroll 3
      for (int kx = 0; kx < width; ++kx) {
        const __m256i upper = w[0], lower = w[1];
#pragma GCC unroll 2
        for (int x = 0; x < kX; ++x) {
          const __m256i v = column[x * a.stride[1] * kQuads];
          sum[0][x] = _mm256_add_epi32(sum[0][x], _mm256_madd_epi16(v, upper));
          sum[1][x] = _mm256_add_epi32(sum[1][x], _mm256_madd_epi16(v, lower));
          if constexpr (kFactor) {
            ones_sum[0][x] = _mm256_add_epi32(ones_sum[0][x], _mm256_madd_epi16(v, upper_ones));
            ones_sum[1][x] = _mm256_add_epi32(ones_sum[1][x], _mm256_madd_epi16(v, lower_ones));
          }
        }
        w += kQuads * 2;
        column += a.dilation[1] * kQuads;
      }
    }
#pragma GCC unroll 2
    for (int x = 0; x < kX; ++x) {
#pragma GCC unroll 2
      for (int y = 0; y < 2; ++y) {
        acc[y][x][j] = sum[y][x];
        window[y][x][j] = ones_sum[y][x];
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

template <bool kFactor, int kKernel>
void twos(const Wide& k) {
  const DwS8Args& a = *k.a;
  const int64_t pair_vectors = columns_of(a) * kQuads;
  const int pairs = row_pairs_of(a);
  const int64_t top = a.oy0 - a.padding[0];
  for (int p = 0; p + 1 < pairs; ++p) interleave(k, top + 2 * p, k.columns + p * pair_vectors);
  int head = 0;
  for (int64_t oy = a.oy0; oy < a.oy1; oy += 2) {
    const int last = head == 0 ? pairs - 1 : head - 1;
    interleave(k, oy - a.padding[0] + 2 * (pairs - 1), k.columns + last * pair_vectors);
    const bool second = oy + 1 < a.oy1;
    int64_t ox = 0;
    for (; ox + 2 <= a.out_w; ox += 2) two_rows<kFactor, 2, kKernel>(k, head, oy, ox, second);
    if (ox < a.out_w) two_rows<kFactor, 1, kKernel>(k, head, oy, ox, second);
    head = head + 1 < pairs ? head + 1 : 0;
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
        const __m256i ones = ones_of(a, 2 * p);
        const __m256i* x = k.columns + (p * count + ox * a.stride[1]) * kQuads;
        const __m256i* w = k.weight + p * a.kernel[1] * kQuads * 2;
        for (int kx = 0; kx < a.kernel[1]; ++kx) {
#pragma GCC unroll 4
          for (int j = 0; j < kQuads; ++j) {
            acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(x[j], w[j * 2]));
            if constexpr (kFactor) {
              window[j] = _mm256_add_epi32(window[j], _mm256_madd_epi16(x[j], ones));
            }
          }
          x += a.dilation[1] * kQuads;
          w += kQuads * 2;
        }
      }
      if constexpr (kFactor) add_window(k, acc, window);
      finish(k, oy, ox, acc);
    }
  }
}

// [16-channel group][rows / 4][kw][16][4 rows] of int8 to pairs of int16.
void widen_weights(const Wide& k, const int8_t* weight) {
  const DwS8Args& a = *k.a;
  const int row_groups = (a.kernel[0] + 3) / 4;
  const int64_t group_bytes = int64_t{row_groups} * a.kernel[1] * kBlock * 4;
  // int16 pair of bytes i and i + 1 of every 4 (none for -1 and 4): each byte moves up in its word,
  // then down with its sign.
  const auto pick = [](__m256i v, int i) __attribute__((always_inline)) {
    const auto word = [&](int byte) { return (byte < 0 || byte > 3 ? 0x80 : byte) << 8 | 0x80; };
    const __m256i mask =
        _mm256_add_epi8(_mm256_set1_epi32(word(i + 1) << 16 | word(i)),
                        _mm256_setr_epi8(0, 0, 0, 0, 0, 4, 0, 4, 0, 8, 0, 8, 0, 12, 0, 12, 0, 0, 0,
                                         0, 0, 4, 0, 4, 0, 8, 0, 8, 0, 12, 0, 12));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(v, mask), 8);
  };
  for (int p = 0; p < row_pairs_of(a); ++p) {
    for (int kx = 0; kx < a.kernel[1]; ++kx) {
      for (int j = 0; j < kQuads; ++j) {
        // the four rows of which this pair's upper rows are two; the lower output's pair may start
        // in the four before, and the last pair may lie past the kernel
        const auto fours = [&](int g) __attribute__((always_inline)) {
          if (g < 0 || g >= row_groups) return _mm256_setzero_si256();
          return lanes_of(weight + (g * a.kernel[1] + kx) * kBlock * 4, group_bytes, j, k.groups);
        };
        const int g = p / 2;
        const __m256i here = fours(g);
        __m256i* out = k.weight + ((p * a.kernel[1] + kx) * kQuads + j) * 2;
        if (p % 2 == 0) {
          out[0] = pick(here, 0);
          out[1] = _mm256_or_si256(pick(here, -1), pick(fours(g - 1), 3));
        } else {
          out[0] = pick(here, 2);
          out[1] = pick(here, 1);
        }
      }
    }
  }
}

template <bool kFactor>
auto variant_of(const DwS8Args& a) {
  if (!takes_twos(a)) return singles<kFactor>;
  return a.kernel[0] == 3 && a.kernel[1] == 3 ? twos<kFactor, 3> : twos<kFactor, 0>;
}

}  // namespace

size_t dw_s8_scratch(const DwS8Args& a) {
  return static_cast<size_t>(row_pairs_of(a) * (columns_of(a) + 2 * a.kernel[1]) * kQuads) *
         sizeof(__m256i);
}

void dw_s8(const DwS8Args& a) {
  const int64_t channel_bytes = int64_t{(a.kernel[0] + 3) / 4} * a.kernel[1] * 4;
  Wide k{};
  k.a = &a;
  k.columns = static_cast<__m256i*>(a.scratch);
  k.weight = k.columns + row_pairs_of(a) * columns_of(a) * kQuads;
  const auto run = a.window_factor != nullptr ? variant_of<true>(a) : variant_of<false>(a);
  for (k.c0 = 0; k.c0 < a.channels; k.c0 += kWide) {
    const int64_t left = a.channels - k.c0;
    k.n = static_cast<int>(left < kWide ? left : kWide);
    k.groups = (k.n + kBlock - 1) / kBlock;
    widen_weights(k, a.weight + k.c0 * channel_bytes);
    for (int j = 0; j < kQuads; ++j) {
      k.correction[j] = lanes_of(a.correction + k.c0, kBlock * 4, j, k.groups);
      k.scale[j] = _mm256_castsi256_ps(lanes_of(a.scale + k.c0, kBlock * 4, j, k.groups));
      k.bias[j] = _mm256_castsi256_ps(lanes_of(a.bias + k.c0, kBlock * 4, j, k.groups));
      if (a.window_factor != nullptr) {
        k.factor[j] = lanes_of(a.window_factor + k.c0, kBlock * 4, j, k.groups);
      }
    }
    run(k);
  }
}

}  // namespace defakeq::avx2

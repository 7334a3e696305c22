// Depthwise convolution, 64 channels at a time. Four input rows are interleaved to
// [column][channel] [4 rows], so that one vpdpbusd takes four taps of a kernel column; activations
// are the unsigned operand (x + 128). The byte unpacks permute channels within a vector quadruple
// in the way that the final packs undo. 3-row kernels of stride 1 compute two output rows from one
// interleaving.
#include <limits>

#include "kernels/simd/epilogue.h"
#include "kernels/simd/tiles.h"
#include "kernels/x86/avx512vnni/dw_interleave.h"
#include "kernels/x86/avx512vnni/dw_pairs.h"
#include "kernels/x86/avx512vnni/dw_steps.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

namespace {

void finish(const Wide& k, int64_t oy, int64_t ox, __m512i (&acc)[kLanes]) {
  const DwS8Args& a = *k.a;
  const Post& post = a.post;
  __m512 y[kLanes];
#pragma GCC unroll 4
  for (int j = 0; j < kLanes; ++j) {
    __m512 f = _mm512_cvtepi32_ps(acc[j]);
    if (a.has_row_scale) f = _mm512_mul_ps(f, _mm512_set1_ps(a.row_scale));
    y[j] = _mm512_fmadd_ps(f, k.scale[j], k.bias[j]);
  }
  const int64_t pixel = oy * a.out_w + ox;
  if (post.out_dtype == DType::kInt8 && post.residual == nullptr) {
    if (post.activation != Activation::kNone) {
#pragma GCC unroll 4
      for (int j = 0; j < kLanes; ++j) y[j] = simd::activate<Vec>(post.activation, y[j]);
    }
    __m512i q[kLanes];
#pragma GCC unroll 4
    for (int j = 0; j < kLanes; ++j) q[j] = simd::quantized<Vec>(post, y[j]);
    __m512i bytes =
        _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
    if (post.table != nullptr) bytes = Lookup(post.table)(bytes);
    int8_t* out = static_cast<int8_t*>(a.out) + pixel * a.out_stride + k.c0;
    if (k.n == kWide) {
      _mm512_storeu_si512(out, bytes);
    } else {
      _mm512_mask_storeu_epi8(out, (__mmask64{1} << k.n) - 1, bytes);
    }
    return;
  }
  __m512 natural[kLanes];
  in_order(y, natural);
  for (int l = 0; l < k.groups; ++l) {
    __m512 one[1] = {natural[l]};
    const int left = k.n - l * kBlock;
    simd::finish_block<Vec>(post, a.out, a.out_stride, pixel, k.c0 + l * kBlock,
                            left < kBlock ? left : kBlock, one);
  }
}

// Output rows oy and oy + 1 (when second) of a 3-row, stride-1 kernel. The second row reads the
// same interleaved bytes one row further down: its weights are shifted by a byte (k.weight[12..]).
template <bool kFactor>
DQ_INLINE void pair_dots(const Wide& k, int64_t ox, __m512i (&acc)[2][kLanes]) {
#pragma GCC unroll 4
  for (int j = 0; j < kLanes; ++j) acc[0][j] = acc[1][j] = k.correction[j];
#pragma GCC unroll 3
  for (int kx = 0; kx < 3; ++kx) {
#pragma GCC unroll 4
    for (int j = 0; j < kLanes; ++j) {
      const __m512i x = k.columns[(ox + kx) * kLanes + j];
      acc[0][j] = _mm512_dpbusd_epi32(acc[0][j], x, k.weight[kx * kLanes + j]);
      acc[1][j] = _mm512_dpbusd_epi32(acc[1][j], x, k.weight[(3 + kx) * kLanes + j]);
    }
  }
  if constexpr (kFactor) {
    const __m512i ones[2] = {_mm512_set1_epi32(0x00010101), _mm512_set1_epi32(0x01010100)};
#pragma GCC unroll 4
    for (int j = 0; j < kLanes; ++j) {
#pragma GCC unroll 2
      for (int y = 0; y < 2; ++y) {
        __m512i window = _mm512_setzero_si512();
#pragma GCC unroll 3
        for (int kx = 0; kx < 3; ++kx) {
          window = _mm512_dpbusd_epi32(window, k.columns[(ox + kx) * kLanes + j], ones[y]);
        }
        acc[y][j] = _mm512_add_epi32(acc[y][j], _mm512_mullo_epi32(window, k.factor[j]));
      }
    }
  }
}

// Outputs of a band that are computed at a time: as many as leave their columns in the L1 cache.
struct Piece {
  int64_t oy, x;  // of the first
  int rows;
  int64_t width;
};

template <int kSegments, bool kWhole>
void store_words(const Wide& k, const Piece& piece) {
  const DwS8Args& a = *k.a;
  const __m512i zero_point = _mm512_set1_epi16(static_cast<int16_t>(a.post.zero_point));
  // dword 4 l + j of the output is channels 16 l + 4 j .. + 3
  const __m512i order = _mm512_setr_epi32(0, 8, 2, 10, 1, 9, 3, 11, 4, 12, 6, 14, 5, 13, 7, 15);
  const Finish finish(a.post);
  const __m256i* words = k.words;
  for (int row = 0; row < piece.rows; ++row) {
    int8_t* out =
        static_cast<int8_t*>(a.out) + k.c0 + ((piece.oy + row) * a.out_w + piece.x) * a.out_stride;
    for (int64_t x = 0; x < piece.width; ++x, words += kLanes, out += a.out_stride) {
      const __m512i low = _mm512_adds_epi16(_mm512_loadu_si512(words), zero_point);
      const __m512i up = _mm512_adds_epi16(_mm512_loadu_si512(words + 2), zero_point);
      const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, up));
      store_pixel<kSegments, kWhole>(k, out, finish(bytes));
    }
  }
}

// The int16 results of a piece become bytes.
void store_words(const Wide& k, const Piece& piece) {
  if (k.segments == 4) return store_words<4, false>(k, piece);
  if (k.segments == 2) return store_words<2, false>(k, piece);
  k.n == kWide ? store_words<1, true>(k, piece) : store_words<1, false>(k, piece);
}

// The epilogue needs nothing but bias, relu and bytes.
bool plain_int8(const DwS8Args& a) {
  const Post& post = a.post;
  return post.out_dtype == DType::kInt8 && post.inv_scale == 1.0f && post.residual == nullptr &&
         !a.has_row_scale && post.low == static_cast<float>(-128 - post.zero_point) &&
         (post.activation == Activation::kNone || post.activation == Activation::kRelu);
}

template <bool kFactor>
void pairs(const Wide& k) {
  const DwS8Args& a = *k.a;
  for (int64_t oy = a.oy0; oy < a.oy1; oy += 2) {
    interleave(k, oy - a.padding[0], 0, columns_of(a), k.columns);
    const bool second = oy + 1 < a.oy1;
    for (int64_t ox = 0; ox < a.out_w; ++ox) {
      __m512i acc[2][kLanes];
      pair_dots<kFactor>(k, ox, acc);
      finish(k, oy, ox, acc[0]);
      if (second) finish(k, oy + 1, ox, acc[1]);
    }
  }
}

// Row `row` of the band from output row oy on with the plain epilogue, one vector of the quadruple:
// up to 8 adjacent outputs share the loads of weights and columns.
template <int kKernel, int kStride, bool kFactor, bool kFloat>
void band_words(const Wide& k, const Piece& piece, int row, int j) {
  constexpr int kGroups = (kKernel + 3) / 4;
  const DwS8Args& a = *k.a;
  const int64_t count = (piece.width - 1) * kStride + kKernel;
  const __m512i* w = k.weight + row * kGroups * kKernel * kLanes + j;
  const __m512i* columns = k.columns + j;
  const __m512i correction = k.correction[j], factor = k.factor[j];
  const __m512 scale = k.scale[j], bias = k.bias[j], high = _mm512_set1_ps(a.post.high);
  const __m512 floor = _mm512_set1_ps(
      a.post.activation == Activation::kRelu ? 0.0f : -std::numeric_limits<float>::infinity());
  if constexpr (kFactor) {
    __m512i ones[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      uint32_t bytes = 0;
      for (int i = 0; i < 4; ++i) {
        const int ky = 4 * g + i - row * kStride;
        if (ky >= 0 && ky < kKernel) bytes |= 1u << (8 * i);
      }
      ones[g] = _mm512_set1_epi32(static_cast<int32_t>(bytes));
    }
    for (int64_t c = 0; c < count; ++c) {
      __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        sum = _mm512_dpbusd_epi32(sum, columns[(g * count + c) * kLanes], ones[g]);
      }
      k.sums[c] = sum;
    }
  }
  __m256i* words = k.words + row * piece.width * kLanes + j;
  float* floats =
      static_cast<float*>(a.out) + k.c0 + ((piece.oy + row) * a.out_w + piece.x) * a.out_stride;
  simd::for_tiles<8>(piece.width, [&]<int kX>(int64_t ox) {
    __m512i acc[kX];
#pragma GCC unroll 8
    for (int i = 0; i < kX; ++i) acc[i] = correction;
    for (int g = 0; g < kGroups; ++g) {
      const __m512i* x = columns + (g * count + ox * kStride) * kLanes;
      const __m512i* wg = w + g * kKernel * kLanes;
#pragma GCC unroll 8
      for (int kx = 0; kx < kKernel; ++kx) {
        const __m512i wv = wg[kx * kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kX; ++i) {
          acc[i] = _mm512_dpbusd_epi32(acc[i], x[(i * kStride + kx) * kLanes], wv);
        }
      }
    }
    if constexpr (kFactor) {
      const __m512i* sums = k.sums + ox * kStride;
      __m512i window = sums[0];
#pragma GCC unroll 8
      for (int kx = 1; kx < kKernel; ++kx) window = _mm512_add_epi32(window, sums[kx]);
#pragma GCC unroll 8
      for (int i = 0; i < kX; ++i) {
        // both fit 16 bits, and the sum's upper half is zero
        acc[i] = _mm512_dpwssd_epi32(acc[i], window, factor);
        if (i + 1 == kX) break;
#pragma GCC unroll 2
        for (int step = 0; step < kStride; ++step) {
          window = _mm512_add_epi32(window, _mm512_sub_epi32(sums[i * kStride + step + kKernel],
                                                             sums[i * kStride + step]));
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kX; ++i) {
      __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[i]), scale, bias);
      y = _mm512_max_ps(y, floor);
      if constexpr (kFloat) {
        // whole quadruples are put in order later, in place
        if (k.n == kWide) {
          _mm512_storeu_ps(floats + (ox + i) * a.out_stride + j * kBlock, y);
        } else {
          store_floats(k, floats + (ox + i) * a.out_stride, j, y);
        }
      } else {
        words[(ox + i) * kLanes] = _mm512_cvtsepi32_epi16(Vec::rne(_mm512_min_ps(high, y)));
      }
    }
  });
}

// Puts the quadruples of a piece in order.
void order_floats(const Wide& k, const Piece& piece) {
  const DwS8Args& a = *k.a;
  for (int64_t i = 0; i < piece.rows * piece.width; ++i) {
    const int64_t row = piece.oy + i / piece.width, x = piece.x + i % piece.width;
    float* out = static_cast<float*>(a.out) + (row * a.out_w + x) * a.out_stride + k.c0;
    __m512 y[kLanes], natural[kLanes];
#pragma GCC unroll 4
    for (int j = 0; j < kLanes; ++j) y[j] = _mm512_loadu_ps(out + j * kBlock);
    in_order(y, natural);
#pragma GCC unroll 4
    for (int j = 0; j < kLanes; ++j) _mm512_storeu_ps(out + j * kBlock, natural[j]);
  }
}

// All output rows that read the same interleaved rows.
template <int kKernel, int kStride, bool kFactor, bool kFloat>
void bands(const Wide& k) {
  constexpr int64_t kWidth = 16 / kStride;
  const DwS8Args& a = *k.a;
  const int band = band_rows(a);
  for (int64_t oy = a.oy0; oy < a.oy1; oy += band) {
    for (int64_t x = 0; x < k.out_w; x += kWidth) {
      const Piece piece = {oy, x, static_cast<int>(a.oy1 - oy < band ? a.oy1 - oy : band),
                           k.out_w - x < kWidth ? k.out_w - x : kWidth};
      const int64_t count = (piece.width - 1) * kStride + kKernel;
      for (int g = 0; g < (kKernel + 3) / 4; ++g) {
        interleave(k, oy * kStride - a.padding[0] + 4 * g, x * kStride, count,
                   k.columns + g * count * kLanes);
      }
      for (int j = 0; j < kLanes; ++j) {
        for (int row = 0; row < piece.rows; ++row) {
          band_words<kKernel, kStride, kFactor, kFloat>(k, piece, row, j);
        }
      }
      if constexpr (!kFloat) {
        store_words(k, piece);
      } else if (k.n == kWide) {
        order_floats(k, piece);
      }
    }
  }
}

template <bool kFactor>
void singles(const Wide& k) {
  const DwS8Args& a = *k.a;
  const int row_groups = (a.kernel[0] + 3) / 4;
  const int64_t count = columns_of(a);
  for (int64_t oy = a.oy0; oy < a.oy1; ++oy) {
    for (int g = 0; g < row_groups; ++g) {
      interleave(k, oy * a.stride[0] - a.padding[0] + int64_t{4 * g} * a.dilation[0], 0, count,
                 k.columns + g * count * kLanes);
    }
    for (int64_t ox = 0; ox < a.out_w; ++ox) {
      __m512i acc[kLanes], window[kLanes];
#pragma GCC unroll 4
      for (int j = 0; j < kLanes; ++j) {
        acc[j] = k.correction[j];
        window[j] = _mm512_setzero_si512();
      }
      for (int g = 0; g < row_groups; ++g) {
        const int rows = a.kernel[0] - 4 * g;
        const __m512i ones = _mm512_set1_epi32(rows >= 4   ? 0x01010101
                                               : rows == 3 ? 0x00010101
                                               : rows == 2 ? 0x00000101
                                                           : 0x00000001);
        const __m512i* x = k.columns + (g * count + ox * a.stride[1]) * kLanes;
        const __m512i* w = k.weight + g * a.kernel[1] * kLanes;
        for (int kx = 0; kx < a.kernel[1]; ++kx) {
#pragma GCC unroll 4
          for (int j = 0; j < kLanes; ++j) {
            acc[j] = _mm512_dpbusd_epi32(acc[j], x[j], w[j]);
            if constexpr (kFactor) window[j] = _mm512_dpbusd_epi32(window[j], x[j], ones);
          }
          x += a.dilation[1] * kLanes;
          w += kLanes;
        }
      }
      if constexpr (kFactor) {
#pragma GCC unroll 4
        for (int j = 0; j < kLanes; ++j) {
          acc[j] = _mm512_add_epi32(acc[j], _mm512_mullo_epi32(window[j], k.factor[j]));
        }
      }
      finish(k, oy, ox, acc);
    }
  }
}

using Variant = void (*)(const Wide&);

// Floats without anything but bias and relu.
bool plain_float(const DwS8Args& a) {
  const Post& post = a.post;
  return post.out_dtype == DType::kFloat32 && post.residual == nullptr && !a.has_row_scale &&
         (post.activation == Activation::kNone || post.activation == Activation::kRelu);
}

template <bool kFactor, bool kFloat>
Variant bands_variant(int32_t kernel, bool one) {
  switch (kernel) {
    case 3:
      return one ? bands<3, 1, kFactor, kFloat> : bands<3, 2, kFactor, kFloat>;
    case 5:
      return one ? bands<5, 1, kFactor, kFloat> : bands<5, 2, kFactor, kFloat>;
    case 7:
      return one ? bands<7, 1, kFactor, kFloat> : bands<7, 2, kFactor, kFloat>;
    default:
      return nullptr;
  }
}

// What runs one vector of the quadruple at a time along whole output rows, or null.
template <bool kFactor>
Variant words_variant(const DwS8Args& a) {
  const bool square = a.kernel[0] == a.kernel[1] && a.stride[0] == a.stride[1] &&
                      a.dilation[0] == 1 && a.dilation[1] == 1;
  if (!square || a.stride[0] > 2) return nullptr;
  const bool one = a.stride[0] == 1;
  if (plain_float(a)) return bands_variant<kFactor, true>(a.kernel[0], one);
  if (!plain_int8(a)) return nullptr;
  return bands_variant<kFactor, false>(a.kernel[0], one);
}

// What keeps the window in registers, with the plain int8 epilogue, or null.
template <bool kFactor>
Variant stream_variant(const DwS8Args& a) {
  if (words_variant<kFactor>(a) == nullptr || !plain_int8(a) || a.kernel[0] != 3) return nullptr;
  return a.stride[0] == 1 ? row_pairs : all_steps<kFactor>;
}

template <bool kFactor>
Variant other_variant(const DwS8Args& a) {
  const bool pair = a.kernel[0] == 3 && a.kernel[1] == 3 && a.stride[0] == 1 && a.stride[1] == 1 &&
                    a.dilation[0] == 1 && a.dilation[1] == 1;
  return pair ? pairs<kFactor> : singles<kFactor>;
}

// What one wide block of channels from k.c0 on needs; k.segments is known.
void load_parameters(Wide& k) {
  const DwS8Args& a = *k.a;
  const int64_t taps = int64_t{(a.kernel[0] + 3) / 4} * a.kernel[1];
  const int repeat = kLanes / k.segments, band = band_rows(a);
  const int8_t* weight = a.weight + k.c0 * taps * 4;
  for (int64_t t = 0; t < taps; ++t) {
    for (int j = 0; j < kLanes; ++j) {
      k.weight[t * kLanes + j] =
          lanes_of(weight + t * kBlock * 4, taps * kBlock * 4, j, k.groups, repeat);
    }
  }
  for (int row = 1; row < band; ++row) {
    const auto shift = static_cast<unsigned>(8 * row * a.stride[0]);
    for (int64_t i = 0; i < taps * kLanes; ++i) {
      const int64_t above = i - a.kernel[1] * kLanes;
      __m512i v = _mm512_slli_epi32(k.weight[i], shift);
      if (above >= 0) v = _mm512_or_si512(v, _mm512_srli_epi32(k.weight[above], 32 - shift));
      k.weight[row * taps * kLanes + i] = v;
    }
  }
  for (int j = 0; j < kLanes; ++j) {
    k.correction[j] = lanes_of(a.correction + k.c0, kBlock * 4, j, k.groups, repeat);
    k.scale[j] = _mm512_castsi512_ps(lanes_of(a.scale + k.c0, kBlock * 4, j, k.groups, repeat));
    k.bias[j] = _mm512_castsi512_ps(lanes_of(a.bias + k.c0, kBlock * 4, j, k.groups, repeat));
    if (a.window_factor != nullptr) {
      k.factor[j] = lanes_of(a.window_factor + k.c0, kBlock * 4, j, k.groups, repeat);
    }
  }
}

}  // namespace

size_t dw_s8_scratch(const DwS8Args& a) {
  const int64_t row_groups = (a.kernel[0] + 3) / 4, band = band_rows(a);
  const int64_t vectors =
      (row_groups * (columns_of(a) + band * a.kernel[1]) + (band * a.out_w + 1) / 2) * kLanes +
      columns_of(a);
  return static_cast<size_t>(vectors) * sizeof(__m512i);
}

void dw_s8(const DwS8Args& a) {
  const int row_groups = (a.kernel[0] + 3) / 4;
  Wide k{};
  k.a = &a;
  k.columns = static_cast<__m512i*>(a.scratch);
  k.weight = k.columns + row_groups * columns_of(a) * kLanes;
  k.sums = k.weight + band_rows(a) * row_groups * a.kernel[1] * kLanes;
  k.words = reinterpret_cast<__m256i*>(k.sums + columns_of(a));
  const bool factor = a.window_factor != nullptr;
  const Variant words = factor ? words_variant<true>(a) : words_variant<false>(a);
  const Variant stream = factor ? stream_variant<true>(a) : stream_variant<false>(a);
  const Variant other = factor ? other_variant<true>(a) : other_variant<false>(a);
  for (k.c0 = 0; k.c0 < a.channels; k.c0 += kWide) {
    const int64_t left = a.channels - k.c0;
    k.n = static_cast<int>(left < kWide ? left : kWide);
    k.groups = (k.n + kBlock - 1) / kBlock;
    k.segments = words != nullptr ? segments_for(a, k.groups) : 1;
    k.segment_step = a.out_w / k.segments;
    k.out_w = a.out_w - (k.segments - 1) * k.segment_step;
    load_parameters(k);
    if (stream != nullptr && (stream == row_pairs ? row_pairs_fit(k) : steps_fit(k))) {
      stream(k);
    } else {
      words != nullptr ? words(k) : other(k);
    }
  }
}

}  // namespace defakeq::avx512vnni

// float32 weights on int8 activations: a lane is a row of the output, so a handful of outputs costs
// no more than it must; every lane still adds along the reduction in order, one fma a step. Pixels
// are turned once, however many kernel positions meet them, and become floats in registers.
#include <algorithm>

#include "kernels/simd/epilogue.h"
#include "kernels/simd/tiles.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

namespace {

// Vector q of four has the values 4 l + q of lane 128-bit lanes l: swaps rows and columns of each
// 4 x 4 values of 4 bytes.
DQ_INLINE void transpose_quarters(__m512i (&v)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  v[0] = _mm512_unpacklo_epi64(a, c);
  v[1] = _mm512_unpackhi_epi64(a, c);
  v[2] = _mm512_unpacklo_epi64(b, d);
  v[3] = _mm512_unpackhi_epi64(b, d);
}

// 16 bytes of 16 pixels: lane r of vector j gets bytes 4j .. 4j + 3 of pixel r.
template <class Load>
DQ_INLINE void turn_16(Load&& load, __m512i (&v)[4]) {
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    v[q] = _mm512_zextsi128_si512(load(q));
    v[q] = _mm512_mask_broadcast_i32x4(v[q], 0x00f0, load(4 + q));
    v[q] = _mm512_mask_broadcast_i32x4(v[q], 0x0f00, load(8 + q));
    v[q] = _mm512_mask_broadcast_i32x4(v[q], 0xf000, load(12 + q));
  }
  transpose_quarters(v);
}

// float(x - zero_point) of byte kByte of each lane. 2^23 + u is u in the low bits of a float, u
// being x + 128; shift is 2^23 + 128 + zero_point, so that the difference is exact.
template <int kByte>
DQ_INLINE __m512 to_floats(__m512i v, __m512 shift) {
  // (v & 0xff) ^ 0x4b000080
  const __m512i u =
      _mm512_ternarylogic_epi32(_mm512_srli_epi32(v, 8 * kByte), _mm512_set1_epi32(0xff),
                                _mm512_set1_epi32(0x4b000080), 0x6a);
  return _mm512_sub_ps(_mm512_castsi512_ps(u), shift);
}

DQ_INLINE __m512 shift_of(int32_t zero_point) {
  return _mm512_set1_ps(static_cast<float>((1 << 23) + 128 + zero_point));
}

// Bytes 0 and 2, and bytes 1 and 3, of each lane as x - zero_point: the differences have 8 bits, so
// the upper halves of two float32 numbers hold them.
DQ_INLINE void to_pairs(__m512i v, __m512 shift, __m512i (&pairs)[2]) {
  const __m512i a = _mm512_castps_si512(to_floats<0>(v, shift));
  const __m512i b = _mm512_castps_si512(to_floats<1>(v, shift));
  const __m512i c = _mm512_castps_si512(to_floats<2>(v, shift));
  const __m512i d = _mm512_castps_si512(to_floats<3>(v, shift));
  pairs[0] = _mm512_or_si512(_mm512_srli_epi32(a, 16), c);
  pairs[1] = _mm512_or_si512(_mm512_srli_epi32(b, 16), d);
}

// Four adjacent values of 16 pixels.
template <bool kPairs>
struct Four;
template <>
struct Four<false> {
  static constexpr int kBytes = 64;
  __m512i bytes;
  [[gnu::always_inline]] void load(const uint8_t* p) { bytes = _mm512_load_si512(p); }
  template <int kAt>
  [[gnu::always_inline]] __m512 get(__m512 shift) const {
    return to_floats<kAt>(bytes, shift);
  }
};
template <>
struct Four<true> {
  static constexpr int kBytes = 128;
  __m512i pairs[2];
  [[gnu::always_inline]] void load(const uint8_t* p) {
    pairs[0] = _mm512_load_si512(p);
    pairs[1] = _mm512_load_si512(p + 64);
  }
  template <int kAt>
  [[gnu::always_inline]] __m512 get(__m512) const {
    const __m512i pair = pairs[kAt % 2];
    return _mm512_castsi512_ps(
        kAt < 2 ? _mm512_slli_epi32(pair, 16)
                : _mm512_and_si512(pair, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
};

// A lane each of what differs from row to row; lanes without a row repeat row 0.
template <class Read>
DQ_INLINE __m512 of_rows(const int32_t* row, Read&& read) {
  alignas(64) float lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = read(int64_t{std::max(row[l], 0)});
  return _mm512_load_ps(lanes);
}

__m512 residual_of(const Post& post, const int32_t* row, int32_t column) {
  if (post.residual_dtype == DType::kFloat32) {
    const float* from = static_cast<const float*>(post.residual) + column;
    return of_rows(row, [&](int64_t r) { return from[r * post.residual_stride]; });
  }
  const int8_t* from = static_cast<const int8_t*>(post.residual) + column;
  alignas(16) int8_t lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    lanes[l] = from[std::max(row[l], 0) * post.residual_stride];
  }
  return _mm512_cvtepi32_ps(
      _mm512_sub_epi32(Vec::load_s8(lanes), _mm512_set1_epi32(post.residual_zero_point)));
}

// Ends the sums of output n and brings them into the type that is stored.
__m512i finished(const TurnedF32Args& a, const int32_t* row, int n, __m512 sums) {
  const Post& post = a.post;
  __m512 bias = _mm512_set1_ps(a.bias[n]);
  if (a.row_scale != nullptr) {
    sums = _mm512_mul_ps(sums, of_rows(row, [&](int64_t r) { return a.row_scale[r]; }));
  }
  if (a.row_bias != nullptr) {
    bias = of_rows(row, [&](int64_t r) { return a.row_bias[r * a.row_bias_stride + n]; });
  }
  __m512 y = _mm512_fmadd_ps(sums, _mm512_set1_ps(a.scale[n]), bias);
  if (post.residual != nullptr) {
    y = _mm512_fmadd_ps(residual_of(post, row, a.column[n]), _mm512_set1_ps(post.residual_scale),
                        y);
  }
  if (post.activation != Activation::kNone) y = simd::activate<Vec>(post.activation, y);
  return post.out_dtype == DType::kFloat32 ? _mm512_castps_si512(y)
                                           : simd::requantize<Vec>(post, y);
}

// Adjacent outputs: 16 rows of them.
void store_rows(const TurnedF32Args& a, const int32_t* row, const __m512i (&y)[kLanes]) {
  __m512i v[4][4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    // outputs 4g .. 4g + 3; lane l of v[g][q] has those of row 4l + q
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) v[g][q] = y[4 * g + q];
    transpose_quarters(v[g]);
  }
  alignas(64) int32_t rows[kLanes][kLanes];
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      _mm_store_si128(reinterpret_cast<__m128i*>(&rows[q][4 * g]), _mm512_castsi512_si128(v[g][q]));
      _mm_store_si128(reinterpret_cast<__m128i*>(&rows[4 + q][4 * g]),
                      _mm512_extracti32x4_epi32(v[g][q], 1));
      _mm_store_si128(reinterpret_cast<__m128i*>(&rows[8 + q][4 * g]),
                      _mm512_extracti32x4_epi32(v[g][q], 2));
      _mm_store_si128(reinterpret_cast<__m128i*>(&rows[12 + q][4 * g]),
                      _mm512_extracti32x4_epi32(v[g][q], 3));
    }
  }
  const auto stored = static_cast<__mmask16>((1u << a.outputs) - 1);
  for (int l = 0; l < kLanes; ++l) {
    if (row[l] < 0) continue;
    const int64_t at = row[l] * a.out_stride + a.column[0];
    const __m512i whole = _mm512_load_si512(rows[l]);
    if (a.post.out_dtype == DType::kFloat32) {
      _mm512_mask_storeu_epi32(static_cast<float*>(a.out) + at, stored, whole);
    } else {
      _mm_mask_storeu_epi8(static_cast<int8_t*>(a.out) + at, stored, _mm512_cvtepi32_epi8(whole));
    }
  }
}

// Outputs here and there.
void store_column(const TurnedF32Args& a, const int32_t* row, int n, __m512i y) {
  if (a.post.out_dtype == DType::kFloat32) {
    alignas(64) float lanes[kLanes];
    _mm512_store_si512(lanes, y);
    float* out = static_cast<float*>(a.out) + a.column[n];
    for (int l = 0; l < kLanes; ++l) {
      if (row[l] >= 0) out[row[l] * a.out_stride] = lanes[l];
    }
    return;
  }
  alignas(16) int8_t lanes[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes), _mm512_cvtepi32_epi8(y));
  int8_t* out = static_cast<int8_t*>(a.out) + a.column[n];
  for (int l = 0; l < kLanes; ++l) {
    if (row[l] >= 0) out[row[l] * a.out_stride] = lanes[l];
  }
}

// Ends the sums of a vector, [outputs][kLanes]: one function for all tiles.
[[gnu::noinline]] void finish(const TurnedF32Args& a, const int32_t* row, const float* sums,
                              bool adjacent) {
  if (!adjacent) {
    for (int n = 0; n < a.outputs; ++n) {
      store_column(a, row, n, finished(a, row, n, _mm512_load_ps(sums + n * kLanes)));
    }
    return;
  }
  __m512i y[kLanes] = {};
  for (int n = 0; n < a.outputs; ++n) {
    y[n] = finished(a, row, n, _mm512_load_ps(sums + n * kLanes));
  }
  store_rows(a, row, y);
}

// N outputs by V vectors.
template <int N, int V, bool kPairs>
[[gnu::noinline]] void tile(const TurnedF32Args& a, int64_t first, bool adjacent) {
  __m512 acc[N][V];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[n][v] = _mm512_setzero_ps();
  }
  const __m512 shift = shift_of(a.zero_point);
  const float* w = a.w;
  const auto whole = static_cast<int>(a.channels / 4), rest = static_cast<int>(a.channels % 4);
  for (int t = 0; t < a.taps; ++t) {
    const uint8_t* x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = a.x[(first + v) * a.taps + t];
    Four<kPairs> four[V];
    const auto load = [&](int64_t j) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) four[v].load(x[v] + j * Four<kPairs>::kBytes);
    };
    const auto step = [&]<int kAt>() __attribute__((always_inline)) {
      __m512 floats[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) floats[v] = four[v].template get<kAt>(shift);
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        const __m512 wv = _mm512_set1_ps(w[n]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[n][v] = _mm512_fmadd_ps(wv, floats[v], acc[n][v]);
      }
      w += kBlock;
    };
    for (int64_t j = 0; j < whole; ++j) {
      load(j);
      step.template operator()<0>();
      step.template operator()<1>();
      step.template operator()<2>();
      step.template operator()<3>();
    }
    if (rest == 0) continue;
    load(whole);
    step.template operator()<0>();
    if (rest > 1) step.template operator()<1>();
    if (rest > 2) step.template operator()<2>();
  }
  alignas(64) float sums[N * kLanes];
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) _mm512_store_ps(sums + n * kLanes, acc[n][v]);
    finish(a, a.row + (first + v) * kLanes, sums, adjacent);
  }
}

template <int N, bool kPairs = false>
void outputs_of(const TurnedF32Args& a) {
  bool adjacent = N > 2;
  for (int n = 1; n < N; ++n) adjacent = adjacent && a.column[n] == a.column[0] + n;
  int64_t v = 0;
  // Few outputs are few chains: more vectors hide the latency.
  if constexpr (N <= 4) {
    for (; v + 4 <= a.vectors; v += 4) tile<N, 4, kPairs>(a, v, adjacent);
  }
  if constexpr (N <= 8) {
    for (; v + 2 <= a.vectors; v += 2) tile<N, 2, kPairs>(a, v, adjacent);
  }
  for (; v < a.vectors; ++v) tile<N, 1, kPairs>(a, v, adjacent);
}

}  // namespace

void turn_pixels(const int8_t* const* pixels, int64_t bytes, bool pairs, int32_t zero_point,
                 uint8_t* turned) {
  const __m512 shift = shift_of(zero_point);
  const auto store = [&](int64_t at, const __m512i(&v)[4]) __attribute__((always_inline)) {
    for (int j = 0; j < 4 && at + 4 * j < bytes; ++j) {
      if (!pairs) {
        _mm512_store_si512(turned + (at + 4 * j) * kLanes, v[j]);
        continue;
      }
      __m512i pair[2];
      to_pairs(v[j], shift, pair);
      _mm512_store_si512(turned + (at + 4 * j) * 2 * kLanes, pair[0]);
      _mm512_store_si512(turned + (at + 4 * j) * 2 * kLanes + 64, pair[1]);
    }
  };
  __m512i v[4];
  int64_t at = 0;
  for (; at + 16 <= bytes; at += 16) {
    turn_16(
        [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels[r] + at)); },
        v);
    store(at, v);
  }
  if (at == bytes) return;
  const auto there = static_cast<__mmask16>((1u << (bytes - at)) - 1);
  turn_16([&](int r) { return _mm_maskz_loadu_epi8(there, pixels[r] + at); }, v);
  store(at, v);
}

void gemm_f32_turned(const TurnedF32Args& a) {
  if (a.pairs && a.outputs == 1) return outputs_of<1, true>(a);
  simd::with_rows<kLanes>(a.outputs, [&]<int N>() { outputs_of<N>(a); });
}

}  // namespace defakeq::avx512vnni

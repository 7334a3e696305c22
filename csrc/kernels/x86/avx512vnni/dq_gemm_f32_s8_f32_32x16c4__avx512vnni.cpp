// float32 weights on int8 activations: a lane is a row, so a handful of outputs costs no more than
// it must; every lane still adds along the reduction in order, one fma a step. Rows are turned 64
// bytes at a time and become floats in registers.
#include "kernels/simd/gemm_f32.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq::avx512vnni {

namespace {

constexpr int kLanes = 16;

// 16 x 16 values of 4 bytes.
DQ_INLINE void transpose(__m512i (&v)[kLanes]) {
  __m512i u[kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    u[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    u[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    v[i] = _mm512_unpacklo_epi64(u[i], u[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(u[i], u[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(u[i + 1], u[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(u[i + 1], u[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    u[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    u[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    u[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    u[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(u[i], u[i + 8], 0x88);
    v[i + 4] = _mm512_shuffle_i32x4(u[i + 4], u[i + 12], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(u[i], u[i + 8], 0xdd);
    v[i + 12] = _mm512_shuffle_i32x4(u[i + 4], u[i + 12], 0xdd);
  }
}

// Bytes [0, 64) of 16 rows, as x + 128: lane r of turned[j] has bytes 4j .. 4j + 3 of row r.
[[gnu::noinline]] void turn(const int8_t* const* x, int64_t at, __mmask64 there, __m512i* turned) {
  __m512i v[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) v[r] = _mm512_maskz_loadu_epi8(there, x[r] + at);
  transpose(v);
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) {
    turned[j] = _mm512_xor_si512(v[j], _mm512_set1_epi32(static_cast<int32_t>(0x80808080u)));
  }
}

// float(x - zero_point) of byte kByte of each lane. 2^23 + u is u in the low bits of a float;
// shift is 2^23 + 128 + zero_point, so that the difference is exact.
template <int kByte>
DQ_INLINE __m512 to_floats(__m512i v, __m512 shift) {
  const __m512i u =
      _mm512_ternarylogic_epi32(_mm512_srli_epi32(v, 8 * kByte), _mm512_set1_epi32(0xff),
                                _mm512_set1_epi32(0x4b000000), 0xea);
  return _mm512_sub_ps(_mm512_castsi512_ps(u), shift);
}

// Turns the lanes into outputs again and ends row after row, as any other product does.
template <int N>
void finish_rows(const GemmF32Args& a, int64_t row, int rows, int block, const __m512 (&y)[N]) {
  __m512i out[kLanes] = {};
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) out[n] = _mm512_castps_si512(y[n]);
  transpose(out);
  for (int r = 0; r < rows; ++r) {
    __m512 whole[1] = {_mm512_castsi512_ps(out[r])};
    simd::gemm_f32_finish<Vec>(a, row + r, block, whole);
  }
}

// The same while the lanes still are rows, where no number differs from row to row and output to
// output at once: N vectors of work instead of one a row.
template <int N>
void finish_lanes(const GemmF32Args& a, int64_t row, int rows, int block, const __m512 (&sums)[N]) {
  const Post& post = a.post;
  const int col = block * kBlock;
  const bool float_out = post.out_dtype == DType::kFloat32;
  const auto some = static_cast<__mmask16>((1u << rows) - 1);
  __m512i out[kLanes] = {};
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    __m512 y = sums[n];
    if (a.row_scale != nullptr) {
      y = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(some, a.row_scale + row));
    }
    y = _mm512_fmadd_ps(y, _mm512_set1_ps(a.scale[col + n]), _mm512_set1_ps(a.bias[col + n]));
    if (post.activation != Activation::kNone) y = simd::activate<Vec>(post.activation, y);
    out[n] = float_out ? _mm512_castps_si512(y) : simd::requantize<Vec>(post, y);
  }
  transpose(out);
  // What the lanes beyond N hold is open.
  const int left = a.n - col;
  const auto stored = static_cast<__mmask16>(left >= kBlock ? 0xffff : (1u << left) - 1);
  for (int r = 0; r < rows; ++r) {
    const int64_t at = (row + r) * a.out_stride + col;
    if (float_out) {
      _mm512_mask_storeu_ps(static_cast<float*>(a.out) + at, stored, _mm512_castsi512_ps(out[r]));
    } else {
      _mm_mask_storeu_epi8(static_cast<int8_t*>(a.out) + at, stored, _mm512_cvtepi32_epi8(out[r]));
    }
  }
}

// N outputs of a block by V vectors of 16 rows. rows: those of the tile, the last one repeated.
template <int N, int V>
void tile(const GemmF32Args& a, const int8_t* const* rows, int64_t row, int count, int block) {
  __m512 acc[N][V];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[n][v] = _mm512_setzero_ps();
  }
  const __m512 shift = _mm512_set1_ps(static_cast<float>((1 << 23) + 128 + a.zero_point));
  const float* w = a.w + block * a.w_stride;
  alignas(64) __m512i turned[V][kLanes];
  for (int t = 0; t < a.taps; ++t) {
    for (int64_t k = 0; k < a.length; k += 64) {
      const int64_t left = a.length - k;
      const __mmask64 there = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
      for (int v = 0; v < V; ++v) {
        turn(rows + v * kLanes, a.tap_offset[t] + k, there, turned[v]);
      }
      const auto step = [&]<int kByte>(int j) __attribute__((always_inline)) {
        __m512 x[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) x[v] = to_floats<kByte>(turned[v][j], shift);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
          const __m512 wv = _mm512_set1_ps(w[n]);
#pragma GCC unroll 2
          for (int v = 0; v < V; ++v) acc[n][v] = _mm512_fmadd_ps(wv, x[v], acc[n][v]);
        }
        w += kBlock;
      };
      const int whole = static_cast<int>(left >= 64 ? kLanes : left / 4);
      for (int j = 0; j < whole; ++j) {
        step.template operator()<0>(j);
        step.template operator()<1>(j);
        step.template operator()<2>(j);
        step.template operator()<3>(j);
      }
      const int64_t rest = left - whole * 4;
      if (rest > 0 && whole < kLanes) {
        step.template operator()<0>(whole);
        if (rest > 1) step.template operator()<1>(whole);
        if (rest > 2) step.template operator()<2>(whole);
      }
    }
  }
  for (int v = 0; v < V; ++v) {
    __m512 y[N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) y[n] = acc[n][v];
    const int left = count - v * kLanes;
    if (left <= 0) break;
    const int there = left < kLanes ? left : kLanes;
    if (a.post.residual == nullptr && a.row_bias == nullptr) {
      finish_lanes<N>(a, row + v * kLanes, there, block, y);
    } else {
      finish_rows<N>(a, row + v * kLanes, there, block, y);
    }
  }
}

template <int N, int V>
void block_of(const GemmF32Args& a, int block) {
  const int8_t* rows[V * kLanes];
  for (int64_t row = 0; row < a.m; row += V * kLanes) {
    const int count = static_cast<int>(a.m - row < V * kLanes ? a.m - row : V * kLanes);
    for (int r = 0; r < V * kLanes; ++r) rows[r] = a.bytes[row + (r < count ? r : count - 1)];
    tile<N, V>(a, rows, row, count, block);
  }
}

}  // namespace

void gemm_f32(const GemmF32Args& a) {
  if (a.bytes == nullptr) return simd::gemm_f32<Vec, 8, 2, NarrowVec>(a);
  for (int b = 0; b < a.blocks; ++b) {
    simd::with_rows<kBlock>(b + 1 < a.blocks ? kBlock : a.last_lanes, [&]<int N>() {
      // Few outputs are few chains: more rows hide the latency.
      block_of<N, N <= 4 ? 2 : 1>(a, b);
    });
  }
}

}  // namespace defakeq::avx512vnni

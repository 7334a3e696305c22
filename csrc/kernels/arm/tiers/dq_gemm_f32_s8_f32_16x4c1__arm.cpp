// float32 weights on int8 activations, a lane being a row of the output: a handful of outputs costs
// no more than it must, and every lane still adds along the reduction in order, one fma a step.
// Pixels become floats once, when they are turned.
#include <algorithm>

#include "kernels/arm/elementwise.h"
#include "kernels/arm/kernels.h"
#include "kernels/simd/tiles.h"

namespace defakeq::DQ_ISA {

namespace {

constexpr int kAtOnce = 4;  // outputs

// Channel c of the pixels, a byte each, to turned[c].
DQ_INLINE void store_turned(int8x16_t bytes, int8x8_t zero, float* turned) {
  float32x4x4_t y;
  bytes_to_f32(bytes, zero, y.val);
  vst1q_f32_x4(turned, y);
}

// Swaps rows and columns of 16 x 16 bytes: each pass brings the rows i and i + 8 together.
DQ_INLINE void transpose(int8x16_t (&v)[16]) {
#pragma GCC unroll 4
  for (int pass = 0; pass < 4; ++pass) {
    int8x16_t from[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) from[i] = v[i];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      v[2 * i] = vzip1q_s8(from[i], from[i + 8]);
      v[2 * i + 1] = vzip2q_s8(from[i], from[i + 8]);
    }
  }
}

// The rows of a vector's lanes, and whether they are equally far apart.
struct RowsOfLanes {
  const int32_t* row;
  bool even;
  int64_t step;
};

RowsOfLanes rows_of(const int32_t* row) {
  const int32_t step = row[1] - row[0];
  int32x4_t differs = vdupq_n_s32(0), expected = vld1q_s32(row);
  const int32_t lanes[4] = {0, step, 2 * step, 3 * step};
  expected = vaddq_s32(vdupq_n_s32(row[0]), vld1q_s32(lanes));
  for (int i = 0; i < 4; ++i) {
    differs = vorrq_s32(differs, veorq_s32(vld1q_s32(row + 4 * i), expected));
    expected = vaddq_s32(expected, vdupq_n_s32(4 * step));
  }
  return {row, vmaxvq_u32(vreinterpretq_u32_s32(differs)) == 0 && row[0] >= 0, step};
}

#define DQ_LANES(one)                                                                           \
  one(0) one(1) one(2) one(3) one(4) one(5) one(6) one(7) one(8) one(9) one(10) one(11) one(12) \
      one(13) one(14) one(15)

// A byte of each row; lanes without a row repeat row 0.
int8x16_t gather_bytes(const int8_t* from, int64_t stride, const RowsOfLanes& rows) {
  int8x16_t bytes = vdupq_n_s8(0);
  if (rows.even) {
    const int8_t* p = from + rows.row[0] * stride;
#define DQ_LOAD(lane) "ld1 {%[bytes].b}[" #lane "], [%[p]], %[step]\n\t"
    __asm__(DQ_LANES(DQ_LOAD)
            : [bytes] "+w"(bytes), [p] "+&r"(p)
            : [step] "r"(rows.step * stride)
            : "memory");
#undef DQ_LOAD
    return bytes;
  }
  int8_t lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = from[std::max(rows.row[l], 0) * stride];
  return vld1q_s8(lanes);
}

void scatter_bytes(int8_t* to, int64_t stride, const RowsOfLanes& rows, int8x16_t bytes) {
  if (rows.even) {
    int8_t* p = to + rows.row[0] * stride;
#define DQ_STORE(lane) "st1 {%[bytes].b}[" #lane "], [%[p]], %[step]\n\t"
    __asm__ volatile(DQ_LANES(DQ_STORE)
                     : [p] "+&r"(p)
                     : [bytes] "w"(bytes), [step] "r"(rows.step * stride)
                     : "memory");
#undef DQ_STORE
    return;
  }
  int8_t lanes[kLanes];
  vst1q_s8(lanes, bytes);
  for (int l = 0; l < kLanes; ++l) {
    if (rows.row[l] >= 0) to[rows.row[l] * stride] = lanes[l];
  }
}
#undef DQ_LANES

// A float of each row.
void gather_floats(const float* from, int64_t stride, const int32_t* row, float32x4_t (&y)[4]) {
  float lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = from[std::max(row[l], 0) * stride];
  for (int i = 0; i < 4; ++i) y[i] = vld1q_f32(lanes + 4 * i);
}

// Ends the sums of output n of a vector.
void finish(const TurnedF32Args& a, const RowsOfLanes& rows, int n, float32x4_t (&y)[4]) {
  const Post& post = a.post;
  const float32x4_t scale = vdupq_n_f32(a.scale[n]);
  float32x4_t bias[4], other[4];
  for (auto& part : bias) part = vdupq_n_f32(a.bias[n]);
  if (a.row_scale != nullptr) {
    gather_floats(a.row_scale, 1, rows.row, other);
    for (int i = 0; i < 4; ++i) y[i] = vmulq_f32(y[i], other[i]);
  }
  if (a.row_bias != nullptr) gather_floats(a.row_bias + n, a.row_bias_stride, rows.row, bias);
  for (int i = 0; i < 4; ++i) y[i] = vfmaq_f32(bias[i], y[i], scale);
  if (post.residual != nullptr) {
    const float32x4_t factor = vdupq_n_f32(post.residual_scale);
    if (post.residual_dtype == DType::kFloat32) {
      gather_floats(static_cast<const float*>(post.residual) + a.column[n], post.residual_stride,
                    rows.row, other);
    } else {
      bytes_to_f32(gather_bytes(static_cast<const int8_t*>(post.residual) + a.column[n],
                                post.residual_stride, rows),
                   vdup_n_s8(0), other);
      const float32x4_t zero = vdupq_n_f32(static_cast<float>(post.residual_zero_point));
      for (auto& part : other) part = vsubq_f32(part, zero);
    }
    for (int i = 0; i < 4; ++i) y[i] = vfmaq_f32(y[i], other[i], factor);
  }
  const bool relu = post.activation == Activation::kRelu;
  if (post.activation != Activation::kNone && !(relu && post.out_dtype == DType::kInt8)) {
    for (auto& part : y) part = simd::activate<Vec>(post.activation, part);
  }
  if (post.out_dtype == DType::kFloat32) {
    float lanes[kLanes];
    for (int i = 0; i < 4; ++i) vst1q_f32(lanes + 4 * i, y[i]);
    float* out = static_cast<float*>(a.out) + a.column[n];
    for (int l = 0; l < kLanes; ++l) {
      if (rows.row[l] >= 0) out[rows.row[l] * a.out_stride] = lanes[l];
    }
    return;
  }
  int8x16_t bytes = to_bytes<false, true>(plain_int8_of(post), y);
  if (post.table != nullptr) bytes = Table(post.table).at(bytes);
  scatter_bytes(static_cast<int8_t*>(a.out) + a.column[n], a.out_stride, rows, bytes);
}

// Outputs [first, first + N) of V vectors.
template <int N, int V>
void tile(const TurnedF32Args& a, int64_t vector, int first) {
  float32x4_t acc[N][V][4];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) acc[n][v][i] = vdupq_n_f32(0.0f);
    }
  }
  const float* w = a.w + first;
  for (int t = 0; t < a.taps; ++t) {
    const float* x[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      x[v] = reinterpret_cast<const float*>(a.x[(vector + v) * a.taps + t]);
    }
    for (int64_t c = 0; c < a.channels; ++c, w += kBlock) {
      float32x4_t wv;
      if constexpr (N == 1) {
        wv = vsetq_lane_f32(*w, vdupq_n_f32(0.0f), 0);
      } else if constexpr (N == 2) {
        wv = vcombine_f32(vld1_f32(w), vdup_n_f32(0.0f));
      } else {
        wv = vld1q_f32(w);
      }
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const float32x4x4_t xv = vld1q_f32_x4(x[v]);
        x[v] += kLanes;
        const auto add = [&]<int kLane>() __attribute__((always_inline)) {
          if constexpr (kLane < N) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
              acc[kLane][v][i] = vfmaq_laneq_f32(acc[kLane][v][i], xv.val[i], wv, kLane);
            }
          }
        };
        add.template operator()<0>();
        add.template operator()<1>();
        add.template operator()<2>();
        add.template operator()<3>();
      }
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const RowsOfLanes rows = rows_of(a.row + (vector + v) * kLanes);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      // a copy, so that the sums themselves need no place in memory
      float32x4_t y[4] = {acc[n][v][0], acc[n][v][1], acc[n][v][2], acc[n][v][3]};
      finish(a, rows, first + n, y);
    }
  }
}

template <int N>
void outputs_of(const TurnedF32Args& a, int first) {
  int64_t v = 0;
  // Few outputs are few chains: two vectors hide the latency.
  if constexpr (N <= 2) {
    for (; v + 2 <= a.vectors; v += 2) tile<N, 2>(a, v, first);
  }
  for (; v < a.vectors; ++v) tile<N, 1>(a, v, first);
}

}  // namespace

void turn_pixels(const int8_t* const* pixels, int64_t bytes, bool, int32_t zero_point,
                 uint8_t* turned) {
  auto* out = reinterpret_cast<float*>(turned);
  const int8x8_t zero = vdup_n_s8(static_cast<int8_t>(zero_point));
  if (bytes < kBlock) {
    for (int64_t c = 0; c < bytes; ++c) {
      int8_t lanes[kLanes];
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) lanes[l] = pixels[l][c];
      store_turned(vld1q_s8(lanes), zero, out + c * kLanes);
    }
    return;
  }
  for (int64_t at = 0; at < bytes; at += kBlock) {
    // the last channels, some of them again
    const int64_t from = std::min(at, bytes - kBlock);
    int8x16_t v[kLanes];
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) v[l] = vld1q_s8(pixels[l] + from);
    transpose(v);
    if (from == at) {
#pragma GCC unroll 16
      for (int c = 0; c < kBlock; ++c) store_turned(v[c], zero, out + (at + c) * kLanes);
    } else {
      int8_t columns[kBlock][kLanes];
      for (int c = 0; c < kBlock; ++c) vst1q_s8(columns[c], v[c]);
      for (int64_t c = at; c < bytes; ++c) {
        store_turned(vld1q_s8(columns[c - from]), zero, out + c * kLanes);
      }
    }
  }
}

void gemm_f32_turned(const TurnedF32Args& a) {
  for (int first = 0; first < a.outputs; first += kAtOnce) {
    simd::with_rows<kAtOnce>(std::min(a.outputs - first, kAtOnce),
                             [&]<int N>() { outputs_of<N>(a, first); });
  }
}

}  // namespace defakeq::DQ_ISA

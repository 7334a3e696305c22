// Winograd's F(4x4, 3x3), written once. V::Short is a vector of int16, V::Vec one of int32;
// arithmetic wraps.
#pragma once

#include <cstring>

#include "kernels/kernel_table.h"
#include "kernels/simd/math.h"
#include "kernels/simd/tiles.h"
#include "kernels/winograd_args.h"

namespace defakeq::simd {

// B^T d
template <class V>
DQ_INLINE void transform_input(const typename V::Short (&d)[6], typename V::Short (&t)[6]) {
  const auto a = V::template sub_shifted<2>(d[4], d[2]), b = V::template sub_shifted<2>(d[3], d[1]);
  const auto c = V::sub(d[4], d[2]), e = V::sub(d[3], d[1]);
  t[0] = V::template add_shifted<2>(c, V::sub(d[0], d[2]));
  t[1] = V::add(a, b);
  t[2] = V::sub(a, b);
  t[3] = V::template add_shifted<1>(c, e);
  t[4] = V::template sub_shifted<1>(c, e);
  t[5] = V::template sub_shifted<2>(V::sub(d[5], d[3]), e);
}

// G g times 4, -6, -6, 24, 24 and 1
template <class V>
DQ_INLINE void transform_weights(const typename V::Short (&g)[3], typename V::Short (&t)[6]) {
  const auto s = V::add(g[0], g[2]), f = V::template add_shifted<2>(g[0], g[2]);
  t[0] = g[0];
  t[1] = V::add(s, g[1]);
  t[2] = V::sub(s, g[1]);
  t[3] = V::template add_shifted<1>(f, g[1]);
  t[4] = V::template sub_shifted<1>(f, g[1]);
  t[5] = g[2];
}

// A^T m with the factors of transform_weights made even: 24, 12, 6 and 6 times the outputs.
template <class V>
DQ_INLINE void transform_output(const typename V::Vec::I (&m)[6], typename V::Vec::I (&y)[4]) {
  using Vec = typename V::Vec;
  const auto sum = Vec::add_i(m[1], m[2]), difference = Vec::sub_i(m[1], m[2]);
  const auto far_sum = Vec::add_i(m[3], m[4]), far_difference = Vec::sub_i(m[3], m[4]);
  y[2] = Vec::sub_i(far_sum, sum);
  if constexpr (V::kMultipliesAndAdds) {
    y[0] = V::template add_times<-4>(V::template add_times<6>(far_sum, m[0]), sum);
    y[1] = V::template add_times<-2>(far_difference, difference);
    const auto last = V::template add_times<2>(Vec::mul_i(m[5], Vec::set1_i(6)), far_difference);
    y[3] = Vec::sub_i(last, difference);
  } else {
    const auto twice = [](typename Vec::I v)
                           __attribute__((always_inline)) { return Vec::add_i(v, v); };
    const auto first = Vec::add_i(m[0], twice(Vec::sub_i(m[0], sum)));
    y[0] = Vec::add_i(twice(first), far_sum);
    y[1] = Vec::sub_i(far_difference, twice(difference));
    const auto last = Vec::add_i(Vec::add_i(m[5], twice(m[5])), far_difference);
    y[3] = Vec::sub_i(twice(last), difference);
  }
}

template <class V, bool kWhole>
DQ_INLINE void transform_pixels(const int8_t* const (&lines)[6], const int64_t (&column)[6],
                                int64_t count, int16_t* v, int64_t position_stride) {
  typename V::Short t[6][6];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    typename V::Short d[6], made[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      d[i] = kWhole ? V::load(lines[i] + column[j]) : V::load_part(lines[i] + column[j], count);
    }
    transform_input<V>(d, made);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) t[i][j] = made[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    typename V::Short made[6];
    transform_input<V>(t[i], made);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) V::store_next(v, position_stride, made[j]);
  }
}

template <class V>
void winograd_input(const WinogradInputArgs& a) {
  for (int64_t tile = 0; tile < a.count; ++tile) {
    const WinogradTile& from = a.tiles[tile];
    const int8_t* lines[6];
    int64_t column[6];
    for (int i = 0; i < 6; ++i) {
      // what is beyond the image meets no output that is kept
      lines[i] = from.x + (i < from.in_lines ? i : from.in_lines - 1) * a.line_stride;
      column[i] = (i < from.in_columns ? i : from.in_columns - 1) * a.pixel_stride;
    }
    int16_t* v = a.v + tile * a.tile_stride;
    int64_t c = 0;
    for (; c + V::kShorts <= a.channels; c += V::kShorts) {
      transform_pixels<V, true>(lines, column, V::kShorts, v + c, a.position_stride);
      for (const int8_t*& line : lines) line += V::kShorts;
    }
    if (c < a.channels) {
      transform_pixels<V, false>(lines, column, a.channels - c, v + c, a.position_stride);
      c += V::kShorts;
    }
    for (; c < a.tile_stride; c += V::kShorts) {
      int16_t* to = v + c;
      for (int p = 0; p < kWinogradPositions; ++p) V::store_next(to, a.position_stride, V::zero());
    }
  }
}

// Codes of 4 adjacent positions from `position` of a tap on, as a step of their own.
DQ_INLINE const uint8_t* step_at(const uint8_t* tap, int64_t tap_steps, int64_t position,
                                 uint32_t* buffer) {
  const int64_t step = position / 4;
  const int shift = static_cast<int>(position % 4) * 8;
  if (shift == 0) return tap + step * 64;
  uint32_t now[kBlock], next[kBlock] = {};
  std::memcpy(now, tap + step * 64, sizeof(now));
  if (step + 1 < tap_steps) std::memcpy(next, tap + (step + 1) * 64, sizeof(next));
  for (int i = 0; i < kBlock; ++i) buffer[i] = now[i] >> shift | next[i] << (32 - shift);
  return reinterpret_cast<const uint8_t*>(buffer);
}

template <class V>
void winograd_weights(const WinogradWeightArgs& a) {
  constexpr int kVectors = 4 * kBlock / V::kShorts;
  typename V::Short zero[kVectors];
  V::load_zero_points(a.zero_point, zero);
  for (int64_t s = 0; s * 4 < a.channels; ++s) {
    alignas(64) uint32_t buffer[9][kBlock];
    const uint8_t* codes[9];
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) {
      codes[k] = step_at(a.codes + k / 3 * a.tap_steps * 64, a.tap_steps,
                         k % 3 * a.channels + s * 4, buffer[k]);
    }
    typename V::Short q[9][kVectors];
#pragma GCC unroll 9
    for (int k = 0; k < 9; ++k) V::load_codes(codes[k], q[k]);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      typename V::Short t[3][6];
#pragma GCC unroll 3
      for (int x = 0; x < 3; ++x) {
        typename V::Short g[3];
#pragma GCC unroll 3
        for (int y = 0; y < 3; ++y) g[y] = V::sub(q[y * 3 + x][i], zero[i]);
        transform_weights<V>(g, t[x]);
      }
      int16_t* u = a.u + s * 4 * kBlock + i * V::kShorts;
#pragma GCC unroll 6
      for (int y = 0; y < 6; ++y) {
        const typename V::Short g[3] = {t[0][y], t[1][y], t[2][y]};
        typename V::Short made[6];
        transform_weights<V>(g, made);
#pragma GCC unroll 6
        for (int x = 0; x < 6; ++x) V::store_next(u, a.position_stride, made[x]);
      }
    }
  }
}

// The outputs of a tile, some lanes of them.
template <class V>
DQ_INLINE void winograd_output(const int32_t* m, int64_t position_stride, int32_t* out,
                               int64_t line_stride, int64_t pixel_stride) {
  using Vec = typename V::Vec;
  typename Vec::I t[6][4];
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    typename Vec::I column[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) column[i] = Vec::load_i(m + (i * 6 + j) * position_stride);
    transform_output<V>(column, t[j]);
  }
  const typename Vec::I inverse = Vec::set1_i(954437177);  // of 9, modulo 2^32
  const auto store_line = [&]<int kLine, int kPower>() __attribute__((always_inline)) {
    const typename Vec::I line[6] = {t[0][kLine], t[1][kLine], t[2][kLine],
                                     t[3][kLine], t[4][kLine], t[5][kLine]};
    typename Vec::I y[4];
    transform_output<V>(line, y);
    int32_t* to = out + kLine * line_stride;
    const auto store = [&]<int kColumn, int kShift>() __attribute__((always_inline)) {
      V::store_i(to + kColumn * pixel_stride,
                 V::template sra<kShift>(Vec::mul_i(y[kColumn], inverse)));
    };
    store.template operator()<0, kPower + 3>();
    store.template operator()<1, kPower + 2>();
    store.template operator()<2, kPower + 1>();
    store.template operator()<3, kPower + 1>();
  };
  store_line.template operator()<0, 3>();
  store_line.template operator()<1, 2>();
  store_line.template operator()<2, 1>();
  store_line.template operator()<3, 1>();
}

// The same of a tile of which not all outputs are kept.
template <class V>
[[gnu::noinline]] void winograd_partial_output(const int32_t* m, int64_t position_stride,
                                               const WinogradTile& tile, int32_t* out,
                                               int64_t line_stride, int64_t pixel_stride) {
  int32_t all[kWinogradOut * kWinogradOut * kBlock];
  for (int i = 0; i < kBlock; i += V::Vec::W) {
    winograd_output<V>(m + i, position_stride, all + i, kWinogradOut * kBlock, kBlock);
  }
  for (int y = 0; y < tile.lines; ++y) {
    for (int x = 0; x < tile.columns; ++x) {
      std::memcpy(out + y * line_stride + x * pixel_stride, all + (y * kWinogradOut + x) * kBlock,
                  kBlock * sizeof(int32_t));
    }
  }
}

template <class V>
void winograd_products(const WinogradProductArgs& a) {
  static_assert(V::kTiles <= kWinogradTiles);
  for_tiles<V::kTiles>(a.count, [&]<int R>(int64_t first) {
    const int16_t* v = a.v + first * a.v_tile_stride;
    for (int p = 0; p < kWinogradPositions; ++p) {
      V::template products<R>(v + p * a.v_position_stride, a.v_tile_stride,
                              a.u + p * a.u_position_stride, a.steps, a.products + p * R * kBlock);
    }
    for (int r = 0; r < R; ++r) {
      const WinogradTile& tile = a.tiles[first + r];
      int32_t* out = a.out + tile.row * a.out_stride;
      const int32_t* m = a.products + r * kBlock;
      if (tile.lines < kWinogradOut || tile.columns < kWinogradOut) {
        winograd_partial_output<V>(m, R * kBlock, tile, out, a.width * a.out_stride, a.out_stride);
        continue;
      }
      for (int i = 0; i < kBlock; i += V::Vec::W) {
        winograd_output<V>(m + i, R * kBlock, out + i, a.width * a.out_stride, a.out_stride);
      }
    }
  });
}

}  // namespace defakeq::simd

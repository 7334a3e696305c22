// Winograd's F(4x4, 3x3) in integers: 4x4 outputs of a 3x3 convolution of stride 1 from 36
// products instead of 144. docs/architecture.md says why it is exact.
#pragma once

#include <cstdint>

namespace defakeq {

inline constexpr int kWinogradOut = 4;         // outputs of a tile, each way
inline constexpr int kWinogradIn = 6;          // activations that they see
inline constexpr int kWinogradPositions = 36;  // products of a tile
// Channels of transformed activations come in multiples of this, zeros at the end.
inline constexpr int64_t kWinogradLanes = 32;
inline constexpr int kWinogradTiles = 8;  // most tiles of one pass over transformed weights

// Some activations and outputs of a tile may lie beyond the image: what is there, from the first.
struct WinogradTile {
  const int8_t* x;               // its first activation
  int32_t in_lines, in_columns;  // 1..6
  int32_t lines, columns;        // 1..4
  int64_t row;                   // of its first output
};

// v: int16 [36 positions][tile][channel]. Strides are in elements.
struct WinogradInputArgs {
  const WinogradTile* tiles;
  int64_t count;
  int64_t line_stride, pixel_stride;  // of activations
  int64_t channels;
  int16_t* v;
  int64_t tile_stride, position_stride;
};

// codes: three taps (kernel rows) of 3 * channels positions each, [tap_steps][16][4].
// u: int16 [36 positions][steps of 4 channels][64] of code - zero_point, in an order that
// winograd_products knows.
struct WinogradWeightArgs {
  const uint8_t* codes;
  int64_t tap_steps;
  int64_t channels;
  const int32_t* zero_point;  // [16]
  int16_t* u;
  int64_t position_stride;
};

// out[row][16]: the sums of (code - zero_point) * x, exact where they stay below 2^25.
struct WinogradProductArgs {
  const int16_t* v;  // of the first tile
  int64_t v_tile_stride, v_position_stride;
  const int16_t* u;
  int64_t u_position_stride;
  int64_t steps;
  const WinogradTile* tiles;
  int64_t count;
  int32_t* products;  // scratch: [36][kWinogradTiles][16]
  int32_t* out;       // row r at out + r * out_stride
  int64_t out_stride;
  int64_t width;  // rows from a line of outputs to the next
};

}  // namespace defakeq

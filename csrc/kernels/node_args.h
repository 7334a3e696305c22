// Arguments of the kernels between layers. Row ranges are [begin, end): callers share rows out.
#pragma once

#include <cstdint>

#include "defakeq/nodes.h"
#include "kernels/kernel_table.h"

namespace defakeq {

struct BinaryArgs {
  BinaryFn fn;
  Operand a, b;
  Broadcast b_shape;
  int64_t channels;
  Post post;
  void* out;
};

// Rows of attention scores: s = fma(x, alpha, bias) + mask, or x + mask without a bias, and
// p = rne(255 exp(s - max s)).
struct SoftmaxCodesArgs {
  float* scores;  // [rows][pitch], may be written; the pitch is n padded to a multiple of 16
  int64_t rows, n, pitch;
  float alpha;
  const float* bias;  // [rows][n] or null
  const float* mask;  // [rows][n] or null
  int8_t* codes;      // [rows][pitch]: p - 128, padded with -128
  int32_t* sums;      // [rows]: of p
};

// The signed bytes of one matrix operand, as the unsigned codes that gemm_s8 reads:
// code = value + 128, [(k + 3) / 4][16][4] a block of 16 outputs; absent ones are 0.
struct PackCodesArgs {
  const int8_t* x;
  int64_t row_stride;  // between outputs (pack_rows) or between reduction positions (pack_columns)
  int64_t outputs, length;
  uint8_t* codes;
  int32_t* sums;  // [outputs padded to 16]: sums of the codes
};

struct AdaptivePoolArgs {
  Operand x;  // [h][w][channels]
  int64_t h, w, channels, out_h, out_w;
  void* out;
};

// Where an output position of one axis reads: low + weight * (high - low).
struct InterpolatePoint {
  int64_t low, high;
  float weight;
};

struct InterpolateAxis {
  int64_t in, out;
  double scale;  // input size over output size
  bool bilinear, align_corners;

  InterpolatePoint at(int64_t o) const;
};

}  // namespace defakeq

// Operators between the layers of a network: element-wise, normalization, attention, pooling, data
// movement. Every float operation has a fixed order, so results are the same bytes on every CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "defakeq/export.h"
#include "defakeq/parallel.h"
#include "defakeq/types.h"

namespace defakeq {

// A dense operand. The quantization is read for int8 only.
struct Operand {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  Quantization quantization;
};

struct Result {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Quantization quantization;
};

enum class UnaryFn : int32_t {
  kIdentity,
  kRelu,
  kRelu6,
  kHardswish,
  kSilu,
  kGelu,
  kSigmoid,
  kTanh,
  kHardsigmoid,
  kExp,
  kLog,
  kSqrt,
  kRsqrt,
  kAbs,
  kNeg,
  kSquare,
  kReciprocal,
};

enum class BinaryFn : int32_t { kAdd, kSub, kMul, kDiv, kMax, kMin };

// The shape of a binary operator's second operand beside [rows][channels].
enum class Broadcast : int32_t { kNone, kChannel, kScalar, kRow };

enum class PoolMode : int32_t { kMax, kAvg };

enum class ReduceFn : int32_t { kMean, kSum, kMax, kL2 };

// out[i] = table[x[i] + 128]
DEFAKEQ_API void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out,
                        Parallel& parallel);

DEFAKEQ_API void unary(UnaryFn fn, const Operand& x, int64_t count, const Result& out,
                       Parallel& parallel);

DEFAKEQ_API void binary(BinaryFn fn, const Operand& a, const Operand& b, Broadcast b_shape,
                        int64_t rows, int64_t channels, Activation activation, const Result& out,
                        Parallel& parallel);

struct LayerNormArgs {
  Operand x;
  int64_t rows = 0;  // output rows
  int64_t channels = 0;
  int64_t count = 0;             // >= channels; the channels that are not there count as zeros
  const float* gamma = nullptr;  // [channels] or null
  const float* beta = nullptr;
  float eps = 0.0f;
  const int32_t* row_index = nullptr;  // [rows] row of x, -1: zeros; null: the same row
  Result out;
};
DEFAKEQ_API void layer_norm(const LayerNormArgs& args, Parallel& parallel);

DEFAKEQ_API void softmax(const Operand& x, int64_t rows, int64_t channels, const Result& out,
                         Parallel& parallel);

DEFAKEQ_API void reduce(ReduceFn fn, const Operand& x, int64_t rows, int64_t channels,
                        const Result& out, Parallel& parallel);

// Where element [batch][token][head][d] of an attention operand lies; d is contiguous.
struct HeadLayout {
  int64_t offset = 0, batch = 0, token = 0, head = 0;
};

struct AttentionArgs {
  Operand q, k, v;  // int8
  HeadLayout q_layout, k_layout, v_layout;
  int64_t batches = 0, q_tokens = 0, k_tokens = 0;
  int64_t heads = 0, head_dim = 0, value_dim = 0;
  float alpha = 1.0f;           // of the integer product of q and k
  const float* bias = nullptr;  // [heads][q_tokens][k_tokens] or null
  const float* mask = nullptr;  // [masks][q_tokens][k_tokens]; batch b uses b % masks
  int64_t masks = 0;
  const int32_t* row_index = nullptr;  // [batches * q_tokens]: the output row; null: the same
  Result out;                          // [batches * q_tokens][heads * value_dim]
};
DEFAKEQ_API size_t attention_scratch_bytes(const AttentionArgs& args, int threads);
DEFAKEQ_API void attention(const AttentionArgs& args, void* scratch, Parallel& parallel);

struct MatrixLayout {
  int64_t offset = 0, batch = 0, row = 0, col = 0;
};

// out[batch][m][n] = alpha * sum over k of a[batch][m][k] * b[batch][k][n]
struct MatmulArgs {
  Operand a, b;                     // int8
  MatrixLayout a_layout, b_layout;  // a: col 1; b: row or col 1
  int64_t batches = 0, m = 0, n = 0, k = 0;
  float alpha = 1.0f;
  Result out;
};
DEFAKEQ_API size_t matmul_scratch_bytes(const MatmulArgs& args, int threads);
DEFAKEQ_API void matmul(const MatmulArgs& args, void* scratch, Parallel& parallel);

struct Pool2dArgs {
  PoolMode mode = PoolMode::kMax;
  Operand x;  // [h][w][channels]
  int64_t h = 0, w = 0, channels = 0;
  int32_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0};
  bool ceil_mode = false, count_include_pad = true;
  Result out;  // [out_h][out_w][channels]
};
// Output size of one dimension, as torch computes it.
DEFAKEQ_API int64_t pool_out_size(int64_t in, int32_t kernel, int32_t stride, int32_t padding,
                                  bool ceil_mode);
DEFAKEQ_API void pool2d(const Pool2dArgs& args, Parallel& parallel);

DEFAKEQ_API void adaptive_avg_pool2d(const Operand& x, int64_t h, int64_t w, int64_t channels,
                                     int64_t out_h, int64_t out_w, const Result& out,
                                     Parallel& parallel);

// The mean over all rows: [rows][channels] -> [channels].
DEFAKEQ_API void mean_rows(const Operand& x, int64_t rows, int64_t channels, const Result& out,
                           Parallel& parallel);

struct InterpolateArgs {
  Operand x;  // [h][w][channels]
  int64_t h = 0, w = 0, channels = 0, out_h = 0, out_w = 0;
  bool bilinear = false, align_corners = false;
  double scale[2] = {1.0, 1.0};  // input size over output size, as torch derives it
  Result out;
};
DEFAKEQ_API void interpolate(const InterpolateArgs& args, Parallel& parallel);

// Chunk i of out = chunk index[i] of the inputs end to end; -1: `fill` repeated.
struct CopyArgs {
  const void* const* inputs = nullptr;
  const int64_t* input_chunks = nullptr;  // [input_count]
  int64_t input_count = 0;
  const int32_t* index = nullptr;  // [count]
  int64_t count = 0;
  int64_t chunk_bytes = 0;
  uint8_t fill = 0;  // the byte of absent chunks
  void* out = nullptr;
};
DEFAKEQ_API void copy_chunks(const CopyArgs& args, Parallel& parallel);

// A part of a copy whose chunks lie evenly, along three dimensions: where the first one lies and
// how many chunks the next along each dimension is apart.
struct CopyMove {
  int64_t input = 0;  // -1: absent chunks
  int64_t from = 0, to = 0;
  int64_t counts[3] = {1, 1, 1};  // repetitions, groups, chunks of a group
  int64_t from_steps[3] = {0, 0, 0};
  int64_t to_steps[3] = {0, 0, 1};
};

// The index of a copy as moves: repetition r adds r times `step` (null: there is one repetition).
// None where there would be many, for copy_chunks.
DEFAKEQ_API std::vector<CopyMove> copy_moves(const int32_t* index, const int32_t* step,
                                             int64_t period, int64_t repeats,
                                             const std::vector<int64_t>& input_chunks);

struct MoveArgs {
  const void* const* inputs = nullptr;
  const CopyMove* moves = nullptr;  // of as many repetitions each
  int64_t count = 0;
  int64_t chunk_bytes = 0;
  uint8_t fill = 0;  // the byte of absent chunks
  void* out = nullptr;
};
DEFAKEQ_API void move_chunks(const MoveArgs& args, Parallel& parallel);

// One image [channels][h * w] float32 -> [h * w][channels], quantized when out is int8.
DEFAKEQ_API void from_nchw(const float* x, int64_t channels, int64_t pixels, const Result& out,
                           Parallel& parallel);
// The way back, dequantized when x is int8.
DEFAKEQ_API void to_nchw(const Operand& x, int64_t channels, int64_t pixels, float* out,
                         Parallel& parallel);

}  // namespace defakeq

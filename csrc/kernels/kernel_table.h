// What every ISA provides: one table of functions over raw pointers. Kernels do not allocate, keep
// no state and take no lock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "defakeq/nodes.h"
#include "defakeq/types.h"

namespace defakeq {

// Outputs are computed in blocks of kBlock lanes; a tile has up to kTileRows rows, kTileBlocks
// blocks.
inline constexpr int kBlock = 16;
inline constexpr int kTileRows = 8;
inline constexpr int kTileBlocks = 2;
inline constexpr int kGemvRows = 4;
inline constexpr int kGemvBlocks = 4;
// A plane block holds kPlaneSteps steps of 4 reduction positions for 16 outputs.
inline constexpr int kPlaneSteps = 8;
// Bytes that the widest byte permutation makes.
inline constexpr int kWideBlock = 64;

// What happens to y = fma(accumulator, scale, bias) before it is stored.
struct Post {
  Activation activation = Activation::kNone;
  DType out_dtype = DType::kFloat32;
  float inv_scale = 1.0f;  // int8 output: q = clamp(rne(y * inv_scale) + zero_point)
  float low = -128.0f;     // qmin - zero_point
  float high = 127.0f;     // qmax - zero_point
  int32_t zero_point = 0;
  const void* residual = nullptr;  // row r at residual + r * residual_stride elements
  int64_t residual_stride = 0;
  DType residual_dtype = DType::kFloat32;
  float residual_scale = 1.0f;  // y = fma(r - residual_zero_point, residual_scale, y)
  int32_t residual_zero_point = 0;
  const int8_t* table = nullptr;  // [256] int8 output: table[q + 128] is stored instead of q
};

// Up to 64 bytes of a row of outputs, some of which are pruned: byte i of those in `stored` is the
// strip's output lane[0][i] where `lanes` has it, else absent. lane[j] is lane[0] + j times the
// strip's outputs, for vectors that hold several rows.
struct OutputWindow {
  int64_t offset;  // from the row's start
  uint64_t stored, lanes;
  uint8_t lane[4][64];
};

// out[r][n] over rows of activations and 1..kTileBlocks blocks of outputs (gemv: kGemvBlocks).
// A row's reduction is `taps` runs; run t starts at rows[r] + tap_offset[t] and has `steps` steps
// of 4 bytes (of which some trailing ones may meet zero codes only).
struct GemmS8Args {
  const int8_t* const* rows;
  int64_t m;
  const int64_t* tap_offset;
  int taps;
  int64_t steps;
  int blocks;
  const uint8_t* w;  // block b at w + b * w_stride: [taps * steps][16 outputs][4] unsigned codes,
  int64_t w_stride;  // arranged (gemv: planes of `bits`, one tap, steps a multiple of kPlaneSteps)
  int bits;          // of the codes
  // Where the table says that gemm_s8 reads planes: w is planes of `bits` < 8, as gemv_s8's. Runs
  // are whole plane blocks, but for the last of a single tap.
  bool planes;
  const int32_t* zero_point;  // [blocks * 16]
  const int32_t* correction;  // [blocks * 16] added to the accumulator
  const float* scale;         // [blocks * 16]
  const float* bias;          // [blocks * 16]
  const int32_t* row_sum;     // [m] sum of the row's activations that meet codes
  const float* row_scale;     // [m] or null
  const float* row_bias;      // [m][row_bias_stride], replaces bias, or null
  int64_t row_bias_stride;
  // Where the table says that gemm_s8 fuses half-precision inputs, and there are some: the bias is
  // the start of their chain, gemm_f32's of these rows from the bias on. Else null.
  const float* const* half_rows;
  const int64_t* half_tap_offset;
  int64_t half_length;  // floats a tap
  const float* half_w;  // block b at half_w + b * half_w_stride: [taps * half_length][16]
  int64_t half_w_stride;
  // Where the table says that gemm_s8 writes windows, and outputs are pruned: what is written of an
  // int8 row from `out` on. Else null.
  const OutputWindow* windows;
  int window_count;
  int8_t absent;  // what stands for a pruned output
  // finish_s8: the integer products, row r at sums + r * sums_stride; there are no rows then.
  const int32_t* sums;
  int64_t sums_stride;
  void* out;  // row r at out + r * out_stride elements
  int64_t out_stride;
  int n;  // valid outputs in these blocks, the rest is not stored
  Post post;
};

// The float32 product: f = chain of fma in reduction order, y = fma(f [* row_scale], scale, bias);
// with chain_from_bias the chain starts at the bias and y = f.
struct GemmF32Args {
  const float* const* rows;
  int64_t m;
  const int64_t* tap_offset;  // in elements
  int taps;
  int64_t length;  // floats a tap
  int blocks;
  const float* w;  // block b at w + b * w_stride: [taps * length][16]
  int64_t w_stride;
  bool chain_from_bias;
  const float* scale;
  const float* bias;
  const float* row_scale;
  const float* row_bias;
  int64_t row_bias_stride;
  void* out;
  int64_t out_stride;
  int n;
  int last_lanes;  // lanes of the last block whose results matter; the others may come out as bias
  Post post;
};

// Pixels that one vector holds side by side, a lane each.
inline constexpr int kLanes = 16;

// Up to 16 outputs of the float32 product over int8 pixels that were turned, lanes being rows of
// the output: f = chain of fma over x - zero_point in reduction order, y as in GemmF32Args.
struct TurnedF32Args {
  const uint8_t* const* x;  // [vectors][taps]: kLanes pixels as turn_pixels leaves them
  bool pairs;               // whether in pairs
  int64_t vectors;
  int taps;
  int64_t channels;  // of a pixel
  int32_t zero_point;
  int outputs;
  const float* w;  // [taps * channels][16]
  const float* scale;
  const float* bias;
  const float* row_scale;  // of row r at row_scale + r, or null
  const float* row_bias;   // of row r at row_bias + r * row_bias_stride, or null
  int64_t row_bias_stride;
  const int32_t* row;     // [vectors][kLanes]: each lane's row of the output, -1: none
  const int32_t* column;  // [outputs]
  void* out;              // (r, c) at out + r * out_stride + c; the residual likewise
  int64_t out_stride;
  Post post;
};

// Depthwise convolution of the channels of some 16-channel blocks, over output rows [oy0, oy1).
// Weights are signed: w = code - zero_point where that fits int8, else code - 128 with the rest in
// `window_factor` (acc += window_factor * sum of the window's activations).
struct DwS8Args {
  const int8_t* x;  // [h][w] pixels of x_stride bytes
  int64_t h, w, x_stride;
  int64_t out_w, oy0, oy1;
  int32_t kernel[2], stride[2], padding[2], dilation[2];
  int8_t pad_value;              // the activations' zero point
  int64_t channels;              // valid channels from x on
  const int8_t* weight;          // [blocks][row groups of 4][kw][16 channels][4 rows]
  const int32_t* correction;     // [blocks * 16], for activations as x + 128
  const int32_t* window_factor;  // [blocks * 16], or null when all are 0
  const float* scale;
  const float* bias;
  float row_scale;  // dynamic activations: multiplies the accumulator; has_row_scale says if used
  bool has_row_scale;
  void* out;  // pixel (oy, ox) at out + (oy * out_w + ox) * out_stride
  int64_t out_stride;
  Post post;      // the residual is addressed as the output
  void* scratch;  // dw_s8_scratch(args) bytes, 64-byte aligned
};

struct DwF32Args {
  const float* x;  // [h][w] pixels of x_stride floats
  int64_t h, w, x_stride;
  int64_t out_w, oy0, oy1;
  int32_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t channels;
  int last_lanes;       // lanes of the last block whose results matter; the others may be anything
  const float* weight;  // [blocks][kh * kw][16]
  const float* scale;
  const float* bias;
  float row_scale;
  bool has_row_scale;
  void* out;
  int64_t out_stride;
  Post post;
};

// Byte shuffle: output block b (16 bytes) starts as fill, then each of its sources puts
// src[offset + mask[i]] (mask[i] < 16) into byte i. 0x80 in a mask leaves the byte.
struct ShuffleSource {
  int32_t offset;
  uint8_t mask[16];
};
// The same for output blocks of 64 bytes, where byte permutations are that wide: `lanes` says which
// bytes of the block come from src[offset + index[i]] (index[i] < 64).
struct WideShuffleSource {
  uint64_t lanes;
  int64_t offset;
  uint8_t index[64];
};
struct ShufflePlan {
  int64_t length;        // output bytes a row
  int64_t src_length;    // bytes of a source row
  const int32_t* first;  // [blocks + 1] index of the first source of a block
  const ShuffleSource* sources;
  const int32_t* wide_first;  // [wide blocks + 1], empty where no ISA reads it
  const WideShuffleSource* wide_sources;
  const uint8_t* fill;  // a byte an output, zeros up to a multiple of 64
};

// What turned pixels take; on ARM they are float32 either way.
inline constexpr int64_t turned_bytes(int64_t bytes, [[maybe_unused]] bool pairs) {
#if defined(__aarch64__)
  const int64_t each = 4;
#else
  const int64_t each = pairs ? 2 : 1;
#endif
  return (bytes + 3) / 4 * 4 * kLanes * each;
}

// What Winograd's products cost, in multiplications of gemm_s8 at 8 bits (measured): a product of a
// position, the transforms of a tile a channel of the input or output, and of the weights a pair of
// channels. What such a multiplication costs at fewer bits is `narrow`.
struct WinogradCosts {
  float product;  // 0: there are none
  float input, output, weights, narrow;
};

struct BinaryArgs;
struct WinogradInputArgs;
struct WinogradWeightArgs;
struct WinogradProductArgs;
struct SoftmaxCodesArgs;
struct PackCodesArgs;
struct AdaptivePoolArgs;
struct InterpolateAxis;

struct KernelTable {
  const char* isa;
  void (*gemm_s8)(const GemmS8Args&);
  void (*gemv_s8)(const GemmS8Args&);
  void (*gemm_f32)(const GemmF32Args&);
  void (*dw_s8)(const DwS8Args&);
  size_t (*dw_s8_scratch)(const DwS8Args&);
  void (*dw_f32)(const DwF32Args&);
  // planes of `bits` -> [steps][16][4] codes (1-bit codes come out doubled)
  void (*expand_codes)(const uint8_t* planes, int bits, int64_t steps, uint8_t* codes);
  // In place: a run of `steps` steps of [16][4] codes, of which `length` positions count, as
  // gemm_s8 reads it. Every tap is a run of its own. Null when that is the same.
  void (*arrange_codes)(uint8_t* codes, int bits, int64_t steps, int64_t length);
  // [steps][16][4] codes -> [steps * 4][16] floats of code - zero_point
  void (*codes_to_f32)(const uint8_t* codes, int64_t steps, const int32_t* zero_point, float* out);
  // sums over taps of `length` bytes
  void (*row_sums)(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
                   int64_t length, int32_t* sums);
  void (*quantize)(const float* x, int64_t count, float inv_scale, int32_t zero_point, float low,
                   float high, int8_t* out);
  void (*dequantize)(const int8_t* x, int64_t count, float scale, int32_t zero_point, float* out);
  // out = float(x - zero_point)
  void (*to_f32)(const int8_t* x, int64_t count, int32_t zero_point, float* out);
  float (*abs_max)(const float* x, int64_t count);
  void (*shuffle)(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows,
                  uint8_t* dst, int64_t dst_stride);

  // Between layers (node_args.h), over the outputs [begin, end) of a dimension.
  void (*lookup)(const int8_t* x, int64_t count, const int8_t* table, int8_t* out);
  void (*unary)(UnaryFn fn, const Operand& x, const Post& post, void* out, int64_t begin,
                int64_t end);
  void (*binary)(const BinaryArgs&, int64_t begin, int64_t end);
  void (*layer_norm)(const LayerNormArgs&, const Post& post, int64_t begin, int64_t end);
  void (*softmax)(const Operand& x, int64_t channels, const Post& post, void* out, int64_t begin,
                  int64_t end);
  void (*reduce)(ReduceFn fn, const Operand& x, int64_t channels, const Post& post, void* out,
                 int64_t begin, int64_t end);
  void (*softmax_codes)(const SoftmaxCodesArgs&);
  void (*pack_rows)(const PackCodesArgs&);
  void (*pack_columns)(const PackCodesArgs&);
  void (*pool2d)(const Pool2dArgs&, const Post& post, int64_t out_w, int64_t begin, int64_t end);
  void (*adaptive_avg_pool2d)(const AdaptivePoolArgs&, const Post& post, int64_t begin,
                              int64_t end);
  void (*mean_rows)(const Operand& x, int64_t rows, int64_t channels, const Post& post, void* out,
                    int64_t begin, int64_t end);
  void (*interpolate)(const InterpolateArgs&, const InterpolateAxis& y, const InterpolateAxis& x,
                      const Post& post, int64_t begin, int64_t end);
  void (*from_nchw)(const float* x, int64_t channels, int64_t pixels, const Post& post, void* out,
                    int64_t begin, int64_t end);
  void (*to_nchw)(const Operand& x, int64_t channels, int64_t pixels, float* out, int64_t begin,
                  int64_t end);

  // Where a product of few float32 outputs has rows as lanes, else null: kLanes pixels of `bytes`
  // bytes into turned_bytes, and the product over them. As pairs of halves of float32 numbers
  // they take twice the memory and more work here, and less there: for a single output.
  void (*turn_pixels)(const int8_t* const* pixels, int64_t bytes, bool pairs, int32_t zero_point,
                      uint8_t* turned);
  void (*gemm_f32_turned)(const TurnedF32Args&);

  // What gemm_s8 does with its products, for products that were made elsewhere.
  void (*finish_s8)(const GemmS8Args&);
  // Products of 3x3 convolutions (winograd_args.h), null where the direct ones are faster.
  void (*winograd_input)(const WinogradInputArgs&);
  void (*winograd_weights)(const WinogradWeightArgs&);
  void (*winograd_products)(const WinogradProductArgs&);

  // What the functions above can do beyond what each of them must.
  bool fuses_half_inputs;  // gemm_s8 reads half_rows
  bool writes_windows;     // gemm_s8 reads `windows`
  bool reads_planes;       // gemm_s8 reads `planes`
  WinogradCosts winograd;
};

const KernelTable* kernel_table_scalar();
const KernelTable* kernel_table_avx2();
const KernelTable* kernel_table_avx512vnni();
const KernelTable* kernel_table_neon();
const KernelTable* kernel_table_neondot();
const KernelTable* kernel_table_i8mm();

}  // namespace defakeq

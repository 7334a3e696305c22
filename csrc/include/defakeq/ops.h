#pragma once

#include <cstddef>
#include <cstdint>

#include "defakeq/export.h"
#include "defakeq/parallel.h"
#include "defakeq/types.h"

namespace defakeq {

// Gives an operator its temporary memory. get() returns 64-byte aligned bytes that stay valid until
// the operator returns; an operator calls it once.
class DEFAKEQ_API Scratch {
 public:
  virtual ~Scratch();
  virtual void* get(size_t bytes) = 0;
};

// A grow-only buffer; keep one a thread.
class DEFAKEQ_API GrowingScratch final : public Scratch {
 public:
  GrowingScratch() = default;
  GrowingScratch(const GrowingScratch&) = delete;
  GrowingScratch& operator=(const GrowingScratch&) = delete;
  ~GrowingScratch() override;
  void* get(size_t bytes) override;

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Common to linear and conv2d. Rows are tokens (linear) or pixels (conv2d, NHWC).
struct OpArgs {
  const void* blob = nullptr;  // runtime layout
  size_t blob_bytes = 0;
  const void* x = nullptr;
  DType x_dtype = DType::kFloat32;
  void* out = nullptr;             // contiguous, of the layer's out_dtype
  const void* residual = nullptr;  // shaped as the output, or null
  DType residual_dtype = DType::kFloat32;
  Quantization residual_quantization;
  const float* half_input = nullptr;  // [rows][half inputs]; null: taken from a float32 x
  // [256] or null: what is stored instead of an int8 output q is table[q + 128]. Needs an int8
  // output and no activation.
  const int8_t* table = nullptr;
};

// x: [rows][in_channels], row stride x_stride elements (>= in_channels); out: [rows][out_channels].
DEFAKEQ_API void linear(const OpArgs& args, int64_t rows, int64_t x_stride, Parallel& parallel,
                        Scratch& scratch);

// x: [n][h][w][in_channels] contiguous; out: [n][out_h][out_w][out_channels].
DEFAKEQ_API void conv2d(const OpArgs& args, int64_t n, int64_t h, int64_t w, Parallel& parallel,
                        Scratch& scratch);

// What the operators above ask their Scratch for, so that it can be planned. Only args.blob,
// x_dtype, and whether there is a residual (and its type) matter.
DEFAKEQ_API size_t linear_scratch_bytes(const OpArgs& args, int64_t rows, int64_t x_stride,
                                        int threads);
DEFAKEQ_API size_t conv2d_scratch_bytes(const OpArgs& args, int64_t n, int64_t h, int64_t w,
                                        int threads);

// Whether conv2d takes Winograd's F(4x4, 3x3) instead of the direct products: where the selected
// instruction set is expected to be faster so. The results are the same.
DEFAKEQ_API bool conv2d_uses_winograd(const OpArgs& args, int64_t n, int64_t h, int64_t w);

// Whether conv2d takes several adjacent pixels of images of width w for one, so that few outputs
// fill a vector. The results are the same.
DEFAKEQ_API bool conv2d_joins_pixels(const OpArgs& args, int64_t w);

// Output size of one spatial dimension; <= 0 when the kernel does not fit.
DEFAKEQ_API int64_t conv_out_size(int64_t in, int32_t kernel, int32_t stride, int32_t padding,
                                  int32_t dilation);

DEFAKEQ_API void quantize(const float* x, int64_t count, const Quantization& q, int8_t* out);
DEFAKEQ_API void dequantize(const int8_t* x, int64_t count, const Quantization& q, float* out);

}  // namespace defakeq

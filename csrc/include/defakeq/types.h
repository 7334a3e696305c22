#pragma once

#include <cstdint>

namespace defakeq {

enum class LayerKind : int32_t { kLinear = 0, kConv2d = 1 };

enum class Activation : int32_t {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kHardswish = 3,
  kSilu = 4,
  kGelu = 5,  // the erf form
  kSigmoid = 6,
};

enum class ActMode : int32_t {
  kNone = 0,           // weight-only: float32 activations and float32 math
  kStatic = 1,         // int8 with one scale and zero point
  kDynamicTensor = 2,  // int8, symmetric, scale = max|x| / 127 of the whole tensor
  kDynamicRow = 3,     // int8, symmetric, one scale a row (linear) or image (conv2d)
};

enum class DType : int32_t { kFloat32 = 0, kInt8 = 1 };

// Affine quantization of an activation tensor to `bits` (4 to 8): x = scale * (q - zero_point),
// q in [-2^(bits-1), 2^(bits-1) - 1].
struct Quantization {
  float scale = 1.0f;
  int32_t zero_point = 0;
  int32_t bits = 8;
};

}  // namespace defakeq

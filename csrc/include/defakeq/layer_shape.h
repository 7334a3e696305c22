#pragma once

#include <cstddef>
#include <cstdint>

#include "defakeq/export.h"
#include "defakeq/types.h"

namespace defakeq {

// What a caller needs to allocate a layer's output and to check its inputs.
struct LayerShape {
  LayerKind kind;
  DType out_dtype;
  ActMode act_mode;
  int64_t out_channels, in_channels, half_inputs;
  int32_t kernel[2], stride[2], padding[2], dilation[2];
};

// Throws std::invalid_argument when `blob` is no runtime layout of this build. Cheap enough to be
// called before every operator.
DEFAKEQ_API LayerShape layer_shape(const void* blob, size_t bytes);

}  // namespace defakeq

// What a layer specification has to fulfil, and what follows from it.
#pragma once

#include <cstdint>

#include "defakeq/layer.h"

namespace defakeq {

struct LayerExtents {
  bool depthwise = false;
  int64_t kernel_taps = 1;
  int64_t group_inputs = 0;   // integer inputs a convolution group reads
  int64_t group_outputs = 0;  // original outputs of a convolution group
  int64_t reduction = 0;      // K of the storage format
  int64_t pieces = 1, pieces_per_tap = 1;
  int64_t stored_outputs = 0;
};

// Throws std::invalid_argument naming the wrong field.
LayerExtents check_layer(const LayerSpec& spec);

}  // namespace defakeq

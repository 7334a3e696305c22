// Pruned outputs that the product leaves out itself: where the outputs of a strip go.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"
#include "pack/packed_layer.h"

namespace defakeq {

// Adjacent blocks of one width and convolution group.
struct Strip {
  int32_t first, count;
  int32_t window = 0, windows = 0;  // of those its outputs are written through
};

// How many windows the strips of a layer have at most.
inline int64_t most_windows(const PackedLayer& layer) {
  return layer.out_channels / kWideBlock + layer.blocks;
}

// Where all outputs are integer and in order, the channels from a strip's first output to the next
// one's are cut into windows. Many of them, between few outputs, are left to the scatter.
// Returns whether that was possible.
bool find_windows(const PackedLayer& layer, Strip* strips, int64_t strip_count,
                  OutputWindow* found);

}  // namespace defakeq

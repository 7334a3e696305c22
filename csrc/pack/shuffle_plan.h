#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernel_table.h"

namespace defakeq {

struct ShuffleTables {
  int64_t length = 0, src_length = 0;
  std::vector<int32_t> first;
  std::vector<ShuffleSource> sources;
  std::vector<int32_t> wide_first;
  std::vector<WideShuffleSource> wide_sources;
  std::vector<uint8_t> fill;
};

// Plan of out[i] = from[i] >= 0 ? src[from[i]] : fill, over source rows of `src_length` bytes.
// Rows shorter than 16 bytes are read as if they were 16 long.
ShuffleTables plan_shuffle(const std::vector<int32_t>& from, int64_t src_length, uint8_t fill);

}  // namespace defakeq

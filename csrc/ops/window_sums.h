// Row sums of a convolution whose windows overlap: every pixel is summed once, then windows of
// pixels.
#pragma once

#include "kernels/kernel_table.h"
#include "ops/activations.h"
#include "ops/arena.h"
#include "pack/packed_layer.h"

namespace defakeq {

class WindowSums {
 public:
  WindowSums(const PackedLayer& layer, const KernelTable& kernels, const Images& images,
             const Activations& activations)
      : layer_(layer), kernels_(kernels), images_(images), activations_(activations) {}

  // Whether that is less work than summing rows.
  bool pays() const;
  void place(Arena& arena, int64_t chunk, int tasks);
  // Sums the pixels of `count` prepared images.
  void prepare(int64_t count, Parallel& parallel);
  // The sums of rows [begin, end).
  void sum(int64_t begin, int64_t end, int32_t* sums) const;

 private:
  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const Images& images_;
  const Activations& activations_;
  int32_t* pixel_sum_ = nullptr;     // [images][height][width]
  const int8_t** pixels_ = nullptr;  // a task: [width]
};

}  // namespace defakeq

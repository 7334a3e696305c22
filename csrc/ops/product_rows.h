// Where the rows of a product lie: one pointer an output pixel, and an offset a kernel position.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"
#include "ops/activations.h"
#include "ops/arena.h"
#include "ops/window_sums.h"
#include "pack/packed_layer.h"

namespace defakeq {

class ProductRows {
 public:
  // direct: whether int8 rows are read, and summed up.
  ProductRows(const PackedLayer& layer, const KernelTable& kernels, const Images& images,
              const Activations& activations, bool direct)
      : layer_(layer),
        kernels_(kernels),
        images_(images),
        activations_(activations),
        direct_(direct),
        window_sums_(layer, kernels, images, activations) {}

  // Reserves scratch for the rows of up to `chunk` images.
  void place(Arena& arena, int64_t chunk, int tasks);
  // Finds the offsets. The activations are prepared, for `rows` rows.
  void find_taps(int64_t rows);
  // Readies sums over windows of `count` prepared images, where they pay.
  void sum_pixels(int64_t count, Parallel& parallel);
  // Finds and sums the rows [begin, end); ranges that do not overlap may be found at once.
  void find(int64_t begin, int64_t end);
  void sum(int64_t begin, int64_t end);

  const int64_t* taps_of(int group) const { return tap_offset_ + int64_t{group} * layer_.taps; }
  // Sums of a convolution group or piece.
  const int32_t* sums_of(int64_t part) const { return sums_ + part * m_; }
  const float* scales_from(int64_t row) const {
    return scales_ != nullptr ? scales_ + row : nullptr;
  }

  const int8_t** bytes = nullptr;
  const float** floats = nullptr;
  const float** halves = nullptr;
  int64_t* piece_offset = nullptr;     // [pieces]
  int64_t* half_tap_offset = nullptr;  // [taps]

 private:
  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const Images& images_;
  const Activations& activations_;
  bool direct_;
  WindowSums window_sums_;
  int64_t m_ = 0;
  int64_t* tap_offset_ = nullptr;  // [groups][taps]
  int32_t* sums_ = nullptr;        // [groups or pieces][m]
  float* scales_ = nullptr;        // [m], dynamic activations
};

}  // namespace defakeq

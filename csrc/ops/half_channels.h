// Half-precision channels of a depthwise layer, put into their places between integer ones.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"
#include "ops/activations.h"
#include "ops/arena.h"
#include "pack/packed_layer.h"

namespace defakeq {

// The kernel computes 16 channels at once. Where a layer has fewer, each is cut into bands of
// output rows, which take the other lanes: lane b * channels + c is band b of channel c.
class HalfChannels {
 public:
  HalfChannels(const PackedLayer& layer, const KernelTable& kernels, const Images& images,
               const Activations& activations);

  // Whether there are any that are computed so.
  bool apply() const { return channels_ > 0; }
  void place(Arena& arena, int tasks, DType residual);
  // Of one prepared image into the output's rows; post.residual has such rows too.
  void run(const Post& post, void* out, Parallel& parallel) const;

 private:
  int64_t input_rows(int64_t rows) const {
    return (rows - 1) * layer_.stride[0] + (layer_.kernel[0] - 1) * layer_.dilation[0] + 1;
  }
  void repeat_parameters(float* parameters) const;
  void read_band_rows(int64_t first, int64_t rows, float* x) const;
  template <class Fn>
  void each_place(int64_t first, int64_t rows, Fn&& fn) const;

  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const Images& images_;
  const Activations& activations_;
  int64_t channels_ = 0, bands_ = 1, band_rows_ = 0, lanes_ = 0, taps_ = 0;
  // scale, bias, weights of the lanes: [2 + taps][lanes], the weights a block of 16 at a time
  float* parameters_ = nullptr;
  // a task each
  float* x_ = nullptr;        // [input rows][w][lanes]
  char* out_ = nullptr;       // [band_rows_][out_w][lanes]
  char* residual_ = nullptr;  // the same
  int64_t x_floats_ = 0, out_values_ = 0;
};

}  // namespace defakeq

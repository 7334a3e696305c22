// Half-precision outputs where the table multiplies with rows as lanes: put into their places in
// the output, behind the integer outputs.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"
#include "ops/activations.h"
#include "ops/arena.h"
#include "pack/packed_layer.h"

namespace defakeq {

// How 16 pixels of the output share a vector. Lines of the output are cut into vectors; where a
// line is shorter than a vector, lines that are `groups` apart share one. Lanes of a line lie as
// far apart as it has vectors, so that a vector of the input serves several of the output's, each
// at another kernel column.
class LaneGrid {
 public:
  LaneGrid() = default;
  // For up to `count` images, the inputs of which are prepared with their padding.
  LaneGrid(const PackedLayer& layer, const Images& images, int64_t height, int64_t width,
           int64_t count, int tasks);
  // The same for other images, no more of them.
  LaneGrid of(int64_t count) const;

  int64_t lines() const { return lines_ * images_; }  // of vectors
  int64_t lines_at_once() const { return at_once_; }
  int64_t vectors_a_line() const { return vectors_; }
  int64_t columns() const { return columns_; }  // vectors that a line of the input makes
  int64_t span() const { return span_; }        // lines of the input that are in use at once
  int64_t lines_an_image() const { return lines_; }
  int64_t first_input(int64_t line) const { return line * stride_[0]; }
  int64_t last_input(int64_t line) const {
    return line * stride_[0] + (kernel_[0] - 1) * dilation_[0];
  }
  // Whether a line of the input is read for any line of the output.
  bool reads(int64_t input) const { return dilation_[0] > 1 || input % stride_[0] < kernel_[0]; }
  int64_t column(int64_t vector, int64_t kx) const {
    return adjacent_ ? vector : vector * stride_[1] + kx * dilation_[1];
  }
  // The lanes' pixels, from the image's first on, of such a vector.
  void pixels(int64_t input, int64_t column, int64_t* pixel) const;
  // The output's pixels behind `first`, -1 where there is none.
  void outputs(int64_t line, int64_t vector, int64_t first, int32_t* pixel) const;

 private:
  void cut_lines();
  int64_t pixel(int64_t input, int64_t column, int lane) const;
  int64_t output(int64_t line, int64_t vector, int lane) const;

  int32_t kernel_[2], stride_[2], dilation_[2];
  bool flat_ = false;      // every row is a pixel of its own: lines of any length
  bool adjacent_ = false;  // lanes lie side by side
  int64_t images_ = 1, image_pixels_ = 0;
  int64_t height_ = 0, width_ = 0, inputs_ = 0;  // of the input
  int64_t out_h_ = 0, out_w_ = 0, pixels_ = 0;   // of the output
  int64_t vectors_ = 1, lines_a_vector_ = 1, lines_ = 1, columns_ = 1, span_ = 1, at_once_ = 1;
  // Of each lane: which of the lines that share a vector, and where in it.
  int8_t part_[kLanes], at_[kLanes];
  // Where all lanes have a pixel, everywhere or in the first lines: those of line 0, vector 0.
  bool whole_ = false;
  int64_t whole_lines_ = 0;
  int64_t first_pixel_[kLanes];
  int32_t first_output_[kLanes];
};

class HalfOutputs {
 public:
  HalfOutputs(const PackedLayer& layer, const KernelTable& kernels, const Images& images,
              const Activations& activations)
      : layer_(layer), kernels_(kernels), images_(images), activations_(activations) {}

  // Whether there are any that are computed so.
  bool apply() const;
  void place(Arena& arena, int64_t chunk, int tasks);
  // Of `count` prepared images. row_scale: of each row, or null; row_bias: [rows][row_bias_stride],
  // from the first half-precision slot on, or null. post: residual and rows as in the output.
  void run(int64_t count, const float* row_scale, const float* row_bias, int64_t row_bias_stride,
           const Post& post, void* out, Parallel& parallel) const;

 private:
  struct Task;
  int64_t vectors() const { return grid_.lines_at_once() * grid_.vectors_a_line(); }
  void run_lines(const LaneGrid& grid, const Task& task, int64_t begin, int64_t end,
                 const TurnedF32Args& args) const;

  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const Images& images_;
  const Activations& activations_;
  LaneGrid grid_;
  bool pairs_ = false;
  // a task each
  int64_t turned_bytes_ = 0, ring_bytes_ = 0;
  uint8_t* ring_ = nullptr;      // [span][columns] turned pixels
  const uint8_t** x_ = nullptr;  // [vectors][taps]
  int32_t* row_ = nullptr;       // [vectors][kLanes]
};

}  // namespace defakeq

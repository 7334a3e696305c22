// Brings the activations of one call into the form that the product reads: int8 rows, float32 rows,
// float32 half-precision inputs, with padding written out where the geometry needs it.
#pragma once

#include <cstdint>

#include "defakeq/ops.h"
#include "kernels/kernel_table.h"
#include "ops/arena.h"
#include "pack/packed_layer.h"

namespace defakeq {

// n images of h x w pixels; a linear layer has one pixel an image.
struct Images {
  int64_t n, h, w;
  int64_t x_stride;  // elements between pixels of x
  int64_t out_h, out_w;
};

class Activations {
 public:
  Activations(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
              const Images& images, bool padded, int64_t read_multiple);

  // Reserves scratch for `chunk` images.
  void place(Arena& arena, int64_t chunk, int tasks);
  // Fills the buffers for images [first, first + count). tensor_scale: for kDynamicTensor.
  void prepare(int64_t first, int64_t count, float tensor_scale, Parallel& parallel);

  // Pixel (0, 0) of the prepared images, its pitches in elements.
  const int8_t* int8_base() const { return int8_; }
  const float* float_base() const { return float_; }
  const float* half_base() const { return half_; }
  // Whether there are any of the second kind.
  bool makes_float() const { return make_float_; }
  int64_t pixel_pitch() const { return pitch_; }
  // The float32 pixels of depthwise layers begin at the first half-precision slot.
  int64_t float_pitch() const { return float_pitch_; }
  int64_t width() const { return width_; }
  int64_t height() const { return height_; }
  // One scale an image, or null when the layer's is static.
  const float* image_scale() const { return scales_; }
  int64_t bytes_per_image() const;

 private:
  void quantize_pixels(const void* x, int64_t count, float inv_scale, int8_t* out,
                       int8_t* temporary) const;
  // Adjacent pixels that are prepared in one go: `count` of x from `source` on (-1: a row of
  // padding), which with the padding beside them become the prepared pixels from `pixel` on.
  struct Line {
    int64_t image, pixel, source, count;
  };
  int64_t lines(int64_t count) const;
  Line line(int64_t i, int64_t first, int64_t count) const;
  void int8_line(const Line& l, float inv_scale, int8_t* out, int8_t* temporary) const;
  void floats_of(const int8_t* from, int64_t count, float* out) const;
  void float_line(const Line& l, float* out) const;
  void half_line(const Line& l, float* out) const;
  const void* x_at(int64_t pixel) const;

  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const OpArgs& args_;
  const Images& images_;
  int64_t pad_y_ = 0, pad_x_ = 0, width_ = 0, height_ = 0, pitch_ = 0;
  int64_t float_pitch_ = 0, float_first_ = 0;
  int64_t line_ = 1;         // pixels of a line
  bool whole_rows_ = false;  // a line is a row of one image, for its padding or its scale
  bool copy_int8_ = false, make_int8_ = false, make_float_ = false, copy_float_ = false;
  bool copy_half_ = false;
  int8_t* int8_copy_ = nullptr;
  float* float_copy_ = nullptr;
  float* half_copy_ = nullptr;
  float* scales_ = nullptr;
  int8_t* temporary_ = nullptr;
  int64_t temporary_bytes_ = 0;
  const int8_t* int8_ = nullptr;
  const float* float_ = nullptr;
  const float* half_ = nullptr;
};

// max|x| / 127 of a whole float32 tensor, 1 when all is zero.
float dynamic_scale(const KernelTable& kernels, const float* x, int64_t rows, int64_t row_length,
                    int64_t stride);

}  // namespace defakeq

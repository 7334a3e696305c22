// A convolution of few outputs as one that takes several adjacent pixels for one: lanes that would
// lie idle hold the outputs of other pixels, and padded or dilated columns become whole runs.
#pragma once

#include <cstdint>
#include <vector>

#include "defakeq/layer.h"
#include "pack/check_layer.h"

namespace defakeq {

class JoinedPixels {
 public:
  // How many pixels of a layer are joined; 1: none, because its products would not be fewer, or the
  // integer sums not the same.
  static int32_t count(const LayerSpec& spec, const LayerExtents& shape);

  JoinedPixels(const LayerSpec& spec, int32_t pixels);  // as many as `count`
  JoinedPixels(const JoinedPixels&) = delete;
  JoinedPixels& operator=(const JoinedPixels&) = delete;

  // Writes the codes; until then they are zero, which is enough to lay out the layer.
  void write_codes(const LayerSpec& spec, const LayerExtents& shape);

  // The layer of joined pixels: on images of w / count() pixels of count() * in_channels.
  const LayerSpec& spec() const { return joined_; }

 private:
  int64_t length() const;  // of a row of codes

  LayerSpec joined_;
  std::vector<int32_t> out_index_, zero_point_;
  std::vector<float> scale_, bias_;
  std::vector<uint8_t> codes_;
};

}  // namespace defakeq

#include "defakeq/layer_shape.h"

#include "pack/packed_layer.h"

namespace defakeq {

LayerShape layer_shape(const void* blob, size_t bytes) {
  const PackedLayer& layer = packed_layer(blob, bytes);
  LayerShape shape{};
  shape.kind = layer.kind;
  shape.out_dtype = layer.out_dtype;
  shape.act_mode = layer.act_mode;
  shape.out_channels = layer.out_channels;
  shape.in_channels = layer.in_channels;
  shape.half_inputs = layer.half_inputs;
  for (int d = 0; d < 2; ++d) {
    shape.kernel[d] = layer.kernel[d];
    shape.stride[d] = layer.stride[d];
    shape.padding[d] = layer.padding[d];
    shape.dilation[d] = layer.dilation[d];
  }
  return shape;
}

}  // namespace defakeq

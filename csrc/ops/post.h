#pragma once

#include "defakeq/ops.h"
#include "kernels/kernel_table.h"
#include "pack/packed_layer.h"

namespace defakeq {

Post make_post(const PackedLayer& layer, const OpArgs& args);
// Intermediate float32 results: nothing is applied.
Post raw_post();

// Checks what both operators share; throws std::invalid_argument.
void check_args(const PackedLayer& layer, const OpArgs& args, bool empty);

// What int8 rows hold where channels are absent: the layer's zero, through the table when there is
// one (then made in `fill`, fill_bytes long). Null when no scatter is planned.
inline int64_t fill_bytes(const PackedLayer& layer) {
  return (layer.out_channels + kWideBlock - 1) / kWideBlock * kWideBlock;
}
const uint8_t* scatter_fill(const PackedLayer& layer, const int8_t* table, uint8_t* fill);
// slots -> channels: rows of `tmp` (`stride` elements apart) into rows of out, absent channels zero
// (int8: `fill`).
void scatter_rows(const PackedLayer& layer, const KernelTable& kernels, const uint8_t* fill,
                  const void* tmp, int64_t stride, int64_t rows, void* out);
// channels -> slots for a residual.
void gather_residual(const PackedLayer& layer, const KernelTable& kernels, DType dtype,
                     const void* residual, int64_t rows, void* out);

// Some channels of rows to and from rows of `lanes` of their own; channel[l] is -1 where lane l is
// none.
void pick_channels(DType dtype, const void* rows, int64_t stride, int64_t count,
                   const int32_t* channel, int64_t lanes, void* own);
void put_channels(DType dtype, const void* own, int64_t count, const int32_t* channel,
                  int64_t lanes, void* rows, int64_t stride);

inline int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 1; }

inline void* offset(void* p, int64_t elements, DType dtype) {
  return static_cast<char*>(p) + elements * size_of(dtype);
}
inline const void* offset(const void* p, int64_t elements, DType dtype) {
  return static_cast<const char*>(p) + elements * size_of(dtype);
}

}  // namespace defakeq

// The part of a KernelTable that every ISA builds from the templates of this folder.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/simd/elementwise.h"
#include "kernels/simd/epilogue.h"
#include "kernels/simd/gemm_f32.h"
#include "kernels/simd/nchw.h"
#include "kernels/simd/normalize.h"
#include "kernels/simd/pack_codes.h"
#include "kernels/simd/pool.h"
#include "kernels/simd/rows.h"

namespace defakeq::simd {

template <class V>
constexpr KernelTable shared_kernels(const char* isa) {
  KernelTable table{};
  table.isa = isa;
  table.finish_s8 = finish_sums<V>;
  table.dw_f32 = dw_f32<V>;
  table.codes_to_f32 = codes_to_f32<V>;
  table.quantize = quantize<V>;
  table.dequantize = dequantize<V>;
  table.to_f32 = to_f32<V>;
  table.abs_max = abs_max<V>;
  table.unary = unary<V>;
  table.binary = binary<V>;
  table.layer_norm = layer_norm<V>;
  table.softmax = softmax<V>;
  table.reduce = reduce<V>;
  table.softmax_codes = softmax_codes<V>;
  table.pack_rows = pack_rows<V>;
  table.pack_columns = pack_columns<V>;
  table.pool2d = pool2d<V>;
  table.adaptive_avg_pool2d = adaptive_avg_pool2d<V>;
  table.mean_rows = mean_rows<V>;
  table.interpolate = interpolate<V>;
  table.from_nchw = from_nchw<V>;
  table.to_nchw = to_nchw<V>;
  return table;
}

}  // namespace defakeq::simd

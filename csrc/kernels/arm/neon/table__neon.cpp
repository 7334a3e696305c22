#include "kernels/arm/neon/kernels.h"
#include "kernels/arm/vec.h"
#include "kernels/simd/elementwise.h"
#include "kernels/simd/gemm_f32.h"
#include "kernels/simd/nchw.h"
#include "kernels/simd/normalize.h"
#include "kernels/simd/pack_codes.h"
#include "kernels/simd/pool.h"
#include "kernels/simd/rows.h"

namespace defakeq {

const KernelTable* kernel_table_neon() {
  static constexpr KernelTable kTable = {
      .isa = "neon",
      .gemm_s8 = neon::gemm_s8,
      .gemv_s8 = neon::gemv_s8,
      .gemm_f32 = simd::gemm_f32<Vec, 5, 1>,
      .dw_s8 = neon::dw_s8,
      .dw_s8_scratch = neon::dw_s8_scratch,
      .dw_f32 = simd::dw_f32<Vec>,
      .expand_codes = neon::expand_codes,
      .arrange_codes = neon::arrange_codes,
      .codes_to_f32 = simd::codes_to_f32<Vec>,
      .row_sums = neon::row_sums,
      .quantize = simd::quantize<Vec>,
      .dequantize = simd::dequantize<Vec>,
      .to_f32 = simd::to_f32<Vec>,
      .abs_max = simd::abs_max<Vec>,
      .shuffle = neon::shuffle,
      .lookup = neon::lookup,
      .unary = simd::unary<Vec>,
      .binary = simd::binary<Vec>,
      .layer_norm = simd::layer_norm<Vec>,
      .softmax = simd::softmax<Vec>,
      .reduce = simd::reduce<Vec>,
      .softmax_codes = simd::softmax_codes<Vec>,
      .pack_rows = simd::pack_rows<Vec>,
      .pack_columns = simd::pack_columns<Vec>,
      .pool2d = simd::pool2d<Vec>,
      .adaptive_avg_pool2d = simd::adaptive_avg_pool2d<Vec>,
      .interpolate = simd::interpolate<Vec>,
      .from_nchw = simd::from_nchw<Vec>,
      .to_nchw = simd::to_nchw<Vec>,
  };
  return &kTable;
}

}  // namespace defakeq

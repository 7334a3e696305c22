#include "kernels/simd/elementwise.h"
#include "kernels/simd/gemm_f32.h"
#include "kernels/simd/nchw.h"
#include "kernels/simd/normalize.h"
#include "kernels/simd/pack_codes.h"
#include "kernels/simd/pool.h"
#include "kernels/simd/rows.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq {

const KernelTable* kernel_table_avx512vnni() {
  static constexpr KernelTable kTable = {
      .isa = "avx512vnni",
      .gemm_s8 = avx512vnni::gemm_s8,
      .gemv_s8 = avx512vnni::gemv_s8,
      .gemm_f32 = simd::gemm_f32<Vec, 8, 2, NarrowVec>,
      .dw_s8 = avx512vnni::dw_s8,
      .dw_s8_scratch = avx512vnni::dw_s8_scratch,
      .dw_f32 = simd::dw_f32<Vec>,
      .expand_codes = avx512vnni::expand_codes,
      .arrange_codes = nullptr,
      .codes_to_f32 = simd::codes_to_f32<Vec>,
      .row_sums = avx512vnni::row_sums,
      .quantize = simd::quantize<Vec>,
      .dequantize = simd::dequantize<Vec>,
      .to_f32 = simd::to_f32<Vec>,
      .abs_max = simd::abs_max<Vec>,
      .shuffle = avx512vnni::shuffle,
      .lookup = avx512vnni::lookup,
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

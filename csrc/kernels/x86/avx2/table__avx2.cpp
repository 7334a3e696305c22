#include "kernels/simd/gemm_f32.h"
#include "kernels/simd/rows.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"

namespace defakeq {

const KernelTable* kernel_table_avx2() {
  static constexpr KernelTable kTable = {
      .isa = "avx2",
      .gemm_s8 = avx2::gemm_s8,
      .gemv_s8 = avx2::gemv_s8,
      .gemm_f32 = simd::gemm_f32<Vec, 4, 1, NarrowVec>,
      .dw_s8 = avx2::dw_s8,
      .dw_s8_scratch = avx2::dw_s8_scratch,
      .dw_f32 = simd::dw_f32<Vec>,
      .expand_codes = avx2::expand_codes,
      .codes_to_f32 = simd::codes_to_f32<Vec>,
      .row_sums = avx2::row_sums,
      .quantize = simd::quantize<Vec>,
      .dequantize = simd::dequantize<Vec>,
      .to_f32 = simd::to_f32<Vec>,
      .abs_max = simd::abs_max<Vec>,
      .shuffle = avx2::shuffle,
  };
  return &kTable;
}

}  // namespace defakeq

#include "kernels/scalar/kernels.h"
#include "kernels/scalar/vec.h"
#include "kernels/simd/shared_kernels.h"

namespace defakeq {

const KernelTable* kernel_table_scalar() {
  using scalar::Vec;
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("scalar");
    table.gemm_s8 = scalar::gemm_s8;
    table.gemv_s8 = scalar::gemv_s8;
    table.gemm_f32 = simd::gemm_f32<Vec, 1, 1>;
    table.dw_s8 = scalar::dw_s8;
    table.dw_s8_scratch = scalar::dw_s8_scratch;
    table.expand_codes = scalar::expand_codes;
    table.row_sums = scalar::row_sums;
    table.shuffle = scalar::shuffle;
    table.lookup = simd::lookup<Vec>;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

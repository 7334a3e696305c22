#include "kernels/arm/i8mm/kernels.h"
#include "kernels/arm/vec.h"
#include "kernels/simd/shared_kernels.h"

namespace defakeq {

const KernelTable* kernel_table_i8mm() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("i8mm");
    table.gemm_s8 = i8mm::gemm_s8;
    table.gemv_s8 = i8mm::gemv_s8;
    table.gemm_f32 = simd::gemm_f32<Vec, 5, 1>;
    table.dw_s8 = i8mm::dw_s8;
    table.dw_s8_scratch = i8mm::dw_s8_scratch;
    table.expand_codes = i8mm::expand_codes;
    table.arrange_codes = i8mm::arrange_codes;
    table.row_sums = i8mm::row_sums;
    table.shuffle = i8mm::shuffle;
    table.lookup = i8mm::lookup;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

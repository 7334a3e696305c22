#include "kernels/arm/neon/kernels.h"
#include "kernels/arm/vec.h"
#include "kernels/simd/shared_kernels.h"

namespace defakeq {

const KernelTable* kernel_table_neon() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("neon");
    table.gemm_s8 = neon::gemm_s8;
    table.gemv_s8 = neon::gemv_s8;
    table.gemm_f32 = simd::gemm_f32<Vec, 5, 1>;
    table.dw_s8 = neon::dw_s8;
    table.dw_s8_scratch = neon::dw_s8_scratch;
    table.expand_codes = neon::expand_codes;
    table.arrange_codes = neon::arrange_codes;
    table.row_sums = neon::row_sums;
    table.shuffle = neon::shuffle;
    table.lookup = neon::lookup;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

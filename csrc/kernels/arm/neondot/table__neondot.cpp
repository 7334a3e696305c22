#include "kernels/arm/neondot/kernels.h"
#include "kernels/arm/vec.h"
#include "kernels/simd/shared_kernels.h"

namespace defakeq {

const KernelTable* kernel_table_neondot() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("neondot");
    table.gemm_s8 = neondot::gemm_s8;
    table.gemv_s8 = neondot::gemv_s8;
    table.gemm_f32 = simd::gemm_f32<Vec, 5, 1>;
    table.dw_s8 = neondot::dw_s8;
    table.dw_s8_scratch = neondot::dw_s8_scratch;
    table.expand_codes = neondot::expand_codes;
    table.arrange_codes = neondot::arrange_codes;
    table.row_sums = neondot::row_sums;
    table.shuffle = neondot::shuffle;
    table.lookup = neondot::lookup;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

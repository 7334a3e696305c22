#include "kernels/simd/shared_kernels.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"

namespace defakeq {

const KernelTable* kernel_table_avx2() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("avx2");
    table.gemm_s8 = avx2::gemm_s8;
    table.gemv_s8 = avx2::gemv_s8;
    table.gemm_f32 = simd::gemm_f32<Vec, 4, 1, NarrowVec>;
    table.dw_s8 = avx2::dw_s8;
    table.dw_s8_scratch = avx2::dw_s8_scratch;
    table.expand_codes = avx2::expand_codes;
    table.row_sums = avx2::row_sums;
    table.shuffle = avx2::shuffle;
    table.lookup = simd::lookup<Vec>;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

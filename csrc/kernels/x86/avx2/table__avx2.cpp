#include "kernels/simd/shared_kernels.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"

namespace defakeq {

const KernelTable* kernel_table_avx2() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("avx2");
    DQ_SET_ISA_KERNELS(table, avx2);
    table.gemm_f32 = simd::gemm_f32<Vec, 4, 1>;
    table.lookup = simd::lookup<Vec>;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

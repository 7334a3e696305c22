#include "kernels/scalar/kernels.h"
#include "kernels/scalar/vec.h"
#include "kernels/simd/shared_kernels.h"

namespace defakeq {

const KernelTable* kernel_table_scalar() {
  using scalar::Vec;
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("scalar");
    DQ_SET_ISA_KERNELS(table, scalar);
    table.gemm_f32 = simd::gemm_f32<Vec, 1, 1>;
    table.lookup = simd::lookup<Vec>;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

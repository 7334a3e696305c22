#include "kernels/simd/shared_kernels.h"
#include "kernels/x86/avx2/kernels.h"
#include "kernels/x86/avx2/vec.h"

namespace defakeq {

const KernelTable* kernel_table_avx2() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("avx2");
    DQ_SET_ISA_KERNELS(table, avx2);
    table.gemm_f32 = simd::gemm_f32<Vec, 4, 1>;
    DQ_SET_WINOGRAD(table, avx2);
    table.winograd = {1.14f, 250.0f, 450.0f, 150.0f, 0.5f};
    table.finish_s8 = avx2::finish_s8;
    table.lookup = simd::lookup<Vec>;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

#include "kernels/simd/shared_kernels.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq {

const KernelTable* kernel_table_avx512vnni() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("avx512vnni");
    DQ_SET_ISA_KERNELS(table, avx512vnni);
    table.fuses_half_inputs = true;
    table.writes_windows = true;
    table.reads_planes = true;
    table.gemm_f32 = avx512vnni::gemm_f32;
    table.f32_reads_bytes = true;
    table.lookup = avx512vnni::lookup;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

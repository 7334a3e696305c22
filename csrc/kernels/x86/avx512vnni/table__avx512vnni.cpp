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
    table.gemm_f32 = simd::gemm_f32<Vec, 8, 2, NarrowVec>;
    table.turn_pixels = avx512vnni::turn_pixels;
    table.gemm_f32_turned = avx512vnni::gemm_f32_turned;
    table.finish_s8 = avx512vnni::gemm_s8;
    DQ_SET_WINOGRAD(table, avx512vnni);
    table.winograd = {1.92f, 300.0f, 1000.0f, 330.0f, 1.0f};
    table.lookup = avx512vnni::lookup;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

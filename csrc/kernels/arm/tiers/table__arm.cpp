#include "kernels/arm/elementwise.h"
#include "kernels/arm/kernels.h"
#include "kernels/arm/vec.h"
#include "kernels/simd/shared_kernels.h"

namespace defakeq {

const KernelTable* DQ_OF_ISA(kernel_table_, DQ_ISA)() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>(DQ_ISA_NAME(DQ_ISA));
    DQ_SET_ISA_KERNELS(table, DQ_ISA);
    table.gemm_f32 = simd::gemm_f32<Vec, 5, 1>;
    table.arrange_codes = DQ_ISA::arrange_codes;
    table.lookup = DQ_ISA::lookup;
    table.binary = DQ_ISA::binary;
    table.turn_pixels = DQ_ISA::turn_pixels;
    table.gemm_f32_turned = DQ_ISA::gemm_f32_turned;
#ifndef __ARM_FEATURE_DOTPROD
    // sdot multiplies faster than Winograd saves.
    DQ_SET_WINOGRAD(table, DQ_ISA);
    table.winograd = {1.0f, 170.0f, 400.0f, 105.0f, 0.6f};
    table.finish_s8 = DQ_ISA::finish_s8;
#endif
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

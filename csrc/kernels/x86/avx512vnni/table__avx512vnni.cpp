#include "kernels/simd/shared_kernels.h"
#include "kernels/x86/avx512vnni/kernels.h"
#include "kernels/x86/avx512vnni/vec.h"

namespace defakeq {

const KernelTable* kernel_table_avx512vnni() {
  static constexpr KernelTable kTable = [] {
    KernelTable table = simd::shared_kernels<Vec>("avx512vnni");
    table.gemm_s8 = avx512vnni::gemm_s8;
    table.fuses_half_inputs = true;
    table.writes_windows = true;
    table.gemv_s8 = avx512vnni::gemv_s8;
    table.gemm_f32 = avx512vnni::gemm_f32;
    table.f32_reads_bytes = true;
    table.dw_s8 = avx512vnni::dw_s8;
    table.dw_s8_scratch = avx512vnni::dw_s8_scratch;
    table.expand_codes = avx512vnni::expand_codes;
    table.row_sums = avx512vnni::row_sums;
    table.shuffle = avx512vnni::shuffle;
    table.lookup = avx512vnni::lookup;
    return table;
  }();
  return &kTable;
}

}  // namespace defakeq

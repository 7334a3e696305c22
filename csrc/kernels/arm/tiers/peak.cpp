#include "kernels/arm/kernels.h"
#include "kernels/arm/peak_loops.h"

namespace defakeq {

namespace {

#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int64_t kMacs = 32;
#define DEFAKEQ_STEP(v) "usmmla v" #v ".4s, v0.16b, v1.16b\n\t"
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int64_t kMacs = 16;
#define DEFAKEQ_STEP(v) "sdot v" #v ".4s, v0.16b, v1.4b[0]\n\t"
#else
constexpr int64_t kMacs = 16;
#define DEFAKEQ_STEP(v) \
  "smull v2.8h, v0.8b, v1.8b\n\tsmlal2 v2.8h, v0.16b, v1.16b\n\tsadalp v" #v ".4s, v2.8h\n\t"
#endif

int64_t int8_macs(int64_t rounds) {
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(DEFAKEQ_CHAINS(DEFAKEQ_STEP)::: DEFAKEQ_CHAIN_REGISTERS);
  }
  return rounds * 16 * kMacs;
}

}  // namespace

const PeakLoops* DQ_OF_ISA(peak_loops_, DQ_ISA)() {
  static constexpr PeakLoops kLoops = {DQ_ISA_NAME(DQ_ISA), int8_macs, neon_fp32_macs, neon_read};
  return &kLoops;
}

}  // namespace defakeq

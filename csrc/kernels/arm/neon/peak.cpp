// Without a dot product 16 products take smull, smlal2 and sadalp.
#include "kernels/arm/peak_loops.h"

namespace defakeq {

namespace {

int64_t int8_macs(int64_t rounds) {
#define DEFAKEQ_STEP(v) \
  "smull v2.8h, v0.8b, v1.8b\n\tsmlal2 v2.8h, v0.16b, v1.16b\n\tsadalp v" #v ".4s, v2.8h\n\t"
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(DEFAKEQ_CHAINS(DEFAKEQ_STEP)::: DEFAKEQ_CHAIN_REGISTERS);
  }
#undef DEFAKEQ_STEP
  return rounds * 16 * 16;
}

}  // namespace

const PeakLoops* peak_loops_neon() {
  static constexpr PeakLoops kLoops = {"neon", int8_macs, neon_fp32_macs, neon_read};
  return &kLoops;
}

}  // namespace defakeq

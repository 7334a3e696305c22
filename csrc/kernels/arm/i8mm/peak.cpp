// Thirty-two products a usmmla.
#include "kernels/arm/peak_loops.h"

namespace defakeq {

namespace {

int64_t int8_macs(int64_t rounds) {
#define DEFAKEQ_STEP(v) "usmmla v" #v ".4s, v0.16b, v1.16b\n\t"
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(DEFAKEQ_CHAINS(DEFAKEQ_STEP)::: DEFAKEQ_CHAIN_REGISTERS);
  }
#undef DEFAKEQ_STEP
  return rounds * 16 * 32;
}

}  // namespace

const PeakLoops* peak_loops_i8mm() {
  static constexpr PeakLoops kLoops = {"i8mm", int8_macs, neon_fp32_macs, neon_read};
  return &kLoops;
}

}  // namespace defakeq

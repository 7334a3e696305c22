// The parts of the ARM loops that do not depend on the tier.
#pragma once

#include <arm_neon.h>

#include "kernels/peak.h"

namespace defakeq {
namespace {

// Sixteen independent chains hide the latency of the additions.
#define DEFAKEQ_CHAINS(step)                                                                \
  step(16) step(17) step(18) step(19) step(20) step(21) step(22) step(23) step(24) step(25) \
      step(26) step(27) step(28) step(29) step(30) step(31)
#define DEFAKEQ_CHAIN_REGISTERS                                                                    \
  "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22", \
      "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31"

inline int64_t neon_fp32_macs(int64_t rounds) {
#define DEFAKEQ_STEP(v) "fmla v" #v ".4s, v0.4s, v1.4s\n\t"
  __asm__ volatile("movi v0.4s, #0\n\tmovi v1.4s, #0\n\t" ::: DEFAKEQ_CHAIN_REGISTERS);
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(DEFAKEQ_CHAINS(DEFAKEQ_STEP)::: DEFAKEQ_CHAIN_REGISTERS);
  }
#undef DEFAKEQ_STEP
  return rounds * 16 * 4;
}

inline uint64_t neon_read(const void* data, size_t bytes) {
  const auto* p = static_cast<const uint8_t*>(data);
  uint8x16_t digest[4] = {vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0)};
  for (size_t i = 0; i < bytes; i += 64) {
    const uint8x16x4_t v = vld1q_u8_x4(p + i);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) digest[j] = veorq_u8(digest[j], v.val[j]);
  }
  const uint64x2_t all = vreinterpretq_u64_u8(
      veorq_u8(veorq_u8(digest[0], digest[1]), veorq_u8(digest[2], digest[3])));
  return vgetq_lane_u64(all, 0) ^ vgetq_lane_u64(all, 1);
}

}  // namespace
}  // namespace defakeq

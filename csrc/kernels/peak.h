// Loops that measure what a core can do at best, for comparison with what the kernels reach.
#pragma once

#include <cstddef>
#include <cstdint>

namespace defakeq {

struct PeakLoops {
  const char* isa;
  // Each runs `rounds` rounds over registers or level-1 cache; returns the multiply-adds done.
  int64_t (*int8_macs)(int64_t rounds);
  int64_t (*fp32_macs)(int64_t rounds);
  // Reads `bytes` bytes (a multiple of 1024) from 64-byte aligned memory; returns a digest of them.
  uint64_t (*read)(const void* data, size_t bytes);
};

const PeakLoops* peak_loops_scalar();
const PeakLoops* peak_loops_avx2();
const PeakLoops* peak_loops_avx512vnni();
const PeakLoops* peak_loops_neon();
const PeakLoops* peak_loops_neondot();
const PeakLoops* peak_loops_i8mm();

}  // namespace defakeq

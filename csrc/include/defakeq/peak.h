#pragma once

#include "defakeq/export.h"

namespace defakeq {

// What the core that runs the call can do at best: the yardstick of the benchmarks.
struct Peak {
  double int8_gmacs;  // 10^9 int8 multiply-adds a second, exact sums of 32 bits
  double fp32_gmacs;  // 10^9 float32 multiply-adds a second
  double l2_gbs;      // 10^9 bytes a second read from 256 KiB (the second level of the cache)
  double dram_gbs;    // the same from 128 MiB
};

// Medians of a few runs of about half a millisecond in the calling thread. `isa` is a tier's name,
// or null for the one in use. Throws std::invalid_argument when it is not built or not supported.
DEFAKEQ_API Peak probe_peak(const char* isa);

// The first number alone, in about 3 ms: short enough to be taken between measurements.
DEFAKEQ_API double int8_peak_gmacs(const char* isa);

}  // namespace defakeq

#pragma once

#include <string>
#include <vector>

#include "defakeq/export.h"

namespace defakeq {

// Instruction-set tiers are named, in rising order: "scalar", then "avx2", "avx512vnni" on x86-64
// or "neon", "neondot", "i8mm" on 64-bit ARM.
struct CpuInfo {
  std::string cpu;                     // the processor's own name
  std::vector<std::string> built;      // tiers this library has kernels for
  std::vector<std::string> supported;  // tiers the processor and the operating system can run
  std::vector<std::string> allowed;    // tiers up to the DEFAKEQ_ISA environment variable
  std::string selected;                // the tier in use: the highest that is all three
  int threads = 1;                     // processors this process may run on
};

// Throws std::invalid_argument when DEFAKEQ_ISA names no tier.
DEFAKEQ_API CpuInfo cpu_info();

// Chooses the tier for all later calls in this process; null returns to the default. Throws
// std::invalid_argument when `name` is not built or not supported here. Not to be called while an
// operator runs in another thread.
DEFAKEQ_API void set_isa(const char* name);

// The name of the tier in use.
DEFAKEQ_API const char* selected_isa();

}  // namespace defakeq

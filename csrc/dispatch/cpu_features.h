#pragma once

#include <string>

namespace defakeq {

struct CpuFeatures {
  bool avx2 = false;        // AVX2, FMA and F16C, with the OS saving the ymm registers
  bool avx512vnni = false;  // F, BW, VL, DQ, VNNI and VBMI, with the OS saving the zmm registers
  bool neon = false;        // any 64-bit ARM
  bool neondot = false;     // sdot, by lane and by vector
  bool i8mm = false;        // sdot and usmmla
};

CpuFeatures detect_cpu_features();
std::string cpu_name();
int available_threads();

}  // namespace defakeq

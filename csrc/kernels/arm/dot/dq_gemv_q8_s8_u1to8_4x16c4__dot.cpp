#include "kernels/arm/gemv_dot.h"
#include "kernels/arm/kernels.h"

namespace defakeq::DQ_ISA {

void gemv_s8(const GemmS8Args& a) { gemv_dot(a); }

void expand_codes(const uint8_t* planes, int bits, int64_t steps, uint8_t* codes) {
  expand_all(planes, bits, steps, codes);
}

}  // namespace defakeq::DQ_ISA

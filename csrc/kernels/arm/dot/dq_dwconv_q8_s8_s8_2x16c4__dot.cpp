#include "kernels/arm/dwconv_dot.h"
#include "kernels/arm/kernels.h"

namespace defakeq::DQ_ISA {

size_t dw_s8_scratch(const DwS8Args& a) { return dw_dot_scratch(a); }

void dw_s8(const DwS8Args& a) { dw_dot(a); }

}  // namespace defakeq::DQ_ISA

#pragma once

#include "kernels/isa_kernels.h"

DQ_DECLARE_ISA_KERNELS(avx2);
DQ_DECLARE_WINOGRAD(avx2);

namespace defakeq::avx2 {

void finish_s8(const GemmS8Args& args);

}  // namespace defakeq::avx2

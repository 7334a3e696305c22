#pragma once

#include "kernels/isa_kernels.h"

DQ_DECLARE_ISA_KERNELS(avx512vnni);

namespace defakeq::avx512vnni {

void gemm_f32(const GemmF32Args& args);
void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out);

}  // namespace defakeq::avx512vnni

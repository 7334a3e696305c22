#pragma once

#include "kernels/isa_kernels.h"

DQ_DECLARE_ISA_KERNELS(avx512vnni);
DQ_DECLARE_WINOGRAD(avx512vnni);

namespace defakeq::avx512vnni {

void turn_pixels(const int8_t* const* pixels, int64_t bytes, bool pairs, int32_t zero_point,
                 uint8_t* turned);
void gemm_f32_turned(const TurnedF32Args& args);
void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out);

}  // namespace defakeq::avx512vnni

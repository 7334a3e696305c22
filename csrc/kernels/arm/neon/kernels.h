#pragma once

#include "kernels/isa_kernels.h"

DQ_DECLARE_ISA_KERNELS(neon);

namespace defakeq::neon {

void arrange_codes(uint8_t* codes, int bits, int64_t steps, int64_t length);
void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out);

}  // namespace defakeq::neon

// What every ARM tier writes by hand. DQ_ISA is the tier that a source is compiled for; the sources
// in tiers/ are compiled for each, those in dot/ for those with sdot.
#pragma once

#include "kernels/isa_kernels.h"
#include "kernels/node_args.h"

#ifndef DQ_ISA
#error "DQ_ISA names the tier: the build defines it"
#endif

DQ_DECLARE_ISA_KERNELS(DQ_ISA);
DQ_DECLARE_WINOGRAD(DQ_ISA);  // of the tier without sdot

namespace defakeq::DQ_ISA {

void finish_s8(const GemmS8Args& a);
void arrange_codes(uint8_t* codes, int bits, int64_t steps, int64_t length);
void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out);
void binary(const BinaryArgs& g, int64_t begin, int64_t end);
void turn_pixels(const int8_t* const* pixels, int64_t bytes, bool pairs, int32_t zero_point,
                 uint8_t* turned);
void gemm_f32_turned(const TurnedF32Args& args);

}  // namespace defakeq::DQ_ISA

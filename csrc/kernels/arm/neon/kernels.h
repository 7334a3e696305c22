#pragma once

#include "kernels/kernel_table.h"

namespace defakeq::neon {

void gemm_s8(const GemmS8Args& args);
void gemv_s8(const GemmS8Args& args);
void expand_codes(const uint8_t* planes, int bits, int64_t steps, uint8_t* codes);
void arrange_codes(uint8_t* codes, int bits, int64_t steps, int64_t length);
void dw_s8(const DwS8Args& args);
size_t dw_s8_scratch(const DwS8Args& args);
void row_sums(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
              int64_t length, int32_t* sums);
void shuffle(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows,
             uint8_t* dst, int64_t dst_stride);
void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out);

}  // namespace defakeq::neon

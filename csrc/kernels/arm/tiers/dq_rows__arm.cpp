#include "kernels/arm/elementwise.h"
#include "kernels/arm/kernels.h"
#include "kernels/arm/rows.h"

namespace defakeq::DQ_ISA {

void row_sums(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,
              int64_t length, int32_t* sums) {
  row_sums_of(rows, m, tap_offset, taps, length, sums);
}

void shuffle(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows,
             uint8_t* dst, int64_t dst_stride) {
  shuffle_rows(plan, src, src_stride, rows, dst, dst_stride);
}

void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out) {
  lookup_bytes(x, count, Table(table), out);
}

void binary(const BinaryArgs& g, int64_t begin, int64_t end) { binary_of(g, begin, end); }

}  // namespace defakeq::DQ_ISA

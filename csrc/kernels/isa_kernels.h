// What every ISA writes by hand: declared in the ISA's namespace, and put into its table.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/winograd_args.h"

#define DQ_DECLARE_ISA_KERNELS(isa)                                                           \
  namespace defakeq::isa {                                                                    \
  void gemm_s8(const GemmS8Args& args);                                                       \
  void gemv_s8(const GemmS8Args& args);                                                       \
  void expand_codes(const uint8_t* planes, int bits, int64_t steps, uint8_t* codes);          \
  void dw_s8(const DwS8Args& args);                                                           \
  size_t dw_s8_scratch(const DwS8Args& args);                                                 \
  void row_sums(const int8_t* const* rows, int64_t m, const int64_t* tap_offset, int taps,    \
                int64_t length, int32_t* sums);                                               \
  void shuffle(const ShufflePlan& plan, const uint8_t* src, int64_t src_stride, int64_t rows, \
               uint8_t* dst, int64_t dst_stride);                                             \
  }                                                                                           \
  static_assert(true, "")

#define DQ_SET_ISA_KERNELS(table, isa)        \
  (table).gemm_s8 = isa::gemm_s8;             \
  (table).gemv_s8 = isa::gemv_s8;             \
  (table).expand_codes = isa::expand_codes;   \
  (table).dw_s8 = isa::dw_s8;                 \
  (table).dw_s8_scratch = isa::dw_s8_scratch; \
  (table).row_sums = isa::row_sums;           \
  (table).shuffle = isa::shuffle

// Winograd's products, where an ISA has them.
#define DQ_DECLARE_WINOGRAD(isa)                           \
  namespace defakeq::isa {                                 \
  void winograd_input(const WinogradInputArgs& args);      \
  void winograd_weights(const WinogradWeightArgs& args);   \
  void winograd_products(const WinogradProductArgs& args); \
  }                                                        \
  static_assert(true, "")

#define DQ_DEFINE_WINOGRAD(V)                                                                   \
  void winograd_input(const WinogradInputArgs& args) { simd::winograd_input<V>(args); }         \
  void winograd_weights(const WinogradWeightArgs& args) { simd::winograd_weights<V>(args); }    \
  void winograd_products(const WinogradProductArgs& args) { simd::winograd_products<V>(args); } \
  static_assert(true, "")

#define DQ_SET_WINOGRAD(table, isa)                 \
  (table).winograd_input = isa::winograd_input;     \
  (table).winograd_weights = isa::winograd_weights; \
  (table).winograd_products = isa::winograd_products

// prefix##isa and "isa" of an ISA that is a macro.
#define DQ_OF_ISA(prefix, isa) DQ_OF_ISA_(prefix, isa)
#define DQ_OF_ISA_(prefix, isa) prefix##isa
#define DQ_ISA_NAME(isa) DQ_ISA_NAME_(isa)
#define DQ_ISA_NAME_(isa) #isa

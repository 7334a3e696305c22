// The product of one strip of outputs by some rows: expanded codes, half-precision inputs, scale
// groups along the reduction, and where the results go.
#pragma once

#include <cstdint>

#include "defakeq/ops.h"
#include "kernels/kernel_table.h"
#include "ops/activations.h"
#include "ops/arena.h"
#include "ops/output_windows.h"
#include "ops/product_rows.h"
#include "ops/winograd.h"
#include "pack/packed_layer.h"

namespace defakeq {

// Where a row goes: channels of the output in their places, or slots.
struct RowsOut {
  void* out;
  int64_t stride;
  const void* residual;  // null when there is none
  int64_t residual_stride;
};

class Strips {
 public:
  // halves_apart: half-precision outputs are none of the strips.
  Strips(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
         const ProductRows& rows, const Winograd& winograd, bool gemv, bool halves_apart)
      : layer_(layer),
        kernels_(kernels),
        args_(args),
        rows_(rows),
        winograd_(winograd),
        gemv_(gemv),
        planes_(gemv || (reads_planes() && !winograd.pays())),
        blocks_(halves_apart ? layer.int_blocks : layer.blocks) {}

  // Reserves scratch for m rows of each task.
  void place(Arena& arena, int64_t m, int tasks);
  void find();
  // Begins with new rows, whose results are ended so (but for the residual's place).
  void start(const Post& post, int tasks);
  int64_t count() const { return count_; }
  // Of them, the first ones that are not half-precision outputs.
  int64_t integers() const { return integers_; }
  // Whether strips put their outputs into the rows of the output themselves.
  bool in_place() const { return layer_.direct || layer_.patched || windowed_; }
  // Strip s of rows [row0, row1); `to` is the place of row0.
  void run(int64_t task, int64_t s, int64_t row0, int64_t row1, const RowsOut& to);
  // bias + the half-precision inputs' chain, of blocks [first, first + count)
  void chain(int first, int count, int64_t row0, int64_t row1, float* out, int64_t stride) const;

 private:
  // Whether runs of the reduction begin at plane blocks, where the kernel may read these.
  bool reads_planes() const {
    return kernels_.reads_planes && layer_.act_mode != ActMode::kNone &&
           (layer_.taps == 1 || layer_.tap_steps % kPlaneSteps == 0) &&
           (layer_.pieces == 1 || layer_.group_size % (4 * kPlaneSteps) == 0);
  }
  // Half-precision inputs are read by the integer product itself.
  bool fuses_half_inputs() const {
    return kernels_.fuses_half_inputs && !gemv_ && layer_.pieces == 1;
  }
  bool may_window() const {
    return kernels_.writes_windows && !layer_.direct && !layer_.patched && !gemv_ &&
           layer_.out_dtype == DType::kInt8 && layer_.act_mode != ActMode::kNone &&
           layer_.int_blocks == blocks_ && blocks_ > 0;
  }
  bool is_half(const Strip& strip) const { return block(strip.first).bits == 16; }
  int64_t half_length() const {
    return layer_.half_inputs * (layer_.merged_row ? layer_.kernel[1] : 1);
  }
  const PackedBlock& block(int i) const { return layer_.at<PackedBlock>(layer_.block_table)[i]; }

  void winograd(int64_t task, const Strip& strip, int64_t row0, int64_t row1, GemmS8Args& a);
  void ints(int64_t task, const Strip& strip, int64_t row0, int64_t row1, const RowsOut& to);
  void floats(int64_t task, const Strip& strip, int64_t row0, int64_t row1, const RowsOut& to);
  void patch(int64_t task, const Strip& strip, int64_t row0, int64_t row1, const RowsOut& to);
  const float* half_chain(int64_t task, const Strip& strip, int64_t row0, int64_t row1);
  const uint8_t* expanded(int64_t task, const Strip& strip, bool arranged);
  void arrange(uint8_t* codes, int bits) const;
  template <class Args>
  void set_output(Args& a, const Strip& strip, const RowsOut& to) const;
  template <class Args>
  void set_sums(Args& a, const Strip& strip, float* sums) const;

  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const OpArgs& args_;
  const ProductRows& rows_;
  const Winograd& winograd_;
  bool gemv_;
  bool planes_;  // codes are expanded by the kernel, not beforehand
  int blocks_;   // that the strips compute
  Post post_;

  Strip* strips_ = nullptr;
  int64_t count_ = 0, integers_ = 0;
  OutputWindow* windows_ = nullptr;
  bool windowed_ = false;  // outputs that no strip computes are left out by the kernel itself
  // a task each
  uint8_t* codes_ = nullptr;   // expanded codes of a strip
  float* panel_ = nullptr;     // float32 weights of a strip
  float* sums_ = nullptr;      // [m][strip's outputs] intermediate results
  int32_t* cached_ = nullptr;  // first block of the strip in codes_, -1
  void* patch_ = nullptr;      // [kPatchRows][32] half-precision outputs, and their residuals
  void* patch_residual_ = nullptr;
  int64_t codes_bytes_ = 0, panel_floats_ = 0, sums_floats_ = 0;
};

}  // namespace defakeq

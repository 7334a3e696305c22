// Tensors of torch for the kernels, through PyTorch's stable ABI only: nothing but
// torch/csrc/stable and the C shims below it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <string>

#include "defakeq/ops.h"
#include "defakeq/parallel.h"
#include "defakeq/types.h"

namespace defakeq::torch_tensors {

inline constexpr int kMaxDims = 64;

[[noreturn]] void refuse(const std::string& argument, const std::string& found,
                         const std::string& accepted);
void check(AOTITorchError code, const char* what);
std::string shape_text(const int64_t* sizes, int64_t dims);
std::string dtype_name(int32_t dtype);

// An argument: the handle is owned, the metadata is borrowed from the tensor.
class Argument {
 public:
  explicit Argument(AtenTensorHandle handle) : handle_(handle) {}
  Argument(const Argument&) = delete;
  Argument& operator=(const Argument&) = delete;
  ~Argument();

  // Reads the metadata; refuses tensors off the CPU and without strides. `name` is borrowed.
  void open(const char* name);

  explicit operator bool() const { return handle_ != nullptr; }
  AtenTensorHandle handle() const { return handle_; }
  std::string shape() const { return shape_text(sizes, dims); }
  bool is_float() const { return dtype == aoti_torch_dtype_float32(); }
  DType value_type() const;

  const char* name = "";
  int64_t dims = 0;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  int32_t dtype = 0;
  const void* data = nullptr;

 private:
  AtenTensorHandle handle_;
};

// torch's own threads, so torch.set_num_threads() holds.
class TorchParallel final : public Parallel {
 public:
  int threads() const override;
  void run(int64_t n, Body body, void* context) override;
};

// A tensor's dimensions in the order in which the kernels read them.
struct View {
  const void* data;
  int64_t dims;
  int64_t sizes[kMaxDims], strides[kMaxDims];

  bool dense() const;
  // The stride of the rows of the last dimension when they are at equal distances, else 0.
  int64_t row_stride() const;
};

View in_order(const Argument& a);
View channels_last(const Argument& a);

// The values in the order of `view`, without a copy when memory has that order already.
const void* dense(const View& view, DType dtype, GrowingScratch& scratch, Parallel& parallel);

AtenTensorHandle new_tensor(int64_t dims, const int64_t* sizes, const int64_t* strides,
                            DType dtype);

// Refuses a float tensor that requires grad while grad mode is on: its gradient would silently be
// lost.
void refuse_grad(const Argument& a);

}  // namespace defakeq::torch_tensors

#include "bindings/torch_tensors.h"

#include <algorithm>
#include <stdexcept>

namespace defakeq::torch_tensors {

using torch::stable::detail::to;

void refuse(const std::string& argument, const std::string& found, const std::string& accepted) {
  throw std::invalid_argument(argument + ": found " + found + ", accepted: " + accepted);
}

void check(AOTITorchError code, const char* what) {
  if (code != AOTI_TORCH_SUCCESS) throw std::runtime_error(std::string("torch failed in ") + what);
}

std::string shape_text(const int64_t* sizes, int64_t dims) {
  std::string text = "[";
  for (int64_t d = 0; d < dims; ++d) text += (d == 0 ? "" : ", ") + std::to_string(sizes[d]);
  return text + "]";
}

std::string dtype_name(int32_t dtype) {
  struct Name {
    int32_t (*dtype)();
    const char* name;
  };
  constexpr Name kNames[] = {
      {aoti_torch_dtype_float16, "float16"}, {aoti_torch_dtype_bfloat16, "bfloat16"},
      {aoti_torch_dtype_float32, "float32"}, {aoti_torch_dtype_float64, "float64"},
      {aoti_torch_dtype_uint8, "uint8"},     {aoti_torch_dtype_int8, "int8"},
      {aoti_torch_dtype_int16, "int16"},     {aoti_torch_dtype_int32, "int32"},
      {aoti_torch_dtype_int64, "int64"},     {aoti_torch_dtype_bool, "bool"},
  };
  for (const Name& entry : kNames) {
    if (entry.dtype() == dtype) return entry.name;
  }
  return "dtype number " + std::to_string(dtype);
}

Argument::~Argument() {
  if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
}

void Argument::open(const char* argument) {
  name = argument;
  int32_t device = 0, layout = 0;
  check(aoti_torch_get_device_type(handle_, &device), "get_device_type");
  if (device != aoti_torch_device_type_cpu()) {
    refuse(name, "a tensor on another device", "a tensor on the CPU");
  }
  check(aoti_torch_get_layout(handle_, &layout), "get_layout");
  if (layout != aoti_torch_layout_strided()) {
    refuse(name, "a sparse or opaque tensor", "a strided tensor");
  }
  check(aoti_torch_get_dim(handle_, &dims), "get_dim");
  if (dims > kMaxDims) refuse(name, std::to_string(dims) + " dimensions", "at most 64");
  check(aoti_torch_get_sizes(handle_, &sizes), "get_sizes");
  check(aoti_torch_get_strides(handle_, &strides), "get_strides");
  check(aoti_torch_get_dtype(handle_, &dtype), "get_dtype");
  check(torch_get_const_data_ptr(handle_, &data), "get_const_data_ptr");
}

DType Argument::value_type() const {
  if (is_float()) return DType::kFloat32;
  if (dtype == aoti_torch_dtype_int8()) return DType::kInt8;
  refuse(name, dtype_name(dtype), "float32 or int8");
}

int TorchParallel::threads() const {
  uint32_t count = 1;
  check(torch_get_num_threads(&count), "get_num_threads");
  return static_cast<int>(count);
}

void TorchParallel::run(int64_t n, Body body, void* context) {
  if (n <= 0) return;
  struct Call {
    Body body;
    void* context;
  } call{body, context};
  check(torch_parallel_for(
            0, n, 1,
            [](int64_t begin, int64_t end, void* p) {
              const Call& c = *static_cast<Call*>(p);
              c.body(c.context, begin, end);
            },
            &call),
        "parallel_for");
}

bool View::dense() const {
  int64_t expected = 1;
  for (int64_t d = dims - 1; d >= 0; --d) {
    if (sizes[d] == 0) return true;
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

int64_t View::row_stride() const {
  const int64_t length = sizes[dims - 1];
  if (length != 1 && strides[dims - 1] != 1) return 0;
  int64_t stride = 0, expected = 0;
  for (int64_t d = dims - 2; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (stride == 0) {
      stride = strides[d];
      if (stride < length) return 0;
    } else if (strides[d] != expected) {
      return 0;
    }
    expected = strides[d] * sizes[d];
  }
  return stride == 0 ? length : stride;
}

View in_order(const Argument& a) {
  View view;
  view.data = a.data;
  view.dims = a.dims;
  for (int64_t d = 0; d < a.dims; ++d) {
    view.sizes[d] = a.sizes[d];
    view.strides[d] = a.strides[d];
  }
  return view;
}

View channels_last(const Argument& a) {
  constexpr int kOrder[4] = {0, 2, 3, 1};
  View view;
  view.data = a.data;
  view.dims = 4;
  for (int d = 0; d < 4; ++d) {
    view.sizes[d] = a.sizes[kOrder[d]];
    view.strides[d] = a.strides[kOrder[d]];
  }
  return view;
}

namespace {

// Copies one plane [rows][columns] in tiles, so that either side may be the strided one.
template <class T>
void copy_plane(const T* from, int64_t rows, int64_t columns, int64_t row_stride,
                int64_t column_stride, T* to) {
  constexpr int64_t kTile = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kTile) {
    const int64_t r1 = std::min(rows, r0 + kTile);
    for (int64_t c0 = 0; c0 < columns; c0 += kTile) {
      const int64_t c1 = std::min(columns, c0 + kTile);
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t c = c0; c < c1; ++c) {
          to[r * columns + c] = from[r * row_stride + c * column_stride];
        }
      }
    }
  }
}

template <class T>
void copy_dense(const View& view, T* to, Parallel& parallel) {
  const int64_t last = view.dims - 1;
  const int64_t columns = view.sizes[last], column_stride = view.strides[last];
  const int64_t rows = last > 0 ? view.sizes[last - 1] : 1;
  const int64_t row_stride = last > 0 ? view.strides[last - 1] : 0;
  int64_t planes = 1;
  for (int64_t d = 0; d + 2 < view.dims; ++d) planes *= view.sizes[d];
  struct Context {
    const View& view;
    T* to;
    int64_t rows, columns, row_stride, column_stride;
  } context{view, to, rows, columns, row_stride, column_stride};
  const auto body = [](void* p, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(p);
    for (int64_t plane = begin; plane < end; ++plane) {
      int64_t offset = 0, rest = plane;
      for (int64_t d = c.view.dims - 3; d >= 0; --d) {
        offset += rest % c.view.sizes[d] * c.view.strides[d];
        rest /= c.view.sizes[d];
      }
      copy_plane(static_cast<const T*>(c.view.data) + offset, c.rows, c.columns, c.row_stride,
                 c.column_stride, c.to + plane * c.rows * c.columns);
    }
  };
  if (planes * rows * columns < 16 * 1024) {
    body(&context, 0, planes);
  } else {
    parallel.run(planes, body, &context);
  }
}

}  // namespace

const void* dense(const View& view, DType dtype, GrowingScratch& scratch, Parallel& parallel) {
  if (view.dense()) return view.data;
  int64_t count = 1;
  for (int64_t d = 0; d < view.dims; ++d) count *= view.sizes[d];
  if (dtype == DType::kFloat32) {
    auto* copy = static_cast<float*>(scratch.get(static_cast<size_t>(count) * sizeof(float)));
    copy_dense(view, copy, parallel);
    return copy;
  }
  auto* copy = static_cast<int8_t*>(scratch.get(static_cast<size_t>(count)));
  copy_dense(view, copy, parallel);
  return copy;
}

AtenTensorHandle new_tensor(int64_t dims, const int64_t* sizes, const int64_t* strides,
                            DType dtype) {
  AtenTensorHandle result = nullptr;
  check(aoti_torch_empty_strided(
            dims, sizes, strides,
            dtype == DType::kInt8 ? aoti_torch_dtype_int8() : aoti_torch_dtype_float32(),
            aoti_torch_device_type_cpu(), 0, &result),
        "empty_strided");
  return result;
}

// The stable ABI cannot ask a tensor for requires_grad; but autograd refuses to resize such a
// tensor, and resizing to the size it has does nothing to any other.
void refuse_grad(const Argument& a) {
  if (!a.is_float() || !aoti_torch_grad_mode_is_enabled()) return;
  AtenTensorHandle alias = nullptr;
  check(aoti_torch_new_tensor_handle(a.handle(), &alias), "new_tensor_handle");
  StableIValue stack[3] = {torch::stable::detail::from(alias),
                           torch::stable::detail::from(torch::headeronly::IntHeaderOnlyArrayRef(
                               a.sizes, static_cast<size_t>(a.dims))),
                           torch::stable::detail::from(std::nullopt)};
  if (torch_call_dispatcher("aten::resize_", "", stack, TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error(
        std::string(a.name) +
        ": found a tensor that requires grad, accepted: one that does not, since the integer "
        "kernels have no backward pass; call under torch.no_grad() or torch.inference_mode(), or "
        "pass " +
        a.name + ".detach()");
  }
  aoti_torch_delete_tensor_object(to<AtenTensorHandle>(stack[0]));
}

}  // namespace defakeq::torch_tensors

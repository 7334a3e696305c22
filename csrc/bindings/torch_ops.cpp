// The torch ops of single operators.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "bindings/torch_tensors.h"
#include "defakeq/defakeq.h"
#include "defakeq/layer_shape.h"

namespace {

using namespace defakeq;
using namespace defakeq::torch_tensors;
using torch::stable::detail::to;

thread_local GrowingScratch t_scratch, t_x, t_residual, t_half;

AtenTensorHandle optional_tensor(StableIValue value) {
  return to<std::optional<AtenTensorHandle>>(value).value_or(nullptr);
}

LayerShape open_packed(Argument& packed, LayerKind kind) {
  packed.open("packed");
  if (packed.dtype != aoti_torch_dtype_uint8() || packed.dims != 1 ||
      (packed.sizes[0] > 1 && packed.strides[0] != 1)) {
    refuse("packed", dtype_name(packed.dtype) + packed.shape(),
           "a contiguous uint8 tensor made by pack_layer");
  }
  const LayerShape layer = layer_shape(packed.data, static_cast<size_t>(packed.sizes[0]));
  if (layer.kind != kind) {
    const bool conv = kind == LayerKind::kConv2d;
    refuse("packed", conv ? "a linear layer" : "a conv2d layer",
           conv ? "a conv2d layer" : "a linear layer");
  }
  return layer;
}

void check_output(const LayerShape& layer, const char* name, int64_t channels, bool out_int8) {
  if (channels != layer.out_channels) {
    refuse(name, std::to_string(channels), std::to_string(layer.out_channels));
  }
  const bool is_int8 = layer.out_dtype == DType::kInt8;
  if (out_int8 != is_int8) {
    refuse("out_int8", out_int8 ? "True" : "False", is_int8 ? "True" : "False");
  }
}

// The residual and the half-precision inputs, in `order`.
struct Extras {
  Argument residual, half_input;
  float residual_scale;
  int32_t residual_zero_point;

  Extras(StableIValue* stack, int at)
      : residual(optional_tensor(stack[at])),
        half_input(optional_tensor(stack[at + 3])),
        residual_scale(static_cast<float>(to<double>(stack[at + 1]))),
        residual_zero_point(0) {
    const auto zero_point = to<int64_t>(stack[at + 2]);
    residual_zero_point = static_cast<int32_t>(zero_point);
    wide_zero_point_ = zero_point != residual_zero_point;
  }

  void fill(OpArgs& args, View (*order)(const Argument&), int64_t dims, const int64_t* out_sizes,
            const int64_t* half_sizes, Parallel& parallel) {
    if (wide_zero_point_) {
      refuse("residual_zero_point", "an integer of 64 bits", "an integer of 32 bits");
    }
    if (residual) {
      expect(residual, "residual", dims, out_sizes);
      args.residual_dtype = residual.value_type();
      refuse_grad(residual);
      args.residual = dense(order(residual), args.residual_dtype, t_residual, parallel);
      args.residual_quantization.scale = residual_scale;
      args.residual_quantization.zero_point = residual_zero_point;
    }
    if (half_input) {
      expect(half_input, "half_input", dims, half_sizes);
      if (!half_input.is_float()) refuse("half_input", dtype_name(half_input.dtype), "float32");
      refuse_grad(half_input);
      args.half_input =
          static_cast<const float*>(dense(order(half_input), DType::kFloat32, t_half, parallel));
    }
  }

 private:
  static void expect(Argument& a, const char* name, int64_t dims, const int64_t* sizes) {
    a.open(name);
    bool same = a.dims == dims;
    for (int64_t d = 0; same && d < dims; ++d) same = a.sizes[d] == sizes[d];
    if (!same) refuse(name, a.shape(), shape_text(sizes, dims));
  }

  bool wide_zero_point_ = false;
};

// linear(x, packed, out_features, out_int8, residual, residual_scale, residual_zero_point,
//        half_input)
void boxed_linear(StableIValue* stack, uint64_t, uint64_t) {
  Argument x(to<AtenTensorHandle>(stack[0]));
  Argument packed(to<AtenTensorHandle>(stack[1]));
  const auto out_features = to<int64_t>(stack[2]);
  const bool out_int8 = to<bool>(stack[3]);
  Extras extras(stack, 4);

  const LayerShape layer = open_packed(packed, LayerKind::kLinear);
  check_output(layer, "out_features", out_features, out_int8);
  x.open("x");
  OpArgs args;
  args.blob = packed.data;
  args.blob_bytes = static_cast<size_t>(packed.sizes[0]);
  args.x_dtype = x.value_type();
  if (x.dims < 1 || x.sizes[x.dims - 1] != layer.in_channels) {
    refuse("x", x.shape(), "[..., " + std::to_string(layer.in_channels) + "]");
  }
  refuse_grad(x);

  TorchParallel parallel;
  int64_t out_sizes[kMaxDims], half_sizes[kMaxDims], out_strides[kMaxDims];
  int64_t rows = 1, stride = layer.out_channels;
  out_sizes[x.dims - 1] = layer.out_channels;
  half_sizes[x.dims - 1] = layer.half_inputs;
  out_strides[x.dims - 1] = 1;
  for (int64_t d = x.dims - 2; d >= 0; --d) {
    rows *= x.sizes[d];
    out_sizes[d] = half_sizes[d] = x.sizes[d];
    out_strides[d] = stride;
    stride *= std::max<int64_t>(x.sizes[d], 1);
  }
  extras.fill(args, in_order, x.dims, out_sizes, half_sizes, parallel);
  const View view = in_order(x);
  int64_t x_stride = view.row_stride();
  if (x_stride == 0) {
    args.x = dense(view, args.x_dtype, t_x, parallel);
    x_stride = layer.in_channels;
  } else {
    args.x = view.data;
  }
  torch::stable::Tensor out(new_tensor(x.dims, out_sizes, out_strides, layer.out_dtype));
  check(torch_get_mutable_data_ptr(out.get(), &args.out), "get_mutable_data_ptr");
  linear(args, rows, x_stride, parallel, t_scratch);
  stack[0] = torch::stable::detail::from(out);
}

// The list of a convolution's kernel, stride, padding and dilation; the list is owned. One list,
// since torch takes about 0.4 us to bring each through.
class Window {
 public:
  explicit Window(StableIValue value) : list_(to<StableListHandle>(value)) {}
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  ~Window() { torch_delete_list(list_); }

  void expect(const LayerShape& layer) const {
    size_t size = 0;
    check(torch_list_size(list_, &size), "list_size");
    if (size != kSize) {
      refuse("window", std::to_string(size) + " integers",
             "8: kernel, stride, padding and dilation, two integers each");
    }
    int64_t found[kSize];
    for (size_t i = 0; i < kSize; ++i) {
      StableIValue item;
      check(torch_list_get_item(list_, i, &item), "list_get_item");
      found[i] = to<int64_t>(item);
    }
    expect("kernel", found, layer.kernel);
    expect("stride", found + 2, layer.stride);
    expect("padding", found + 4, layer.padding);
    expect("dilation", found + 6, layer.dilation);
  }

 private:
  static constexpr size_t kSize = 8;

  static void expect(const char* name, const int64_t* found, const int32_t (&layer)[2]) {
    if (found[0] == layer[0] && found[1] == layer[1]) return;
    const int64_t accepted[2] = {layer[0], layer[1]};
    refuse(name, shape_text(found, 2), shape_text(accepted, 2));
  }

  StableListHandle list_;
};

// conv2d(x, packed, out_channels, window, out_int8, residual, residual_scale, residual_zero_point,
//        half_input)
void boxed_conv2d(StableIValue* stack, uint64_t, uint64_t) {
  Argument x(to<AtenTensorHandle>(stack[0]));
  Argument packed(to<AtenTensorHandle>(stack[1]));
  const auto out_channels = to<int64_t>(stack[2]);
  const Window window(stack[3]);
  const bool out_int8 = to<bool>(stack[4]);
  Extras extras(stack, 5);

  const LayerShape layer = open_packed(packed, LayerKind::kConv2d);
  check_output(layer, "out_channels", out_channels, out_int8);
  window.expect(layer);
  x.open("x");
  OpArgs args;
  args.blob = packed.data;
  args.blob_bytes = static_cast<size_t>(packed.sizes[0]);
  args.x_dtype = x.value_type();
  if (x.dims != 4 || x.sizes[1] != layer.in_channels) {
    refuse("x", x.shape(), "[n, " + std::to_string(layer.in_channels) + ", h, w]");
  }
  refuse_grad(x);
  int64_t sizes[4] = {x.sizes[0], layer.out_channels, 0, 0};
  for (int d = 0; d < 2; ++d) {
    sizes[2 + d] = conv_out_size(x.sizes[2 + d], layer.kernel[d], layer.stride[d], layer.padding[d],
                                 layer.dilation[d]);
    if (sizes[2 + d] < 1) refuse("x", x.shape(), "an image that the kernel fits into");
  }
  const int64_t half_sizes[4] = {x.sizes[0], layer.half_inputs, x.sizes[2], x.sizes[3]};
  const int64_t out_strides[4] = {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};

  TorchParallel parallel;
  extras.fill(args, channels_last, 4, sizes, half_sizes, parallel);
  args.x = dense(channels_last(x), args.x_dtype, t_x, parallel);
  torch::stable::Tensor out(new_tensor(4, sizes, out_strides, layer.out_dtype));
  check(torch_get_mutable_data_ptr(out.get(), &args.out), "get_mutable_data_ptr");
  conv2d(args, x.sizes[0], x.sizes[2], x.sizes[3], parallel, t_scratch);
  stack[0] = torch::stable::detail::from(out);
}

Quantization quantization(double scale, int64_t zero_point, int64_t bits) {
  Quantization q;
  q.scale = static_cast<float>(scale);
  if (!(std::isfinite(q.scale) && q.scale > 0.0f)) {
    refuse("scale", std::to_string(scale), "a finite positive number");
  }
  if (bits < 4 || bits > 8) refuse("bits", std::to_string(bits), "4 to 8");
  const int64_t half = int64_t{1} << (bits - 1);
  if (zero_point < -half || zero_point >= half) {
    refuse("zero_point", std::to_string(zero_point),
           std::to_string(-half) + " to " + std::to_string(half - 1));
  }
  q.zero_point = static_cast<int32_t>(zero_point);
  q.bits = static_cast<int32_t>(bits);
  return q;
}

// Element-wise ops keep the strides of contiguous and channels_last tensors; others come out
// contiguous. fn(values, count, out).
template <class Fn>
StableIValue elementwise(const Argument& x, DType in, DType out_dtype, Fn&& fn) {
  TorchParallel parallel;
  const View view = in_order(x);
  const bool keep = view.dense() || (x.dims == 4 && channels_last(x).dense());
  int64_t strides[kMaxDims], count = 1;
  for (int64_t d = x.dims - 1; d >= 0; --d) {
    strides[d] = keep ? x.strides[d] : count;
    count *= std::max<int64_t>(x.sizes[d], 1);
  }
  for (int64_t d = 0; d < x.dims; ++d) {
    if (x.sizes[d] == 0) count = 0;
  }
  torch::stable::Tensor out(new_tensor(x.dims, x.sizes, strides, out_dtype));
  if (count > 0) {
    const void* values = keep ? x.data : dense(view, in, t_x, parallel);
    void* to = nullptr;
    check(torch_get_mutable_data_ptr(out.get(), &to), "get_mutable_data_ptr");
    struct Context {
      Fn& fn;
      const void* values;
      void* to;
    } context{fn, values, to};
    const auto body = [](void* p, int64_t begin, int64_t end) {
      const Context& c = *static_cast<Context*>(p);
      c.fn(c.values, begin, end, c.to);
    };
    if (count < 64 * 1024) {
      body(&context, 0, count);
    } else {
      parallel.run(count, body, &context);
    }
  }
  return torch::stable::detail::from(out);
}

// quantize(x, scale, zero_point, bits)
void boxed_quantize(StableIValue* stack, uint64_t, uint64_t) {
  Argument x(to<AtenTensorHandle>(stack[0]));
  const Quantization q =
      quantization(to<double>(stack[1]), to<int64_t>(stack[2]), to<int64_t>(stack[3]));
  x.open("x");
  if (!x.is_float()) refuse("x", dtype_name(x.dtype), "float32");
  refuse_grad(x);
  stack[0] = elementwise(x, DType::kFloat32, DType::kInt8,
                         [&](const void* from, int64_t begin, int64_t end, void* to) {
                           quantize(static_cast<const float*>(from) + begin, end - begin, q,
                                    static_cast<int8_t*>(to) + begin);
                         });
}

// dequantize(q, scale, zero_point)
void boxed_dequantize(StableIValue* stack, uint64_t, uint64_t) {
  Argument x(to<AtenTensorHandle>(stack[0]));
  const Quantization q = quantization(to<double>(stack[1]), to<int64_t>(stack[2]), 8);
  x.open("q");
  if (x.dtype != aoti_torch_dtype_int8()) refuse("q", dtype_name(x.dtype), "int8");
  stack[0] = elementwise(x, DType::kInt8, DType::kFloat32,
                         [&](const void* from, int64_t begin, int64_t end, void* to) {
                           dequantize(static_cast<const int8_t*>(from) + begin, end - begin, q,
                                      static_cast<float*>(to) + begin);
                         });
}

}  // namespace

STABLE_TORCH_LIBRARY(defakeq, m) {
  m.def(
      "linear(Tensor x, Tensor packed, int out_features, bool out_int8, Tensor? residual=None, "
      "float residual_scale=0., int residual_zero_point=0, Tensor? half_input=None) -> Tensor");
  m.def(
      "conv2d(Tensor x, Tensor packed, int out_channels, int[] window, bool out_int8, Tensor? "
      "residual=None, float residual_scale=0., int "
      "residual_zero_point=0, Tensor? half_input=None) -> Tensor");
  m.def("quantize(Tensor x, float scale, int zero_point, int bits) -> Tensor");
  m.def("dequantize(Tensor q, float scale, int zero_point) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(defakeq, CPU, m) {
  m.impl("linear", &boxed_linear);
  m.impl("conv2d", &boxed_conv2d);
  m.impl("quantize", &boxed_quantize);
  m.impl("dequantize", &boxed_dequantize);
}

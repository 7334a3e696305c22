// The Python module: numpy arrays in and out, no torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/python_arrays.h"
#include "bindings/python_bench.h"
#include "bindings/python_layer.h"
#include "bindings/python_program.h"
#include "defakeq/defakeq.h"
#include "defakeq/dfq_file.h"
#include "defakeq/layer_shape.h"
#include "defakeq/thread_pool.h"

namespace py = pybind11;

namespace {

using namespace defakeq;
using namespace defakeq::python;

// The pool of the calls that come from Python without torch.
class Threads {
 public:
  static std::shared_ptr<ThreadPool> get() {
    const std::lock_guard<std::mutex> lock(mutex());
    if (!pool()) pool() = std::make_shared<ThreadPool>(1);
    return pool();
  }
  static void set(int count) {
    auto next = std::make_shared<ThreadPool>(count);
    const std::lock_guard<std::mutex> lock(mutex());
    pool() = std::move(next);
  }

 private:
  // Never destroyed: threads may outlive static destructors.
  static std::mutex& mutex() {
    static auto* value = new std::mutex;
    return *value;
  }
  static std::shared_ptr<ThreadPool>& pool() {
    static auto* value = new std::shared_ptr<ThreadPool>;
    return *value;
  }
};

thread_local GrowingScratch t_scratch;

DType dtype_of(const py::array& array, const char* name) {
  if (py::dtype::of<float>().equal(array.dtype())) return DType::kFloat32;
  if (py::dtype::of<int8_t>().equal(array.dtype())) return DType::kInt8;
  refuse(name, std::string(py::str(array.dtype())), "float32 or int8");
}

py::array contiguous(const py::array& array) {
  py::array result = py::array::ensure(array, py::array::c_style);
  if (!result) throw py::error_already_set();
  return result;
}

void expect_shape(const char* name, const py::array& array, const std::vector<py::ssize_t>& shape) {
  const std::vector<py::ssize_t> found(array.shape(), array.shape() + array.ndim());
  if (found != shape) refuse(name, shape_text(found), shape_text(shape));
}

py::array call(LayerKind kind, const py::array& packed, const py::array& x,
               const std::optional<py::array>& residual, double residual_scale,
               int32_t residual_zero_point, const std::optional<py::array>& half_input) {
  const Blob blob = blob_of(packed);
  const LayerShape layer = layer_shape(blob.data, blob.bytes);
  if (layer.kind != kind) {
    refuse("packed", std::string("a ") + kKinds[static_cast<int>(layer.kind)] + " layer",
           std::string("a ") + kKinds[static_cast<int>(kind)] + " layer");
  }
  const bool conv = kind == LayerKind::kConv2d;
  OpArgs args;
  args.blob = blob.data;
  args.blob_bytes = blob.bytes;
  args.x_dtype = dtype_of(x, "x");
  const std::string expected = conv ? "[n, h, w, " + std::to_string(layer.in_channels) + "]"
                                    : "[..., " + std::to_string(layer.in_channels) + "]";
  if ((conv ? x.ndim() != 4 : x.ndim() < 1) || x.shape(x.ndim() - 1) != layer.in_channels) {
    refuse("x", shape_text(x), expected);
  }
  const py::array input = contiguous(x);
  args.x = input.data();
  std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
  std::vector<py::ssize_t> half_shape = shape;
  half_shape.back() = layer.half_inputs;
  shape.back() = layer.out_channels;
  if (conv) {
    for (int d = 0; d < 2; ++d) {
      const int64_t size = conv_out_size(x.shape(1 + d), layer.kernel[d], layer.stride[d],
                                         layer.padding[d], layer.dilation[d]);
      if (size < 1) refuse("x", shape_text(x), "an image that the kernel fits into");
      shape[1 + static_cast<size_t>(d)] = size;
    }
  }
  py::array residual_data, half_data;
  if (residual) {
    args.residual_dtype = dtype_of(*residual, "residual");
    expect_shape("residual", *residual, shape);
    residual_data = contiguous(*residual);
    args.residual = residual_data.data();
    args.residual_quantization.scale = static_cast<float>(residual_scale);
    args.residual_quantization.zero_point = residual_zero_point;
  }
  if (half_input) {
    if (dtype_of(*half_input, "half_input") != DType::kFloat32) {
      refuse("half_input", "int8", "float32");
    }
    expect_shape("half_input", *half_input, half_shape);
    half_data = contiguous(*half_input);
    args.half_input = static_cast<const float*>(half_data.data());
  }
  py::array out(layer.out_dtype == DType::kInt8 ? py::dtype::of<int8_t>() : py::dtype::of<float>(),
                shape);
  args.out = out.mutable_data();
  const std::shared_ptr<ThreadPool> pool = Threads::get();
  {
    const py::gil_scoped_release release;
    if (conv) {
      defakeq::conv2d(args, input.shape(0), input.shape(1), input.shape(2), *pool, t_scratch);
    } else {
      int64_t rows = 1;
      for (py::ssize_t d = 0; d + 1 < input.ndim(); ++d) rows *= input.shape(d);
      defakeq::linear(args, rows, layer.in_channels, *pool, t_scratch);
    }
  }
  return out;
}

py::dict cpu_info_dict() {
  const CpuInfo i = defakeq::cpu_info();
  const auto names = [](const std::vector<std::string>& values) {
    py::list list;
    for (const std::string& value : values) list.append(value);
    return list;
  };
  py::dict isa;
  isa["built"] = names(i.built);
  isa["supported"] = names(i.supported);
  isa["allowed"] = names(i.allowed);
  py::dict d;
  d["cpu"] = i.cpu;
  d["isa"] = isa;
  d["selected"] = i.selected;
  d["threads"] = i.threads;
  return d;
}

constexpr const char* kTensorTypes[] = {"bool",  "uint8",  "int8",    "int16", "uint16", "float16",
                                        "int32", "uint32", "float32", "int64", "uint64", "float64"};

py::dict describe_file(const DfqFile& file) {
  py::dict tensors;
  for (const auto& [name, tensor] : file.tensors) {
    py::dict t;
    t["dtype"] = kTensorTypes[static_cast<int>(tensor.dtype)];
    t["shape"] = py::tuple(py::cast(tensor.shape));
    t["nbytes"] = tensor.nbytes;
    tensors[py::str(name)] = t;
  }
  py::list layers;
  for (const DfqLayer& layer : file.layers) {
    py::list segments;
    for (const SegmentSpec& segment : layer.spec.segments) {
      segments.append(py::make_tuple(segment.bits, segment.count));
    }
    py::dict l;
    l["name"] = layer.name;
    l["kind"] = kKinds[static_cast<int>(layer.spec.kind)];
    l["out_channels"] = layer.spec.out_channels;
    l["in_channels"] = layer.spec.in_channels;
    l["kernel_size"] = pair_of(layer.spec.kernel);
    l["groups"] = layer.spec.groups;
    l["segments"] = segments;
    l["half_inputs"] = layer.spec.half_in_count;
    layers.append(l);
  }
  py::dict d;
  d["metadata"] = py::cast(file.metadata);
  d["tensors"] = tensors;
  d["layers"] = layers;
  return d;
}

py::dict parse_bytes(const py::bytes& data) {
  const std::string_view view = data;
  const py::array copy = aligned_bytes(view.size());
  std::memcpy(const_cast<void*>(copy.data()), view.data(), view.size());
  return describe_file(parse_dfq(copy.data(), view.size()));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The native part of defakeq_kernels, without torch.";
  m.def("version", [] { return std::string(defakeq::version()); }, "Version of the library.");
  m.def("cpu_info", &cpu_info_dict, "The processor and the instruction-set tiers.");
  m.def(
      "set_isa",
      [](const std::optional<std::string>& name) {
        defakeq::set_isa(name ? name->c_str() : nullptr);
      },
      py::arg("name"), "Choose the instruction-set tier by name; None for the default.");
  m.def("set_num_threads", &Threads::set, py::arg("count"));
  m.def("get_num_threads", [] { return Threads::get()->threads(); });
  m.def(
      "read_dfq", [](const std::string& path) { return describe_file(read_dfq(path)); },
      py::arg("path"), "Check a .dfq file and describe its tensors and layers.");
  m.def("parse_dfq", &parse_bytes, py::arg("data"), "The same for the bytes of a file.");
  m.def(
      "linear",
      [](const py::array& packed, const py::array& x, const std::optional<py::array>& residual,
         double residual_scale, int32_t residual_zero_point,
         const std::optional<py::array>& half_input) {
        return call(LayerKind::kLinear, packed, x, residual, residual_scale, residual_zero_point,
                    half_input);
      },
      py::arg("packed"), py::arg("x"), py::arg("residual") = py::none(),
      py::arg("residual_scale") = 0.0, py::arg("residual_zero_point") = 0,
      py::arg("half_input") = py::none(), "x [..., in] float32 or int8 -> [..., out].");
  m.def(
      "conv2d",
      [](const py::array& packed, const py::array& x, const std::optional<py::array>& residual,
         double residual_scale, int32_t residual_zero_point,
         const std::optional<py::array>& half_input) {
        return call(LayerKind::kConv2d, packed, x, residual, residual_scale, residual_zero_point,
                    half_input);
      },
      py::arg("packed"), py::arg("x"), py::arg("residual") = py::none(),
      py::arg("residual_scale") = 0.0, py::arg("residual_zero_point") = 0,
      py::arg("half_input") = py::none(), "x [n, h, w, in] float32 or int8 -> [n, h', w', out].");
  bind_layers(m);
  bind_bench(m);
  bind_program(m);
}

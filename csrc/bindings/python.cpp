// The Python module: numpy arrays in and out, no torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bindings/python_bench.h"
#include "bindings/python_program.h"
#include "defakeq/defakeq.h"
#include "defakeq/dfq_file.h"
#include "defakeq/layer_shape.h"
#include "defakeq/thread_pool.h"

namespace py = pybind11;

namespace {

using namespace defakeq;

constexpr const char* kActivations[] = {"none", "relu", "relu6",  "hardswish",
                                        "silu", "gelu", "sigmoid"};
constexpr const char* kActModes[] = {"none", "static", "dynamic_tensor", "dynamic_row"};
constexpr const char* kDTypes[] = {"float32", "int8"};
constexpr const char* kKinds[] = {"linear", "conv2d"};

[[noreturn]] void refuse(const std::string& field, const std::string& found,
                         const std::string& accepted) {
  throw std::invalid_argument(field + ": found " + found + ", accepted: " + accepted);
}

std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(array.shape(d));
  }
  return text + "]";
}

std::string describe(const py::array& array) {
  return std::string(py::str(array.dtype())) + shape_text(array);
}

std::string type_name(py::handle value) {
  return std::string(py::str(py::type::handle_of(value).attr("__name__")));
}

template <class E, size_t N>
E parse_name(const std::string& field, py::handle value, const char* const (&names)[N]) {
  std::string accepted;
  const std::string found =
      py::isinstance<py::str>(value) ? std::string(py::str(value)) : type_name(value);
  for (size_t i = 0; i < N; ++i) {
    if (found == names[i]) return static_cast<E>(i);
    accepted += (i == 0 ? "'" : ", '") + std::string(names[i]) + "'";
  }
  refuse(field, "'" + found + "'", accepted);
}

// Memory aligned as the runtime layout needs it, owned by the array.
py::array aligned_bytes(size_t bytes) {
  void* data = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
  if (data == nullptr) throw std::bad_alloc();
  const py::capsule owner(data, [](void* p) { std::free(p); });
  return py::array(py::dtype::of<uint8_t>(), {static_cast<py::ssize_t>(bytes)}, {1}, data, owner);
}

// Reads a spec's fields by name and keeps what it borrows alive.
class SpecReader {
 public:
  explicit SpecReader(const py::dict& spec) : spec_(spec) {}

  LayerSpec read() {
    LayerSpec s;
    s.kind = parse_name<LayerKind>("kind", get(spec_, "kind", ""), kKinds);
    read_geometry(s);
    taps_ = int64_t{s.kernel[0]} * s.kernel[1];
    if (const auto index = vector_of<int32_t>(spec_, "in_index", "")) {
      s.in_index = index->data;
      s.in_count = index->count;
    } else {
      s.in_count = s.in_channels / s.groups;
    }
    const int64_t stored = read_segments(s);
    if (const auto index = vector_of<int32_t>(spec_, "half_in_index", "")) {
      s.half_in_index = index->data;
      s.half_in_count = index->count;
      s.half_in_weight = array_of<uint16_t>(get(spec_, "half_in_weight", ""), "half_in_weight",
                                            {stored, taps_ * s.half_in_count});
    }
    const py::object bias = optional(spec_, "bias");
    if (!bias.is_none()) s.bias = array_of<float>(bias, "bias", {stored});
    const py::dict act = dictionary(spec_, "act");
    s.act_mode = parse_name<ActMode>("act.mode", get(act, "mode", "act."), kActModes);
    s.act = quantization(act, "act.");
    s.activation = parse_name<Activation>("activation", get(spec_, "activation", ""), kActivations);
    const py::dict out = dictionary(spec_, "out");
    s.out_dtype = parse_name<DType>("out.dtype", get(out, "dtype", "out."), kDTypes);
    s.out = quantization(out, "out.");
    return s;
  }

 private:
  template <class T>
  struct Vector {
    const T* data;
    int64_t count;
  };

  static py::object get(const py::dict& from, const char* name, const std::string& prefix) {
    if (!from.contains(name)) refuse(prefix + name, "nothing", "a value");
    return from[name];
  }

  static py::object optional(const py::dict& from, const char* name) {
    return from.contains(name) ? py::object(from[name]) : py::object(py::none());
  }

  static py::dict dictionary(const py::dict& from, const char* name) {
    const py::object value = get(from, name, "");
    if (!py::isinstance<py::dict>(value)) refuse(name, type_name(value), "a dict");
    return value.cast<py::dict>();
  }

  static int64_t integer(py::handle value, const std::string& field) {
    if (!py::isinstance<py::int_>(value) && !py::hasattr(value, "__index__")) {
      refuse(field, type_name(value), "an integer");
    }
    try {
      return py::int_(py::reinterpret_borrow<py::object>(value)).cast<int64_t>();
    } catch (const py::cast_error&) {
      refuse(field, std::string(py::str(value)), "an integer of 64 bits");
    }
  }

  static int32_t integer32(py::handle value, const std::string& field) {
    const int64_t wide = integer(value, field);
    if (wide < INT32_MIN || wide > INT32_MAX) {
      refuse(field, std::to_string(wide), "an integer of 32 bits");
    }
    return static_cast<int32_t>(wide);
  }

  static Quantization quantization(const py::dict& from, const std::string& prefix) {
    Quantization q;
    const py::object scale = get(from, "scale", prefix);
    try {
      q.scale = static_cast<float>(py::float_(scale).cast<double>());
    } catch (const py::error_already_set&) {
      refuse(prefix + "scale", type_name(scale), "a number");
    }
    q.zero_point = integer32(get(from, "zero_point", prefix), prefix + "zero_point");
    q.bits = integer32(get(from, "bits", prefix), prefix + "bits");
    return q;
  }

  void pair(const char* name, int32_t (&out)[2]) {
    const py::object value = get(spec_, name, "");
    if (!py::isinstance<py::sequence>(value) || py::len(value) != 2) {
      refuse(name, std::string(py::str(value)), "two integers");
    }
    for (int d = 0; d < 2; ++d) out[d] = integer32(value[py::int_(d)], name);
  }

  void read_geometry(LayerSpec& s) {
    const py::object shape = get(spec_, "shape", "");
    const size_t rank = s.kind == LayerKind::kLinear ? 2 : 4;
    if (!py::isinstance<py::sequence>(shape) || py::len(shape) != rank) {
      refuse("shape", std::string(py::str(shape)), std::to_string(rank) + " integers");
    }
    int64_t sizes[4] = {0, 0, 1, 1};
    for (size_t d = 0; d < rank; ++d) {
      sizes[d] = integer(shape[py::int_(d)], "shape");
      if (sizes[d] < 1 || sizes[d] > (int64_t{1} << 24)) {
        refuse("shape", std::string(py::str(shape)), "sizes of 1 to 2^24");
      }
    }
    s.groups = integer32(get(spec_, "groups", ""), "groups");
    if (s.groups < 1 || s.groups > sizes[0]) {
      refuse("groups", std::to_string(s.groups), "1 to the number of outputs");
    }
    s.group_size = integer32(get(spec_, "group_size", ""), "group_size");
    if (s.group_size < 0) refuse("group_size", std::to_string(s.group_size), "0 or more");
    s.out_channels = sizes[0];
    s.in_channels = sizes[1] * s.groups;
    for (int d = 0; d < 2; ++d) s.kernel[d] = static_cast<int32_t>(sizes[2 + d]);
    pair("stride", s.stride);
    pair("padding", s.padding);
    pair("dilation", s.dilation);
  }

  // Returns the number of stored outputs.
  int64_t read_segments(LayerSpec& s) {
    const py::object list = get(spec_, "segments", "");
    if (!py::isinstance<py::sequence>(list)) refuse("segments", type_name(list), "a list");
    const int64_t reduction = taps_ * s.in_count;
    const int64_t pieces =
        s.group_size == 0 ? 1 : taps_ * ((s.in_count + s.group_size - 1) / s.group_size);
    int64_t stored = 0;
    const size_t count = py::len(list);
    for (size_t i = 0; i < count; ++i) {
      const std::string prefix = "segments[" + std::to_string(i) + "].";
      const py::object item = list[py::int_(i)];
      if (!py::isinstance<py::dict>(item)) refuse(prefix, type_name(item), "a dict");
      const auto from = item.cast<py::dict>();
      SegmentSpec segment;
      segment.bits = integer32(get(from, "bits", prefix), prefix + "bits");
      if ((segment.bits < 1 || segment.bits > 8) && segment.bits != 16) {
        refuse(prefix + "bits", std::to_string(segment.bits), "1 to 8, or 16");
      }
      const auto index = vector_of<int32_t>(from, "out_index", prefix);
      if (!index) refuse(prefix + "out_index", "None", "an int32 array");
      segment.out_index = index->data;
      segment.count = index->count;
      const py::object codes = get(from, "codes", prefix);
      if (segment.bits == 16) {
        segment.halves = array_of<uint16_t>(codes, prefix + "codes", {segment.count, reduction});
      } else {
        segment.codes = array_of<uint8_t>(codes, prefix + "codes",
                                          {segment.count, (reduction * segment.bits + 7) / 8});
        segment.scale =
            array_of<float>(get(from, "scale", prefix), prefix + "scale", {segment.count, pieces});
        const py::object zero_point = optional(from, "zero_point");
        if (!zero_point.is_none()) {
          segment.zero_point =
              array_of<int32_t>(zero_point, prefix + "zero_point", {segment.count, pieces});
        }
      }
      stored += segment.count;
      s.segments.push_back(segment);
    }
    return stored;
  }

  template <class T>
  const T* keep(const py::object& value, const std::string& field, const std::string& accepted) {
    if (!py::isinstance<py::array>(value)) refuse(field, type_name(value), accepted);
    const auto array = value.cast<py::array>();
    if (!py::dtype::of<T>().equal(array.dtype())) refuse(field, describe(array), accepted);
    auto contiguous = py::array_t<T, py::array::c_style>::ensure(array);
    if (!contiguous) throw py::error_already_set();
    kept_.push_back(contiguous);
    return contiguous.data();
  }

  template <class T>
  std::optional<Vector<T>> vector_of(const py::dict& from, const char* name,
                                     const std::string& prefix) {
    const py::object value = optional(from, name);
    if (value.is_none()) return std::nullopt;
    const std::string accepted = std::string(py::str(py::dtype::of<T>())) + "[count]";
    const T* data = keep<T>(value, prefix + name, accepted);
    const auto array = value.cast<py::array>();
    if (array.ndim() != 1) refuse(prefix + name, describe(array), accepted);
    return Vector<T>{data, array.shape(0)};
  }

  template <class T>
  const T* array_of(const py::object& value, const std::string& field,
                    const std::vector<int64_t>& shape) {
    std::string accepted = std::string(py::str(py::dtype::of<T>())) + "[";
    for (size_t d = 0; d < shape.size(); ++d) {
      accepted += (d == 0 ? "" : ", ") + std::to_string(shape[d]);
    }
    accepted += "]";
    const T* data = keep<T>(value, field, accepted);
    const auto array = value.cast<py::array>();
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
    for (size_t d = 0; same && d < shape.size(); ++d) {
      same = array.shape(static_cast<py::ssize_t>(d)) == shape[d];
    }
    if (!same) refuse(field, describe(array), accepted);
    return data;
  }

  const py::dict& spec_;
  int64_t taps_ = 1;
  std::vector<py::object> kept_;
};

py::array pack(const py::dict& spec) {
  SpecReader reader(spec);
  const LayerSpec layer = reader.read();
  const size_t bytes = packed_layer_bytes(layer);
  py::array blob = aligned_bytes(bytes);
  defakeq::pack_layer(layer, blob.mutable_data(), bytes);
  return blob;
}

struct Blob {
  const void* data;
  size_t bytes;
};

Blob blob_of(const py::array& packed) {
  if (!py::dtype::of<uint8_t>().equal(packed.dtype()) || packed.ndim() != 1 ||
      (packed.size() > 1 && packed.strides(0) != 1)) {
    refuse("packed", describe(packed), "a contiguous uint8 array made by pack_layer");
  }
  return {packed.data(), static_cast<size_t>(packed.size())};
}

py::dict quantization_dict(const Quantization& q) {
  py::dict d;
  d["scale"] = q.scale;
  d["zero_point"] = q.zero_point;
  d["bits"] = q.bits;
  return d;
}

py::tuple pair_of(const int32_t (&values)[2]) { return py::make_tuple(values[0], values[1]); }

py::dict info(const py::array& packed) {
  const Blob blob = blob_of(packed);
  const LayerInfo i = layer_info(blob.data, blob.bytes);
  py::dict d;
  d["kind"] = kKinds[static_cast<int>(i.kind)];
  d["out_channels"] = i.out_channels;
  d["in_channels"] = i.in_channels;
  d["stored_outputs"] = i.stored_outputs;
  d["stored_inputs"] = i.stored_inputs;
  d["half_inputs"] = i.half_inputs;
  d["strategy"] = i.strategy;
  d["reason"] = i.reason;
  d["kernel"] = i.strategy + "__" + selected_isa();
  d["kernel_size"] = pair_of(i.kernel);
  d["stride"] = pair_of(i.stride);
  d["padding"] = pair_of(i.padding);
  d["dilation"] = pair_of(i.dilation);
  d["groups"] = i.groups;
  d["macs"] = i.macs_done_per_position;
  d["macs_skipped"] = i.macs_skipped_per_position;
  d["bytes"] = i.bytes;
  py::list segments;
  for (const SegmentInfo& segment : i.segments) {
    py::dict s;
    s["bits"] = segment.bits;
    s["outputs"] = segment.outputs;
    s["bytes"] = segment.bytes;
    segments.append(s);
  }
  d["segments"] = segments;
  py::dict act = quantization_dict(i.act);
  act["mode"] = kActModes[static_cast<int>(i.act_mode)];
  d["act"] = act;
  d["activation"] = kActivations[static_cast<int>(i.activation)];
  py::dict out = quantization_dict(i.out);
  out["dtype"] = kDTypes[static_cast<int>(i.out_dtype)];
  d["out"] = out;
  return d;
}

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

std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string text = "[";
  for (size_t d = 0; d < shape.size(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(shape[d]);
  }
  return text + "]";
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
  m.def("pack_layer", &pack, py::arg("spec"),
        "Build the runtime layout of a layer in the storage format: uint8[bytes].");
  m.def(
      "read_dfq", [](const std::string& path) { return describe_file(read_dfq(path)); },
      py::arg("path"), "Check a .dfq file and describe its tensors and layers.");
  m.def("parse_dfq", &parse_bytes, py::arg("data"), "The same for the bytes of a file.");
  m.def("layer_info", &info, py::arg("packed"), "Describe a runtime layout.");
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
  bind_bench(m);
  bind_program(m);
}

// Layers in the storage format, as dicts of numpy arrays, to runtime layouts.
#include "bindings/python_layer.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <vector>

#include "bindings/python_arrays.h"
#include "defakeq/cpu_info.h"
#include "defakeq/layer.h"

namespace py = pybind11;

namespace {

using namespace defakeq;
using namespace defakeq::python;

constexpr const char* kActivations[] = {"none", "relu", "relu6",  "hardswish",
                                        "silu", "gelu", "sigmoid"};
constexpr const char* kActModes[] = {"none", "static", "dynamic_tensor", "dynamic_row"};
constexpr const char* kDTypes[] = {"float32", "int8"};

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

py::dict quantization_dict(const Quantization& q) {
  py::dict d;
  d["scale"] = q.scale;
  d["zero_point"] = q.zero_point;
  d["bits"] = q.bits;
  return d;
}

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

}  // namespace

void bind_layers(py::module_& m) {
  m.def("pack_layer", &pack, py::arg("spec"),
        "Build the runtime layout of a layer in the storage format: uint8[bytes].");
  m.def("layer_info", &info, py::arg("packed"), "Describe a runtime layout.");
}

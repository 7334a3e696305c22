// numpy arrays of the bindings: how messages describe them, and runtime layouts in them.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace defakeq::python {

namespace py = pybind11;

inline constexpr const char* kKinds[] = {"linear", "conv2d"};

[[noreturn]] inline void refuse(const std::string& field, const std::string& found,
                                const std::string& accepted) {
  throw std::invalid_argument(field + ": found " + found + ", accepted: " + accepted);
}

inline std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(array.shape(d));
  }
  return text + "]";
}

inline std::string describe(const py::array& array) {
  return std::string(py::str(array.dtype())) + shape_text(array);
}

// A runtime layout.
struct Blob {
  const void* data;
  size_t bytes;
};

inline Blob blob_of(const py::array& packed) {
  if (!py::dtype::of<uint8_t>().equal(packed.dtype()) || packed.ndim() != 1 ||
      (packed.size() > 1 && packed.strides(0) != 1)) {
    refuse("packed", describe(packed), "a contiguous uint8 array made by pack_layer");
  }
  return {packed.data(), static_cast<size_t>(packed.size())};
}

inline std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string text = "[";
  for (size_t d = 0; d < shape.size(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(shape[d]);
  }
  return text + "]";
}

// Memory aligned as the runtime layout needs it, owned by the array.
inline py::array aligned_bytes(size_t bytes) {
  void* data = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
  if (data == nullptr) throw std::bad_alloc();
  const py::capsule owner(data, [](void* p) { std::free(p); });
  return py::array(py::dtype::of<uint8_t>(), {static_cast<py::ssize_t>(bytes)}, {1}, data, owner);
}

inline py::tuple pair_of(const int32_t (&values)[2]) {
  return py::make_tuple(values[0], values[1]);
}

}  // namespace defakeq::python

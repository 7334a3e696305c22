// The element types of a file's tensors, in the order of TensorType.
#pragma once

#include <cstdint>
#include <string>

#include "defakeq/dfq_file.h"
#include "runtime/fields.h"

namespace defakeq {

inline constexpr const char* kTensorTypeNames[] = {"BOOL", "U8",  "I8",  "I16", "U16", "F16",
                                                   "I32",  "U32", "F32", "I64", "U64", "F64"};
inline constexpr int64_t kTensorTypeBytes[] = {1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8};

inline std::vector<int64_t> tensor_shape(const std::string& field, const Json* json) {
  constexpr size_t kMaxRank = 8;
  std::vector<int64_t> shape;
  for (const Json& size : fields::list(field, json, 0, kMaxRank)) {
    shape.push_back(fields::integer(field, &size, 0, INT64_MAX));
  }
  return shape;
}

// The elements of a shape, or -1 for more than `most`.
inline int64_t element_count(const std::vector<int64_t>& shape, int64_t most) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (size == 0) return 0;
    count = count < 0 || size > most / count ? -1 : count * size;
  }
  return count <= most ? count : -1;
}

// For messages: "F32 with shape [2, 3]".
inline std::string shown(TensorType type, const std::vector<int64_t>& shape) {
  return std::string(kTensorTypeNames[static_cast<size_t>(type)]) + " with shape " +
         fields::shown(shape);
}
inline std::string shown(const TensorView& view) { return shown(view.dtype, view.shape); }

}  // namespace defakeq

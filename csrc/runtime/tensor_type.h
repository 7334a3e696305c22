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

// For messages: "F32 with shape [2, 3]".
inline std::string shown(TensorType type, const std::vector<int64_t>& shape) {
  return std::string(kTensorTypeNames[static_cast<size_t>(type)]) + " with shape " +
         fields::shown(shape);
}
inline std::string shown(const TensorView& view) { return shown(view.dtype, view.shape); }

}  // namespace defakeq

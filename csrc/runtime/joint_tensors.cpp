#include "runtime/joint_tensors.h"

#include <utility>

#include "runtime/fields.h"
#include "runtime/tensor_type.h"

namespace defakeq {

JointTensors::JointTensors(const DfqFile& file) {
  for (const char* array : {"scale", "zero_point", "bias"}) {
    const std::string name = std::string("*.") + array;
    const auto it = file.tensors.find(name);
    if (it == file.tensors.end()) continue;
    if (it->second.shape.size() != 1) fields::bad(name, shown(it->second), "one dimension");
    left_.emplace(array, it->second);
  }
}

TensorView JointTensors::take(const std::string& array, const std::vector<int64_t>& shape) {
  TensorView& left = left_.at(array);
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (size > left.shape[0] / count) {
      fields::bad("*." + array, std::to_string(left.shape[0]) + " values for what is left",
                  "at least " + fields::shown(shape));
    }
    count *= size;
  }
  TensorView part = left;
  part.shape = shape;
  part.nbytes = static_cast<size_t>(count * kTensorTypeBytes[static_cast<size_t>(left.dtype)]);
  left.shape[0] -= count;
  left.data += part.nbytes;
  left.nbytes -= part.nbytes;
  return part;
}

void JointTensors::require_all_taken() const {
  for (const auto& [array, left] : left_) {
    if (left.shape[0] != 0) {
      fields::bad("*." + array, std::to_string(left.shape[0]) + " values beyond the last layer's",
                  "as many as all layers have");
    }
  }
}

}  // namespace defakeq

// The tensors of a file that hold one array of every layer: `*.scale`, `*.zero_point`, `*.bias`.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "defakeq/dfq_file.h"

namespace defakeq {

// Hands them out part by part, in the order of the layers and their segments. Throws
// std::runtime_error naming the tensor that is too short, too long or of another shape.
class JointTensors {
 public:
  explicit JointTensors(const DfqFile& file);

  bool has(const std::string& array) const { return left_.count(array) != 0; }
  // The next elements of *.`array`, as many as `shape` has: sizes of tensors of the file.
  TensorView take(const std::string& array, const std::vector<int64_t>& shape);
  // Once every layer has its parts, nothing is left.
  void require_all_taken() const;

 private:
  std::map<std::string, TensorView> left_;  // by array
};

}  // namespace defakeq

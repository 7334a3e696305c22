#include "runtime/joint_tensors.h"

#include <limits>
#include <utility>

#include "runtime/fields.h"
#include "runtime/tensor_type.h"

namespace defakeq {

namespace {

constexpr size_t kMaxRank = 8;

// Takes the first elements of `left` that `shape` has.
TensorView take(const std::string& field, const Json& shape, TensorView* left) {
  TensorView part = *left;
  part.shape.clear();
  for (const Json& size : fields::list(field, &shape, 0, kMaxRank)) {
    part.shape.push_back(fields::integer(field, &size, 0, std::numeric_limits<int64_t>::max()));
  }
  const int64_t count = element_count(part.shape, left->shape[0]);
  if (count < 0) {
    fields::bad(field, fields::shown(part.shape),
                "at most the " + std::to_string(left->shape[0]) + " elements that are left");
  }
  part.nbytes = static_cast<size_t>(count * kTensorTypeBytes[static_cast<size_t>(left->dtype)]);
  left->shape[0] -= count;
  left->data += part.nbytes;
  return part;
}

}  // namespace

void split_joint_tensors(const Json& table, DfqFile* file) {
  for (const auto& [code, shapes] : fields::object("network.tensors", &table)) {
    const std::string field = "network.tensors." + code;
    const auto it = file->tensors.find("*." + code);
    if (it == file->tensors.end() || it->second.shape.size() != 1) {
      fields::bad("tensor " + shown_string("*." + code),
                  it == file->tensors.end() ? "nothing" : shown(it->second),
                  code + " with one dimension");
    }
    TensorView left = it->second;
    file->tensors.erase(it);
    for (const auto& [name, shape] : fields::object(field, &shapes)) {
      if (!file->tensors.emplace(name, take(field + "." + name, shape, &left)).second) {
        fields::bad(field + "." + name, "a name in use", "every tensor once");
      }
    }
    if (left.shape[0] != 0) {
      fields::bad(field, std::to_string(left.shape[0]) + " elements too few", "all of the tensor");
    }
  }
}

}  // namespace defakeq

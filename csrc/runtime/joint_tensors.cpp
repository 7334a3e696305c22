#include "runtime/joint_tensors.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <utility>

#include "pack/half.h"
#include "runtime/fields.h"
#include "runtime/tensor_type.h"

namespace defakeq {

namespace {

// Takes the first elements of `left` that `shape` has.
TensorView take(const std::string& field, const Json& shape, TensorView* left) {
  TensorView part = *left;
  part.shape = tensor_shape(field, &shape);
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

template <class Wide, class Narrow, class Widen>
void widen(TensorType type, Widen&& to_wide, TensorView* view, DfqFile* file) {
  const auto* narrow = reinterpret_cast<const Narrow*>(view->data);
  auto wide = std::make_shared<std::vector<Wide>>(view->nbytes / sizeof(Narrow));
  std::transform(narrow, narrow + wide->size(), wide->begin(), to_wide);
  view->dtype = type;
  view->data = reinterpret_cast<const uint8_t*>(wide->data());
  view->nbytes = wide->size() * sizeof(Wide);
  file->widened.push_back(std::move(wide));
}

constexpr const char* kHalves = "F32/F16";
constexpr const char* kShorts = "I32/I16";

// How the elements of a joint tensor are stored, of which its name tells.
TensorType stored_type(const std::string& code) {
  if (code == kHalves) return TensorType::kFloat16;
  if (code == kShorts) return TensorType::kInt16;
  std::string accepted = std::string(kHalves) + ", " + kShorts;
  for (size_t t = 0; t < std::size(kTensorTypeNames); ++t) {
    if (code == kTensorTypeNames[t]) return static_cast<TensorType>(t);
    accepted += std::string(", ") + kTensorTypeNames[t];
  }
  fields::bad("network.tensors", "the type " + shown_string(code), "one of " + accepted);
}

// Takes the joint tensor out of the file.
TensorView take_whole(const std::string& code, DfqFile* file) {
  const TensorType stored = stored_type(code);
  const auto it = file->tensors.find("*." + code);
  if (it == file->tensors.end() || it->second.shape.size() != 1 || it->second.dtype != stored) {
    fields::bad("tensor " + shown_string("*." + code),
                it == file->tensors.end() ? "nothing" : shown(it->second),
                std::string(kTensorTypeNames[static_cast<size_t>(stored)]) + " with one dimension");
  }
  TensorView whole = it->second;
  file->tensors.erase(it);
  if (code == kHalves) {
    widen<float, uint16_t>(TensorType::kFloat32, half_to_float, &whole, file);
  } else if (code == kShorts) {
    widen<int32_t, int16_t>(TensorType::kInt32, [](int16_t v) { return int32_t{v}; }, &whole, file);
  }
  return whole;
}

}  // namespace

void split_joint_tensors(const Json& table, DfqFile* file) {
  for (const auto& [code, shapes] : fields::object("network.tensors", &table)) {
    const std::string field = "network.tensors." + code;
    const Json::Object& parts = fields::object(field, &shapes);
    TensorView left = take_whole(code, file);
    for (const auto& [name, shape] : parts) {
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

#include "runtime/node_fields.h"

#include <algorithm>
#include <cmath>

#include "runtime/tensor_type.h"

namespace defakeq {

using fields::bad;
using fields::integer;
using fields::shown;

namespace {

constexpr int64_t kMaxInt32 = INT32_MAX;

constexpr const char* kOps[] = {
    "conv2d",      "linear", "squeeze_excite",      "lookup",    "convert",
    "unary",       "binary", "layer_norm",          "softmax",   "attention",
    "matmul",      "pool2d", "adaptive_avg_pool2d", "mean_rows", "reduce",
    "interpolate", "copy"};

}  // namespace

const char* op_name(Op op) { return kOps[static_cast<size_t>(op)]; }

bool same(const Quantization& a, const Quantization& b) {
  return a.scale == b.scale && a.zero_point == b.zero_point && a.bits == b.bits;
}

std::string shown(const Quantization& q) {
  return "int8 of scale " + std::to_string(q.scale) + ", zero point " +
         std::to_string(q.zero_point) + ", " + std::to_string(q.bits) + " bits";
}

int64_t reach(const Quantization& q) {
  const int64_t half = int64_t{1} << (q.bits - 1);
  return std::max<int64_t>(half - 1 - q.zero_point, half + q.zero_point);
}

const TensorView* find_tensor(const DfqFile& file, const std::string& field, const Json* json,
                              TensorType type, const std::string& accepted) {
  const auto it = file.tensors.find(fields::text(field, json));
  if (it == file.tensors.end()) bad(field, "no tensor " + shown(json), "the name of a tensor");
  if (it->second.dtype != type) bad(field, shown(it->second), accepted);
  return &it->second;
}

void require_finite(const std::string& field, const TensorView& view) {
  const auto* values = reinterpret_cast<const float*>(view.data);
  if (!std::all_of(values, values + view.nbytes / 4, [](float v) { return std::isfinite(v); })) {
    bad(field, "a value that is not finite", "finite values");
  }
}

NodeFields::NodeFields(const DfqFile& file, const std::vector<Value>& values, const Json& json,
                       size_t index)
    : file_(file), values_(values), json_(json), at_("nodes[" + std::to_string(index) + "]") {
  fields::object(at_, &json_);
  node_.name = fields::text(at_ + ".name", json_.find("name"));
  at_ = "node " + shown_string(node_.name);
  node_.op = fields::one_of<Op>(field("op"), json_.find("op"), kOps);
  at_ += std::string(" (") + op_name(node_.op) + ")";
  const auto last = static_cast<int64_t>(values_.size()) - 1;
  for (const Json& v : fields::list(field("in"), json_.find("in"), 1, kMaxInputs)) {
    node_.in.push_back(static_cast<int>(integer(field("in"), &v, -1, last)));
  }
  const Json& out = fields::list(field("out"), json_.find("out"), 1, 1)[0];
  node_.out = static_cast<int>(integer(field("out"), &out, 0, last));
  if (this->out().tensor != nullptr) {
    bad(field("out"), "a constant", "a value that is computed");
  }
}

int64_t NodeFields::integer_of(const char* key, int64_t low, int64_t high) const {
  return integer(field(key), find(key), low, high);
}

void NodeFields::expect_inputs(size_t least, size_t most) const {
  bool all = node_.in.size() <= most;
  for (size_t i = 0; i < least; ++i) all = all && has(i);
  if (!all) {
    bad(field("in"), shown(find("in")),
        std::to_string(least) + " values" +
            (most > least ? ", up to " + std::to_string(most) + " with optional ones" : ""));
  }
}

std::string NodeFields::described(const Value& v) {
  return (v.dtype == DType::kInt8 ? shown(v.quantization) : std::string("float32")) +
         " with shape " + fields::shown(v.shape);
}

void NodeFields::expect_dtype(const char* what, const Value& v, DType dtype) const {
  if (v.dtype != dtype) {
    bad(field(what), described(v),
        std::string("a value of type ") + kDTypeNames[static_cast<int>(dtype)]);
  }
}

void NodeFields::expect_quantization(const char* what, const Value& v,
                                     const Quantization& q) const {
  if (v.dtype != DType::kInt8 || !same(v.quantization, q)) {
    bad(field(what), described(v), shown(q));
  }
}

void NodeFields::expect_matrix(const char* what, const Value& v, int64_t rows,
                               int64_t channels) const {
  if (v.channels() != channels || v.rows() != rows) {
    bad(field(what), described(v),
        std::to_string(rows) + " rows of " + std::to_string(channels) + " channels");
  }
}

void NodeFields::expect_shape(const char* what, const Value& v,
                              const std::vector<int64_t>& shape) const {
  if (v.shape != shape) bad(field(what), described(v), "shape " + fields::shown(shape));
}

void NodeFields::expect_count(const char* what, const Value& v, int64_t count) const {
  if (v.count != count) {
    bad(field(what), described(v), std::to_string(count) + " elements");
  }
}

void NodeFields::expect_image(const char* what, const Value& v) const {
  if (v.shape.size() != 3) bad(field(what), described(v), "shape [h, w, channels]");
}

void NodeFields::expect_sum(const char* what, int64_t terms, int64_t largest) const {
  if (terms > kMaxInt32 / std::max<int64_t>(largest, 1)) {
    bad(field(what), "a sum of " + std::to_string(terms) + " terms",
        "at most " + std::to_string(kMaxInt32 / largest) + " for int32");
  }
}

const TensorView* NodeFields::table(const char* key, bool required) const {
  if (find(key) == nullptr && !required) return nullptr;
  const TensorView* view =
      find_tensor(file_, field(key), find(key), TensorType::kInt8, "I8 with shape [256]");
  if (view->shape != std::vector<int64_t>{256}) {
    bad(field(key), shown(*view), "I8 with shape [256]");
  }
  return view;
}

void NodeFields::check_table(const char* key, const TensorView* view, const Quantization& q) const {
  if (view == nullptr) return;
  const int half = 1 << (q.bits - 1);
  const auto* entries = reinterpret_cast<const int8_t*>(view->data);
  for (int i = 0; i < 256; ++i) {
    if (entries[i] < -half || entries[i] >= half) {
      bad(field(key), std::to_string(entries[i]), "levels of " + std::to_string(q.bits) + " bits");
    }
  }
}

const TensorView* NodeFields::floats(const char* key, int64_t count) const {
  if (find(key) == nullptr) return nullptr;
  const std::string accepted = "F32 with shape [" + std::to_string(count) + "]";
  const TensorView* view =
      find_tensor(file_, field(key), find(key), TensorType::kFloat32, accepted);
  if (view->shape != std::vector<int64_t>{count}) bad(field(key), shown(*view), accepted);
  require_finite(field(key), *view);
  return view;
}

const TensorView* NodeFields::indices(const char* key, int64_t low, int64_t high) const {
  const TensorView* view = find_tensor(file_, field(key), find(key), TensorType::kInt32, "I32");
  if (view->shape.size() != 1 || view->shape[0] < 1) {
    bad(field(key), shown(*view), "I32 with shape [count]");
  }
  const auto* index = reinterpret_cast<const int32_t*>(view->data);
  for (int64_t i = 0; i < view->shape[0]; ++i) {
    if (index[i] < low || index[i] > high) {
      bad(field(key), std::to_string(index[i]),
          "indices from " + std::to_string(low) + " to " + std::to_string(high));
    }
  }
  return view;
}

const DfqLayer* NodeFields::layer(const char* key, LayerKind kind) const {
  const std::string& name = fields::text(field(key), find(key));
  const DfqLayer* found = file_.find_layer(name);
  if (found == nullptr) bad(field(key), "no layer " + shown_string(name), "the name of a layer");
  if (found->spec.kind != kind) {
    bad(field(key), "a layer of another kind",
        kind == LayerKind::kLinear ? "a linear layer" : "a conv2d layer");
  }
  return found;
}

void NodeFields::pair(const char* key, int64_t low, int64_t high, int32_t (&to)[2]) const {
  const Json* json = find(key);
  if (json != nullptr && json->integer() != nullptr) {
    to[0] = to[1] = static_cast<int32_t>(integer(field(key), json, low, high));
    return;
  }
  const Json::Array& items = fields::list(field(key), json, 2, 2);
  for (size_t d = 0; d < 2; ++d) {
    to[d] = static_cast<int32_t>(integer(field(key), &items[d], low, high));
  }
}

bool NodeFields::flag(const char* key, bool fallback) const {
  return find(key) == nullptr ? fallback : fields::boolean(field(key), find(key));
}

void NodeFields::read_size(int64_t (&to)[2]) const {
  const Json::Array& size = fields::list(field("size"), find("size"), 2, 2);
  for (size_t d = 0; d < 2; ++d) to[d] = integer(field("size"), &size[d], 1, kMaxSize);
}

}  // namespace defakeq

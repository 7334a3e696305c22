// The fields of one node of a program, and what its operands have to be; every refusal names the
// node and the field.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/fields.h"
#include "runtime/json.h"
#include "runtime/program_graph.h"

namespace defakeq {

inline constexpr int64_t kMaxElements = int64_t{1} << 31;
inline constexpr int64_t kMaxSize = int64_t{1} << 24;
inline constexpr size_t kMaxInputs = 1024;

inline constexpr const char* kDTypeNames[] = {"float32", "int8"};

bool same(const Quantization& a, const Quantization& b);
std::string shown(const Quantization& q);
// The largest |q - zero_point|.
int64_t reach(const Quantization& q);
void require_finite(const std::string& field, const TensorView& view);
// The tensor that `json` names.
const TensorView* find_tensor(const DfqFile& file, const std::string& field, const Json* json,
                              TensorType type, const std::string& accepted);

class NodeFields {
 protected:
  // Reads the operator, the name, `in` and `out`.
  NodeFields(const DfqFile& file, const std::vector<Value>& values, const Json& json, size_t index);

  std::string field(const char* key) const { return at_ + " " + key; }
  const Json* find(const char* key) const { return json_.find(key); }
  int64_t integer_of(const char* key, int64_t low, int64_t high) const;
  const Value& value(int v) const { return values_[static_cast<size_t>(v)]; }
  const Value& out() const { return value(node_.out); }
  bool has(size_t i) const { return i < node_.in.size() && node_.in[i] >= 0; }
  const Value& in(size_t i) const { return value(node_.in[i]); }
  // At most `most` inputs, of which the first `least` are there.
  void expect_inputs(size_t least, size_t most) const;
  static std::string described(const Value& v);
  void expect_dtype(const char* what, const Value& v, DType dtype) const;
  void expect_quantization(const char* what, const Value& v, const Quantization& q) const;
  void expect_matrix(const char* what, const Value& v, int64_t rows, int64_t channels) const;
  void expect_shape(const char* what, const Value& v, const std::vector<int64_t>& shape) const;
  void expect_count(const char* what, const Value& v, int64_t count) const;
  void expect_image(const char* what, const Value& v) const;
  void expect_sum(const char* what, int64_t terms, int64_t largest) const;
  const TensorView* table(const char* key, bool required) const;
  // Table entries have to be levels of what they make.
  void check_table(const char* key, const TensorView* view, const Quantization& q) const;
  const TensorView* floats(const char* key, int64_t count) const;
  // An int32 tensor with entries from `low` to `high`.
  const TensorView* indices(const char* key, int64_t low, int64_t high) const;
  const DfqLayer* layer(const char* key, LayerKind kind) const;
  void pair(const char* key, int64_t low, int64_t high, int32_t (&to)[2]) const;
  bool flag(const char* key, bool fallback) const;
  // The sizes of `out`, [h, w].
  void read_size(int64_t (&to)[2]) const;

  Node node_;

 private:
  const DfqFile& file_;
  const std::vector<Value>& values_;
  const Json& json_;
  std::string at_;
};

}  // namespace defakeq

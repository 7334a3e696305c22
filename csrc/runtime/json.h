#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace defakeq {

// A strict JSON value (RFC 8259): valid UTF-8, no repeated keys, no text after the value, numbers
// within the range of double, limited nesting.
class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;

  static constexpr int kMaxDepth = 32;

  // Throws std::runtime_error that says what is wrong and at which byte.
  static Json parse(std::string_view text, int max_depth = kMaxDepth);

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  // Each is null when the value is of another type.
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }
  // Any number, also an integer.
  bool number(double* out) const;
  // The member of an object, or null.
  const Json* find(std::string_view key) const;
  // A short form for messages.
  std::string shown() const;

 private:
  friend class JsonParser;
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

// `text` in quotes, shortened, without control characters: for messages.
std::string shown_string(std::string_view text);

}  // namespace defakeq

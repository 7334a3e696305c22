// Reads JSON fields with their types and ranges; every refusal names the field, what was found and
// what is accepted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "defakeq/types.h"
#include "runtime/json.h"

namespace defakeq::fields {

[[noreturn]] void bad(const std::string& field, const std::string& found,
                      const std::string& accepted);

std::string shown(const Json* json);
std::string shown(const std::vector<int64_t>& sizes);

int64_t integer(const std::string& field, const Json* json, int64_t low, int64_t high);
// Any finite number within float32.
float number(const std::string& field, const Json* json);
double positive(const std::string& field, const Json* json, double most);
bool boolean(const std::string& field, const Json* json);
const std::string& text(const std::string& field, const Json* json);
const Json::Array& list(const std::string& field, const Json* json, size_t least, size_t most);
const Json::Object& object(const std::string& field, const Json* json);
// The position of a name among `names`.
int name_of(const std::string& field, const Json* json, const char* const* names, int count);
template <class E, int N>
E one_of(const std::string& field, const Json* json, const char* const (&names)[N]) {
  return static_cast<E>(name_of(field, json, names, N));
}
Quantization quantization(const std::string& field, const Json& json);

}  // namespace defakeq::fields

#include "runtime/fields.h"

#include <cfloat>
#include <cmath>
#include <stdexcept>

namespace defakeq::fields {

void bad(const std::string& field, const std::string& found, const std::string& accepted) {
  throw std::runtime_error(field + ": found " + found + "; accepted is " + accepted);
}

std::string shown(const Json* json) { return json == nullptr ? "nothing" : json->shown(); }

std::string shown(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

int64_t integer(const std::string& field, const Json* json, int64_t low, int64_t high) {
  const int64_t* value = json == nullptr ? nullptr : json->integer();
  if (value == nullptr || *value < low || *value > high) {
    bad(field, shown(json),
        "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return *value;
}

float number(const std::string& field, const Json* json) {
  double value = 0;
  if (json == nullptr || !json->number(&value) || !(std::fabs(value) <= FLT_MAX)) {
    bad(field, shown(json), "a finite float32");
  }
  return static_cast<float>(value);
}

double positive(const std::string& field, const Json* json, double most) {
  double value = 0;
  if (json == nullptr || !json->number(&value) || !(value > 0 && value <= most)) {
    bad(field, shown(json), "a positive number of at most " + std::to_string(most));
  }
  return value;
}

bool boolean(const std::string& field, const Json* json) {
  const bool* value = json == nullptr ? nullptr : json->boolean();
  if (value == nullptr) bad(field, shown(json), "true or false");
  return *value;
}

const std::string& text(const std::string& field, const Json* json) {
  const std::string* value = json == nullptr ? nullptr : json->string();
  if (value == nullptr || value->empty()) bad(field, shown(json), "a non-empty string");
  return *value;
}

const Json::Array& list(const std::string& field, const Json* json, size_t least, size_t most) {
  const Json::Array* items = json == nullptr ? nullptr : json->array();
  if (items == nullptr || items->size() < least || items->size() > most) {
    bad(field, shown(json),
        "a list of " + std::to_string(least) + " to " + std::to_string(most) + " entries");
  }
  return *items;
}

const Json::Object& object(const std::string& field, const Json* json) {
  const Json::Object* members = json == nullptr ? nullptr : json->object();
  if (members == nullptr) bad(field, shown(json), "an object");
  return *members;
}

int name_of(const std::string& field, const Json* json, const char* const* names, int count) {
  const std::string* name = json == nullptr ? nullptr : json->string();
  std::string all;
  for (int i = 0; i < count; ++i) {
    if (name != nullptr && *name == names[i]) return i;
    all += (all.empty() ? "one of " : ", ") + std::string(names[i]);
  }
  bad(field, shown(json), all);
}

Quantization quantization(const std::string& field, const Json& json) {
  Quantization q;
  const Json* bits = json.find("bits");  // 8 when left out
  if (bits != nullptr) q.bits = static_cast<int32_t>(integer(field + ".bits", bits, 4, 8));
  const int64_t half = int64_t{1} << (q.bits - 1);
  q.zero_point = static_cast<int32_t>(
      integer(field + ".zero_point", json.find("zero_point"), -half, half - 1));
  const Json* scale = json.find("scale");
  double value = 0;
  if (scale == nullptr || !scale->number(&value) || !(value >= FLT_MIN && value <= FLT_MAX)) {
    bad(field + ".scale", shown(scale), "a normal positive float32");
  }
  q.scale = static_cast<float>(value);
  return q;
}

}  // namespace defakeq::fields

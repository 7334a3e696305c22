// The form of every refusal of an argument.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace defakeq {

[[noreturn]] inline void refuse(const std::string& field, const std::string& found,
                                const std::string& accepted) {
  throw std::invalid_argument(field + ": found " + found + ", accepted: " + accepted);
}

inline void check_range(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  refuse(field, std::to_string(value), std::to_string(low) + " to " + std::to_string(high));
}

}  // namespace defakeq

#include "runtime/base64.h"

#include <algorithm>
#include <cstddef>

namespace defakeq {

namespace {

constexpr std::string_view kDigits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

}  // namespace

bool decode_base64(std::string_view text, std::vector<uint8_t>* out) {
  out->clear();
  if (text.size() % 4 != 0) return false;
  size_t padding = 0;
  while (padding < std::min<size_t>(2, text.size()) && text[text.size() - 1 - padding] == '=') {
    ++padding;
  }
  text.remove_suffix(padding);
  out->reserve(text.size() * 3 / 4);
  uint32_t bits = 0;
  int held = 0;  // bits of `bits` that no byte has taken yet
  for (const char c : text) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return false;
    bits = ((bits << 6) | static_cast<uint32_t>(digit)) & 0xFFFF;
    held += 6;
    if (held >= 8) {
      held -= 8;
      out->push_back(static_cast<uint8_t>(bits >> held));
    }
  }
  return (bits & ((1u << held) - 1)) == 0;
}

}  // namespace defakeq

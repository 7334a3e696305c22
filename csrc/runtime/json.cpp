#include "runtime/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#if !defined(__cpp_lib_to_chars)
#include <locale>
#include <sstream>
#endif
#include <stdexcept>
#include <system_error>

namespace defakeq {

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(uint32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
    return;
  }
  const int tail = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  const uint32_t lead = tail == 1 ? 0xC0 : tail == 2 ? 0xE0 : 0xF0;
  out->push_back(static_cast<char>(lead | (code >> (6 * tail))));
  for (int i = tail - 1; i >= 0; --i) {
    out->push_back(static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F)));
  }
}

}  // namespace

class JsonParser {
 public:
  JsonParser(std::string_view text, int max_depth) : text_(text), depth_left_(max_depth) {}

  Json document() {
    Json value = parse_value();
    skip_space();
    if (at_ != text_.size()) fail("text after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(what + " at byte " + std::to_string(at_));
  }

  bool at_end() const { return at_ == text_.size(); }
  char peek() const {
    if (at_end()) fail("an early end");
    return text_[at_];
  }
  bool take(char c) {
    if (at_end() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (peek() != c) fail(std::string("no '") + c + "'");
    ++at_;
  }
  void skip_space() {
    while (!at_end() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  Json parse_value() {
    skip_space();
    Json json;
    switch (peek()) {
      case '{':
        json.value_ = parse_object();
        break;
      case '[':
        json.value_ = parse_array();
        break;
      case '"':
        json.value_ = parse_string();
        break;
      case 't':
        word("true");
        json.value_ = true;
        break;
      case 'f':
        word("false");
        json.value_ = false;
        break;
      case 'n':
        word("null");
        break;
      default:
        parse_number(&json);
    }
    return json;
  }

  void word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) fail("an unknown word");
    at_ += expected.size();
  }

  void enter() {
    if (depth_left_-- == 0) fail("too deep nesting");
    ++at_;
    skip_space();
  }

  Json::Array parse_array() {
    enter();
    Json::Array items;
    if (!take(']')) {
      do {
        items.push_back(parse_value());
        skip_space();
      } while (take(','));
      expect(']');
    }
    ++depth_left_;
    return items;
  }

  Json::Object parse_object() {
    enter();
    Json::Object members;
    if (!take('}')) {
      do {
        skip_space();
        std::string key = parse_string();
        skip_space();
        expect(':');
        members.emplace_back(std::move(key), parse_value());
        skip_space();
      } while (take(','));
      expect('}');
    }
    ++depth_left_;
    refuse_repeats(members);
    return members;
  }

  void refuse_repeats(const Json::Object& members) const {
    std::vector<const std::string*> keys;
    keys.reserve(members.size());
    for (const auto& member : members) keys.push_back(&member.first);
    std::sort(keys.begin(), keys.end(), [](auto a, auto b) { return *a < *b; });
    const auto repeated =
        std::adjacent_find(keys.begin(), keys.end(), [](auto a, auto b) { return *a == *b; });
    if (repeated != keys.end()) fail("the key " + shown_string(**repeated) + " twice");
  }

  std::string parse_string() {
    expect('"');
    std::string out;
    while (true) {
      const auto c = static_cast<unsigned char>(peek());
      if (c == '"') break;
      if (c < 0x20) fail("a control character in a string");
      if (c == '\\') {
        parse_escape(&out);
      } else if (c < 0x80) {
        out.push_back(static_cast<char>(c));
        ++at_;
      } else {
        copy_utf8(&out);
      }
    }
    ++at_;
    return out;
  }

  void parse_escape(std::string* out) {
    ++at_;
    const char c = peek();
    ++at_;
    static constexpr std::string_view kNames = "\"\\/bfnrt";
    static constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      out->push_back(kValues[i]);
      return;
    }
    if (c != 'u') fail("an unknown escape");
    uint32_t code = parse_hex();
    if (code >= 0xDC00 && code < 0xE000) fail("half a surrogate pair");
    if (code >= 0xD800 && code < 0xDC00) {
      if (!take('\\') || !take('u')) fail("half a surrogate pair");
      const uint32_t low = parse_hex();
      if (low < 0xDC00 || low >= 0xE000) fail("half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(code, out);
  }

  uint32_t parse_hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      const char lower = static_cast<char>(c | 0x20);
      if (is_digit(c)) {
        code = code * 16 + static_cast<uint32_t>(c - '0');
      } else if (lower >= 'a' && lower <= 'f') {
        code = code * 16 + static_cast<uint32_t>(lower - 'a' + 10);
      } else {
        fail("a wrong hexadecimal digit");
      }
      ++at_;
    }
    return code;
  }

  // Copies one character of two to four bytes: no overlong form, surrogate or value above 10FFFF.
  void copy_utf8(std::string* out) {
    const auto lead = static_cast<unsigned char>(text_[at_]);
    const int tail = lead >= 0xC2 && lead <= 0xDF   ? 1
                     : lead >= 0xE0 && lead <= 0xEF ? 2
                     : lead >= 0xF0 && lead <= 0xF4 ? 3
                                                    : 0;
    if (tail == 0) fail("a byte that is not UTF-8");
    uint32_t code = lead & (0x3Fu >> tail);
    for (int i = 1; i <= tail; ++i) {
      if (at_ + i >= text_.size()) fail("an early end");
      const auto next = static_cast<unsigned char>(text_[at_ + i]);
      if ((next & 0xC0) != 0x80) fail("a byte that is not UTF-8");
      code = (code << 6) | (next & 0x3F);
    }
    const uint32_t least = tail == 1 ? 0x80 : tail == 2 ? 0x800 : 0x10000;
    if (code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      fail("a byte that is not UTF-8");
    }
    out->append(text_.substr(at_, tail + 1));
    at_ += tail + 1;
  }

  void digits() {
    if (at_end() || !is_digit(text_[at_])) fail("no digit");
    while (!at_end() && is_digit(text_[at_])) ++at_;
  }

  void parse_number(Json* json) {
    const size_t begin = at_;
    take('-');
    if (!take('0')) digits();
    bool whole = true;
    if (take('.')) {
      whole = false;
      digits();
    }
    if (!at_end() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      whole = false;
      ++at_;
      if (!take('+')) take('-');
      digits();
    }
    const char* first = text_.data() + begin;
    const char* last = text_.data() + at_;
    int64_t integer = 0;
    if (whole && std::from_chars(first, last, integer).ec == std::errc()) {
      json->value_ = integer;
      return;
    }
    double number = 0;
#if defined(__cpp_lib_to_chars)
    if (std::from_chars(first, last, number).ec != std::errc()) fail("a number out of range");
#else  // libc++
    std::istringstream stream(std::string(first, last));
    stream.imbue(std::locale::classic());
    if (!(stream >> number)) fail("a number out of range");
#endif
    json->value_ = number;
  }

  std::string_view text_;
  size_t at_ = 0;
  int depth_left_;
};

Json Json::parse(std::string_view text, int max_depth) {
  return JsonParser(text, max_depth).document();
}

bool Json::number(double* out) const {
  if (const int64_t* i = integer()) {
    *out = static_cast<double>(*i);
    return true;
  }
  if (const double* d = std::get_if<double>(&value_)) {
    *out = *d;
    return true;
  }
  return false;
}

const Json* Json::find(std::string_view key) const {
  if (const Object* members = object()) {
    for (const auto& member : *members) {
      if (member.first == key) return &member.second;
    }
  }
  return nullptr;
}

std::string Json::shown() const {
  if (const std::string* s = string()) return shown_string(*s);
  if (const bool* b = boolean()) return *b ? "true" : "false";
  if (const int64_t* i = integer()) return std::to_string(*i);
  if (const Object* o = object()) return "an object of " + std::to_string(o->size());
  if (const Array* a = array()) {
    if (a->size() > 4) return "a list of " + std::to_string(a->size());
    std::string text = "[";
    for (const Json& item : *a) {
      if (text.size() > 1) text += ", ";
      text += item.array() != nullptr ? "[...]" : item.shown();
    }
    return text + "]";
  }
  double d = 0;
  return number(&d) ? std::to_string(d) : "null";
}

std::string shown_string(std::string_view text) {
  constexpr size_t kLongest = 60;
  std::string out = "\"";
  for (const char c : text.substr(0, kLongest)) out += static_cast<unsigned char>(c) < 32 ? '?' : c;
  return out + (text.size() > kLongest ? "...\"" : "\"");
}

}  // namespace defakeq

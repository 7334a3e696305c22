#include "runtime/inflate.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace defakeq {

namespace {

constexpr int kMaxLength = 15;  // bits of a code
constexpr int kEnd = 256;       // the symbol that ends a block
constexpr size_t kWindow = 32768;

// A row of the format's tables: what a symbol stands for is `base` and the number in `extra` bits.
struct Span {
  uint16_t base;
  uint8_t extra;
};
constexpr std::array<Span, 29> kLengths = {
    {{3, 0},  {4, 0},  {5, 0},  {6, 0},   {7, 0},   {8, 0},   {9, 0},   {10, 0},  {11, 1}, {13, 1},
     {15, 1}, {17, 1}, {19, 2}, {23, 2},  {27, 2},  {31, 2},  {35, 3},  {43, 3},  {51, 3}, {59, 3},
     {67, 4}, {83, 4}, {99, 4}, {115, 4}, {131, 5}, {163, 5}, {195, 5}, {227, 5}, {258, 0}}};
constexpr std::array<Span, 30> kDistances = {
    {{1, 0},     {2, 0},     {3, 0},     {4, 0},      {5, 1},      {7, 1},
     {9, 2},     {13, 2},    {17, 3},    {25, 3},     {33, 4},     {49, 4},
     {65, 5},    {97, 5},    {129, 6},   {193, 6},    {257, 7},    {385, 7},
     {513, 8},   {769, 8},   {1025, 9},  {1537, 9},   {2049, 10},  {3073, 10},
     {4097, 11}, {6145, 11}, {8193, 12}, {12289, 12}, {16385, 13}, {24577, 13}}};
constexpr std::array<uint8_t, 19> kOrder = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                            11, 4,  12, 3, 13, 2, 14, 1, 15};

[[noreturn]] void fail(const char* what) { throw std::runtime_error(what); }

class BitReader {
 public:
  explicit BitReader(const std::vector<uint8_t>& bytes) : bytes_(bytes) {}

  uint32_t bit() {
    if (at_ == 8 * bytes_.size()) fail("a stream that ends early");
    const uint32_t value = (bytes_[at_ / 8] >> (at_ % 8)) & 1;
    ++at_;
    return value;
  }
  uint32_t bits(int count) {
    uint32_t value = 0;
    for (int i = 0; i < count; ++i) value |= bit() << i;
    return value;
  }
  void to_byte() { at_ = (at_ + 7) / 8 * 8; }
  bool in_last_byte() const { return (at_ + 7) / 8 == bytes_.size(); }

 private:
  const std::vector<uint8_t>& bytes_;
  size_t at_ = 0;  // in bits
};

// A canonical prefix code: codes of a length follow one another in the order of their symbols.
class PrefixCode {
 public:
  // As other decoders do, takes no codes at all, or a single one of one bit, where `sparse`.
  PrefixCode(const uint8_t* lengths, int symbols, bool sparse) {
    for (int s = 0; s < symbols; ++s) ++count_[lengths[s]];
    count_[0] = 0;
    int left = 1;  // codes of the present length that are free
    int longest = 0;
    for (int length = 1; length <= kMaxLength; ++length) {
      left = 2 * left - count_[length];
      if (left < 0) fail("too many codes of a length");
      if (count_[length] > 0) longest = length;
    }
    if (left > 0 && !(sparse && longest <= 1)) fail("too few codes");
    std::array<uint16_t, kMaxLength + 2> at{};
    for (int length = 1; length <= kMaxLength; ++length) {
      at[length + 1] = static_cast<uint16_t>(at[length] + count_[length]);
    }
    for (int s = 0; s < symbols; ++s) {
      if (lengths[s] != 0) symbols_[at[lengths[s]]++] = static_cast<uint16_t>(s);
    }
  }

  int read(BitReader* from) const {
    int code = 0, first = 0, before = 0;
    for (int length = 1; length <= kMaxLength; ++length) {
      code |= static_cast<int>(from->bit());
      const int count = count_[length];
      if (code - first < count) return symbols_[static_cast<size_t>(before + code - first)];
      before += count;
      first = 2 * (first + count);
      code *= 2;
    }
    fail("a code that is none");
  }

 private:
  std::array<uint16_t, kMaxLength + 1> count_{};  // of codes by length
  std::array<uint16_t, 288> symbols_{};           // by length, then by number
};

class Inflater {
 public:
  Inflater(const std::vector<uint8_t>& stream, size_t most) : in_(stream), most_(most) {}

  std::string run() {
    for (bool last = false; !last;) {
      last = in_.bit() != 0;
      switch (in_.bits(2)) {
        case 0:
          stored();
          break;
        case 1:
          fixed();
          break;
        case 2:
          dynamic();
          break;
        default:
          fail("a block of an unknown kind");
      }
    }
    if (!in_.in_last_byte()) fail("bytes after the last block");
    return std::move(out_);
  }

 private:
  void put(char byte) {
    if (out_.size() == most_) fail("a result that is too long");
    out_.push_back(byte);
  }

  void stored() {
    in_.to_byte();
    const uint32_t count = in_.bits(16);
    if ((in_.bits(16) ^ count) != 0xFFFF) fail("a stored block of two lengths");
    for (uint32_t i = 0; i < count; ++i) put(static_cast<char>(in_.bits(8)));
  }

  void fixed() {
    std::array<uint8_t, 288> lengths{};
    for (int s = 0; s < 288; ++s) {
      lengths[static_cast<size_t>(s)] = s < 144 ? 8 : s < 256 ? 9 : s < 280 ? 7 : 8;
    }
    std::array<uint8_t, 32> distances{};
    distances.fill(5);
    block(PrefixCode(lengths.data(), 288, false), PrefixCode(distances.data(), 32, false));
  }

  void dynamic() {
    const int literals = static_cast<int>(in_.bits(5)) + 257;
    const int distances = static_cast<int>(in_.bits(5)) + 1;
    const int described = static_cast<int>(in_.bits(4)) + 4;
    if (literals > 286 || distances > 30) fail("too many symbols");
    std::array<uint8_t, 19> own{};
    for (int i = 0; i < described; ++i) {
      own[kOrder[static_cast<size_t>(i)]] = static_cast<uint8_t>(in_.bits(3));
    }
    const PrefixCode code(own.data(), 19, false);
    std::array<uint8_t, 286 + 30> lengths{};
    for (int i = 0; i < literals + distances;) {
      const int symbol = code.read(&in_);
      if (symbol < 16) {
        lengths[static_cast<size_t>(i++)] = static_cast<uint8_t>(symbol);
        continue;
      }
      if (symbol == 16 && i == 0) fail("a length repeated before the first");
      const uint8_t value = symbol == 16 ? lengths[static_cast<size_t>(i - 1)] : uint8_t{0};
      const uint32_t times = symbol == 16   ? 3 + in_.bits(2)
                             : symbol == 17 ? 3 + in_.bits(3)
                                            : 11 + in_.bits(7);
      if (static_cast<uint32_t>(literals + distances - i) < times) fail("too many lengths");
      for (uint32_t n = 0; n < times; ++n) lengths[static_cast<size_t>(i++)] = value;
    }
    if (lengths[kEnd] == 0) fail("a block without an end");
    block(PrefixCode(lengths.data(), literals, true),
          PrefixCode(lengths.data() + literals, distances, true));
  }

  void block(const PrefixCode& literals, const PrefixCode& distances) {
    for (int symbol; (symbol = literals.read(&in_)) != kEnd;) {
      if (symbol < kEnd) {
        put(static_cast<char>(symbol));
        continue;
      }
      const size_t length = value_of(kLengths, symbol - kEnd - 1);
      const size_t distance = value_of(kDistances, distances.read(&in_));
      if (distance > std::min(out_.size(), kWindow)) fail("a distance beyond the start");
      for (size_t i = 0; i < length; ++i) put(out_[out_.size() - distance]);
    }
  }

  template <size_t N>
  size_t value_of(const std::array<Span, N>& spans, int symbol) {
    if (symbol >= static_cast<int>(N)) fail("a symbol that is none");
    const Span& span = spans[static_cast<size_t>(symbol)];
    return span.base + in_.bits(span.extra);
  }

  BitReader in_;
  size_t most_;
  std::string out_;
};

}  // namespace

std::string inflate(const std::vector<uint8_t>& stream, size_t most) {
  return Inflater(stream, most).run();
}

}  // namespace defakeq

#include "runtime/crc32.h"

#include <array>

namespace defakeq {

namespace {

constexpr int kSlices = 16;
using Tables = std::array<std::array<uint32_t, 256>, kSlices>;

// Table s advances a byte over s further zero bytes, so eight look-ups advance eight bytes.
constexpr Tables make_tables() {
  Tables t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0xEDB88320u : 0u);
    t[0][i] = c;
  }
  for (int s = 1; s < kSlices; ++s) {
    for (uint32_t i = 0; i < 256; ++i) t[s][i] = (t[s - 1][i] >> 8) ^ t[0][t[s - 1][i] & 255];
  }
  return t;
}

constexpr Tables kTables = make_tables();

}  // namespace

uint32_t crc32(const uint8_t* data, size_t bytes, uint32_t seed) {
  uint32_t c = ~seed;
  for (; bytes >= kSlices; bytes -= kSlices, data += kSlices) {
    uint32_t next = 0;
    for (int i = 0; i < kSlices; ++i) {
      const uint32_t mixed = i < 4 ? (c >> (8 * i)) & 255 : 0;
      next ^= kTables[kSlices - 1 - i][mixed ^ data[i]];
    }
    c = next;
  }
  for (; bytes > 0; --bytes, ++data) c = (c >> 8) ^ kTables[0][(c ^ *data) & 255];
  return ~c;
}

}  // namespace defakeq

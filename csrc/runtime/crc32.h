#pragma once

#include <cstddef>
#include <cstdint>

namespace defakeq {

// The CRC-32 of zlib and PNG (reflected polynomial 0xEDB88320). `seed` is the CRC of what came
// before, 0 at the start.
uint32_t crc32(const uint8_t* data, size_t bytes, uint32_t seed = 0);

}  // namespace defakeq

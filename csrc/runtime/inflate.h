#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace defakeq {

// What a raw deflate stream (RFC 1951) holds. Throws std::runtime_error that says what is wrong
// with it: also bytes behind its end, and more than `most` bytes of content.
std::string inflate(const std::vector<uint8_t>& stream, size_t most);

}  // namespace defakeq

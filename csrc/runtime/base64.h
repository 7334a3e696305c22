#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace defakeq {

// Decodes base64 with padding (RFC 4648) into `out`. False for text that no encoder writes.
bool decode_base64(std::string_view text, std::vector<uint8_t>* out);

}  // namespace defakeq

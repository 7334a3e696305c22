// Codes of the storage format in bulk: bit streams to bytes, bytes to the planes of a block.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace defakeq {

inline constexpr int64_t kCodeGroup = 8;  // codes that are unpacked together

// codes[i] = code i of the bit stream `row` of ceil(count * bits / 8) bytes. Writes up to the next
// multiple of kCodeGroup; what is there after `count` is not specified.
void unpack_codes(const uint8_t* row, int64_t count, int bits, uint8_t* codes);

int64_t sum_codes(const uint8_t* codes, int64_t count);

// The rows of a block: row n at codes + n * stride, read as `taps` runs of `tap_length` codes.
struct BlockCodes {
  const uint8_t* codes;
  int64_t stride;
  int rows;  // at most kBlock
  int64_t taps, tap_length;
};

// Writes padded_steps / kPlaneSteps * bits * 64 bytes; absent rows and steps are zero.
void write_planes(const BlockCodes& block, int64_t padded_steps, int bits, uint8_t* out);

}  // namespace defakeq

// Counts the allocations of the test program; AddressSanitizer has operators of its own.
#pragma once

#include <cstdint>

#if !defined(__SANITIZE_ADDRESS__)
#define DEFAKEQ_COUNTS_ALLOCATIONS

namespace defakeq {

int64_t count_allocations();

}  // namespace defakeq
#endif

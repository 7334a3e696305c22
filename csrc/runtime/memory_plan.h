// Places buffers with known lifetimes into one arena.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace defakeq {

struct Buffer {
  int64_t bytes = 0;
  int64_t first = 0, last = 0;  // the steps, both included, in which it is in use
  int64_t offset = 0;           // the result
};

struct MemoryPlan {
  int64_t arena_bytes = 0;
  int64_t live_bytes = 0;  // the largest sum of sizes in use in one step
};

// Offsets are multiples of 64; buffers in use in a common step do not overlap.
MemoryPlan plan_memory(std::vector<Buffer>* buffers);

}  // namespace defakeq

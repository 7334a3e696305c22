// What the operators between layers check and share.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "defakeq/nodes.h"
#include "kernels/kernel_table.h"
#include "ops/tasks.h"
#include "pack/refuse.h"

namespace defakeq {

// Sums of products of two differences of bytes stay within int32 up to this length.
inline constexpr int64_t kMaxProductLength = 32768;
// Sums of differences of bytes do.
inline constexpr int64_t kMaxSumLength = int64_t{1} << 23;

inline constexpr int64_t kMaxSize = int64_t{1} << 40;

inline void check_size(const char* field, int64_t value) { check_range(field, value, 1, kMaxSize); }
void check_pointer(const char* field, const void* data);
void check_quantization(const char* field, const Quantization& q);
void check_operand(const char* field, const Operand& x);
void check_int8(const char* field, const Operand& x);

// Checks a result and says how it is stored.
Post result_post(const Result& out);

// As for_tasks; in the calling thread when there is too little to do.
template <class Fn>
void share(Parallel& parallel, int64_t items, int64_t work_an_item, Fn&& fn) {
  constexpr int64_t kSerialWork = 32 * 1024;
  if (items > 0 && items * work_an_item < kSerialWork) {
    fn(int64_t{0}, int64_t{0}, items);
  } else {
    for_tasks(parallel, items, std::forward<Fn>(fn));
  }
}

// Ranges of elements that begin at multiples of a cache line.
template <class Fn>
void share_elements(Parallel& parallel, int64_t count, Fn&& fn) {
  constexpr int64_t kGrain = 1024;
  share(parallel, (count + kGrain - 1) / kGrain, kGrain, [&](int64_t, int64_t begin, int64_t end) {
    fn(begin * kGrain, std::min(end * kGrain, count));
  });
}

}  // namespace defakeq

#pragma once

#include <cstddef>
#include <cstdint>

namespace defakeq {

// Hands out 64-byte aligned parts of one scratch buffer. Run the same calls first without a base to
// learn the size.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// The distance of rows of at least `bytes` that begin with a cache line each: an odd number of
// lines, so that adjacent rows do not meet in the same few sets of a cache.
inline int64_t line_pitch(int64_t bytes) { return ((bytes + 63) / 64 | 1) * 64; }

}  // namespace defakeq

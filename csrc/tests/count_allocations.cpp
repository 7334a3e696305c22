#include "tests/count_allocations.h"

#if defined(DEFAKEQ_COUNTS_ALLOCATIONS)
#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<int64_t> g_allocations{0};
}

void* operator new(size_t bytes) {
  ++g_allocations;
  if (void* data = std::malloc(bytes > 0 ? bytes : 1)) return data;
  throw std::bad_alloc();
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }

int64_t defakeq::count_allocations() { return g_allocations.load(); }
#endif

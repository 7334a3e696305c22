#include "runtime/memory_plan.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

namespace defakeq {

namespace {

constexpr int64_t kAlign = 64;

int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Takes the buffers in `order`; each gets the smallest gap that is large enough between the ones
// that are placed and in use with it.
int64_t place(const std::vector<Buffer>& buffers, const std::vector<size_t>& order,
              std::vector<int64_t>* offsets) {
  std::vector<size_t> placed;  // by offset
  placed.reserve(order.size());
  int64_t arena = 0;
  for (const size_t i : order) {
    const Buffer& b = buffers[i];
    const int64_t bytes = padded(b.bytes);
    int64_t end = 0, best = -1, best_gap = 0;
    for (const size_t j : placed) {
      const Buffer& other = buffers[j];
      if (other.last < b.first || b.last < other.first) continue;
      const int64_t gap = (*offsets)[j] - end;
      if (gap >= bytes && (best < 0 || gap < best_gap)) {
        best = end;
        best_gap = gap;
      }
      end = std::max(end, (*offsets)[j] + padded(other.bytes));
    }
    if (best < 0) best = end;
    (*offsets)[i] = best;
    arena = std::max(arena, best + bytes);
    const auto at =
        std::upper_bound(placed.begin(), placed.end(), best,
                         [&](int64_t offset, size_t j) { return offset < (*offsets)[j]; });
    placed.insert(at, i);
  }
  return arena;
}

int64_t largest_live(const std::vector<Buffer>& buffers) {
  std::vector<std::pair<int64_t, int64_t>> changes;  // step, bytes
  changes.reserve(2 * buffers.size());
  for (const Buffer& b : buffers) {
    changes.emplace_back(b.first, padded(b.bytes));
    changes.emplace_back(b.last + 1, -padded(b.bytes));
  }
  std::sort(changes.begin(), changes.end());  // releases before uses of the same step
  int64_t now = 0, most = 0;
  for (const auto& [step, bytes] : changes) {
    now += bytes;
    most = std::max(most, now);
  }
  return most;
}

}  // namespace

MemoryPlan plan_memory(std::vector<Buffer>* buffers) {
  const std::vector<Buffer>& all = *buffers;
  MemoryPlan plan;
  plan.live_bytes = largest_live(all);
  std::vector<size_t> order(all.size());
  std::vector<int64_t> offsets(all.size()), best;
  // Largest first is best on most networks; the others help where one order is unlucky.
  for (int attempt = 0; attempt < 3; ++attempt) {
    std::iota(order.begin(), order.end(), size_t{0});
    const auto key = [&](size_t i) {
      const Buffer& b = all[i];
      const int64_t length = b.last - b.first;
      return attempt == 0   ? std::make_tuple(-b.bytes, -length, b.first)
             : attempt == 1 ? std::make_tuple(-length, -b.bytes, b.first)
                            : std::make_tuple(b.first, -b.bytes, -length);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return key(a) < key(b); });
    const int64_t arena = place(all, order, &offsets);
    if (best.empty() || arena < plan.arena_bytes) {
      plan.arena_bytes = arena;
      best = offsets;
    }
    if (plan.arena_bytes == plan.live_bytes) break;
  }
  for (size_t i = 0; i < all.size(); ++i) (*buffers)[i].offset = best[i];
  return plan;
}

}  // namespace defakeq

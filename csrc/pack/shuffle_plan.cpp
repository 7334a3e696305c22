#include "pack/shuffle_plan.h"

#include <algorithm>
#include <cstring>

namespace defakeq {

namespace {

// Covers outputs [begin, end) by windows of `width` source bytes: the first begins at the lowest
// byte that is read, the next at the lowest that is left. start(offset) begins a window,
// place(i, at) says that output begin + i is its byte `at`.
template <class Start, class Place>
void cover(const std::vector<int32_t>& from, int64_t begin, int64_t end, int64_t src_length,
           int64_t width, Start&& start, Place&& place) {
  std::vector<int64_t> left;
  for (int64_t i = begin; i < end; ++i) {
    if (from[static_cast<size_t>(i)] >= 0) left.push_back(i);
  }
  while (!left.empty()) {
    int64_t low = src_length;
    for (const int64_t i : left) low = std::min<int64_t>(low, from[static_cast<size_t>(i)]);
    const int64_t offset = std::min(low, std::max<int64_t>(src_length - width, 0));
    start(offset);
    std::erase_if(left, [&](int64_t i) {
      const int64_t at = from[static_cast<size_t>(i)] - offset;
      if (at < 0 || at >= width) return false;
      place(i - begin, static_cast<uint8_t>(at));
      return true;
    });
  }
}

}  // namespace

ShuffleTables plan_shuffle(const std::vector<int32_t>& from, int64_t src_length, uint8_t fill) {
  ShuffleTables t;
  const auto length = static_cast<int64_t>(from.size());
  t.length = length;
  t.src_length = src_length;
  t.fill.assign(static_cast<size_t>((length + kWideBlock - 1) / kWideBlock * kWideBlock), 0);
  for (size_t i = 0; i < from.size(); ++i) t.fill[i] = from[i] < 0 ? fill : 0;
  for (int64_t b = 0; b < length; b += kBlock) {
    t.first.push_back(static_cast<int32_t>(t.sources.size()));
    cover(
        from, b, std::min<int64_t>(b + kBlock, length), src_length, kBlock,
        [&](int64_t offset) {
          ShuffleSource s;
          s.offset = static_cast<int32_t>(offset);
          std::memset(s.mask, 0x80, sizeof(s.mask));
          t.sources.push_back(s);
        },
        [&](int64_t i, uint8_t at) { t.sources.back().mask[i] = at; });
  }
  t.first.push_back(static_cast<int32_t>(t.sources.size()));
#if defined(__x86_64__)
  for (int64_t b = 0; b < length; b += kWideBlock) {
    t.wide_first.push_back(static_cast<int32_t>(t.wide_sources.size()));
    cover(
        from, b, std::min<int64_t>(b + kWideBlock, length), src_length, kWideBlock,
        [&](int64_t offset) { t.wide_sources.push_back({0, offset, {}}); },
        [&](int64_t i, uint8_t at) {
          t.wide_sources.back().lanes |= uint64_t{1} << i;
          t.wide_sources.back().index[i] = at;
        });
  }
  t.wide_first.push_back(static_cast<int32_t>(t.wide_sources.size()));
#endif
  return t;
}

}  // namespace defakeq

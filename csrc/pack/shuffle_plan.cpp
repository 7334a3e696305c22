#include "pack/shuffle_plan.h"

#include <algorithm>
#include <cstring>

namespace defakeq {

ShuffleTables plan_shuffle(const std::vector<int32_t>& from, int64_t src_length, uint8_t fill) {
  ShuffleTables t;
  const auto length = static_cast<int64_t>(from.size());
  const int64_t last_offset = std::max<int64_t>(src_length - kBlock, 0);
  for (int64_t b = 0; b < length; b += kBlock) {
    t.first.push_back(static_cast<int32_t>(t.sources.size()));
    const int n = static_cast<int>(std::min<int64_t>(kBlock, length - b));
    bool done[kBlock] = {};
    for (int i = 0; i < kBlock; ++i) t.fill.push_back(i < n && from[b + i] < 0 ? fill : 0);
    for (int i = 0; i < n; ++i) done[i] = from[b + i] < 0;
    while (true) {
      int64_t low = -1;
      for (int i = 0; i < n; ++i) {
        if (!done[i] && (low < 0 || from[b + i] < low)) low = from[b + i];
      }
      if (low < 0) break;
      ShuffleSource s;
      s.offset = static_cast<int32_t>(std::min(low, last_offset));
      std::memset(s.mask, 0x80, sizeof(s.mask));
      for (int i = 0; i < n; ++i) {
        const int64_t at = int64_t{from[b + i]} - s.offset;
        if (!done[i] && at >= 0 && at < kBlock) {
          s.mask[i] = static_cast<uint8_t>(at);
          done[i] = true;
        }
      }
      t.sources.push_back(s);
    }
  }
  t.first.push_back(static_cast<int32_t>(t.sources.size()));
  return t;
}

}  // namespace defakeq

#include "ops/output_windows.h"

namespace defakeq {

bool find_windows(const PackedLayer& layer, Strip* strips, int64_t strip_count,
                  OutputWindow* found) {
  constexpr int64_t kMost = 2;
  const int32_t* channel = layer.at<int32_t>(layer.slot_channel);
  int32_t count = 0, last = -1;
  for (int64_t s = 0; s < strip_count; ++s) {
    Strip& strip = strips[s];
    const int64_t slot = int64_t{strip.first} * kBlock;
    const int lanes = strip.count * kBlock;
    const int64_t begin = s == 0 ? 0 : channel[slot];
    const int64_t end =
        s + 1 < strip_count ? channel[int64_t{strips[s + 1].first} * kBlock] : layer.out_channels;
    const int64_t windows = (end - begin + kWideBlock - 1) / kWideBlock;
    if (end <= begin || windows > kMost) return false;
    strip.window = count;
    strip.windows = static_cast<int32_t>(windows);
    for (int64_t w = 0; w < windows; ++w) {
      const int64_t left = end - begin - w * kWideBlock;
      found[count + w].offset = begin + w * kWideBlock;
      found[count + w].stored = left >= kWideBlock ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
      found[count + w].lanes = 0;
    }
    for (int n = 0; n < lanes; ++n) {
      if (channel[slot + n] < 0) continue;
      if (channel[slot + n] <= last || channel[slot + n] >= end) return false;
      last = channel[slot + n];
      const int64_t at = last - begin;
      OutputWindow& window = found[count + at / kWideBlock];
      window.lanes |= uint64_t{1} << at % kWideBlock;
      for (int row = 0; row < 4 / strip.count; ++row) {
        window.lane[row][at % kWideBlock] = static_cast<uint8_t>(n + row * lanes);
      }
    }
    count += strip.windows;
  }
  return true;
}

}  // namespace defakeq

// The scalar tier has no instruction of its own to saturate: its peaks are those of plain loops as
// the compiler translates them for the baseline processor.
#include "kernels/peak.h"

namespace defakeq {

namespace {

constexpr int kLength = 1024;

// Keeps the compiler from computing the value, or anything it depends on, ahead of time.
template <class T>
void opaque(T& value) {
  __asm__ volatile("" : "+m"(value) : : "memory");
}

int64_t int8_macs(int64_t rounds) {
  int8_t a[kLength];
  uint8_t b[kLength];
  for (int i = 0; i < kLength; ++i) {
    a[i] = static_cast<int8_t>(i);
    b[i] = static_cast<uint8_t>(3 * i);
  }
  for (int64_t r = 0; r < rounds; ++r) {
    opaque(a);
    opaque(b);
    int32_t sum = 0;
    for (int i = 0; i < kLength; ++i) sum += int32_t{a[i]} * int32_t{b[i]};
    opaque(sum);
  }
  return rounds * kLength;
}

int64_t fp32_macs(int64_t rounds) {
  float a[kLength], sum[kLength] = {};
  for (int i = 0; i < kLength; ++i) a[i] = static_cast<float>(i);
  for (int64_t r = 0; r < rounds; ++r) {
    opaque(a);
    opaque(sum);
    for (int i = 0; i < kLength; ++i) sum[i] += a[i] * 0.5f;
  }
  return rounds * kLength;
}

uint64_t read(const void* data, size_t bytes) {
  const uint64_t* words = static_cast<const uint64_t*>(data);
  uint64_t digest[8] = {};
  for (size_t i = 0; i < bytes / 8; i += 8) {
    for (size_t j = 0; j < 8; ++j) digest[j] ^= words[i + j];
  }
  return digest[0] ^ digest[1] ^ digest[2] ^ digest[3] ^ digest[4] ^ digest[5] ^ digest[6] ^
         digest[7];
}

}  // namespace

const PeakLoops* peak_loops_scalar() {
  static constexpr PeakLoops kLoops = {"scalar", int8_macs, fp32_macs, read};
  return &kLoops;
}

}  // namespace defakeq

#include "dispatch/cpu_features.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace defakeq {

#if defined(__x86_64__)

namespace {

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero when the processor does not know the leaf.
Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

// The register states that the operating system saves (XCR0).
uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

constexpr bool bit(uint32_t word, int index) { return ((word >> index) & 1u) != 0; }

}  // namespace

CpuFeatures detect_cpu_features() {
  CpuFeatures features;
  const Registers basic = cpuid(1, 0);
  const bool fma = bit(basic.ecx, 12), osxsave = bit(basic.ecx, 27), f16c = bit(basic.ecx, 29);
  if (!osxsave) return features;
  const uint64_t state = enabled_state();
  const bool ymm = (state & 0x6) == 0x6;
  const bool zmm = (state & 0xe6) == 0xe6;
  const Registers extended = cpuid(7, 0);
  features.avx2 = ymm && fma && f16c && bit(extended.ebx, 5);
  features.avx512vnni = features.avx2 && zmm && bit(extended.ebx, 16) && bit(extended.ebx, 17) &&
                        bit(extended.ebx, 30) && bit(extended.ebx, 31) && bit(extended.ecx, 1) &&
                        bit(extended.ecx, 11);
  return features;
}

std::string cpu_name() {
  char text[49] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i, 0);
    std::memcpy(text + 16 * i, &r, sizeof r);
  }
  std::string name(text);
  const size_t first = name.find_first_not_of(' ');
  if (first == std::string::npos) return "unknown x86-64";
  return name.substr(first, name.find_last_not_of(' ') - first + 1);
}

#else

#if defined(__aarch64__)

CpuFeatures detect_cpu_features() {
  CpuFeatures features;
  features.neon = true;
#if defined(__linux__)
  // asm/hwcap.h of older systems lacks the names.
  constexpr unsigned long kAsimdDp = 1ul << 20, kI8mm = 1ul << 13;
  features.neondot = (getauxval(AT_HWCAP) & kAsimdDp) != 0;
  features.i8mm = features.neondot && (getauxval(AT_HWCAP2) & kI8mm) != 0;
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  features.neondot = has("hw.optional.arm.FEAT_DotProd");
  features.i8mm = features.neondot && has("hw.optional.arm.FEAT_I8MM");
#endif
  return features;
}

#else

CpuFeatures detect_cpu_features() { return {}; }

#endif

std::string cpu_name() {
  std::ifstream model("/proc/device-tree/model");
  std::string name;
  if (model && std::getline(model, name, '\0') && !name.empty()) return name;
  return "unknown";
}

#endif

#if defined(__linux__)
namespace {

// Of the processors in the set, those at least half as strong as the strongest: on a chip with big and
// little cores a little one would hold the others up. All where the system does not say.
int big_cores(const cpu_set_t& set) {
  long capacity[CPU_SETSIZE] = {}, largest = 0;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (!CPU_ISSET(i, &set)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(i) + "/cpu_capacity");
    if (!(file >> capacity[i]) || capacity[i] <= 0) return CPU_COUNT(&set);
    if (capacity[i] > largest) largest = capacity[i];
  }
  int count = 0;
  for (const long value : capacity) count += value > 0 && 2 * value >= largest ? 1 : 0;
  return count;
}

}  // namespace
#endif

int available_threads() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return big_cores(set);
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count == 0 ? 1 : static_cast<int>(count);
}

}  // namespace defakeq

#include "defakeq/peak.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "defakeq/cpu_info.h"
#include "kernels/peak.h"

namespace defakeq {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kRuns = 5;
constexpr double kRunSeconds = 0.5e-3;

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const PeakLoops& loops_of(const char* isa) {
  const std::string name = isa == nullptr ? selected_isa() : isa;
  const CpuInfo info = cpu_info();
  if (contains(info.built, name) && contains(info.supported, name)) {
    if (name == "scalar") return *peak_loops_scalar();
#if defined(DEFAKEQ_BUILT_AVX2)
    if (name == "avx2") return *peak_loops_avx2();
#endif
#if defined(DEFAKEQ_BUILT_AVX512VNNI)
    if (name == "avx512vnni") return *peak_loops_avx512vnni();
#endif
#if defined(DEFAKEQ_BUILT_NEON)
    if (name == "neon") return *peak_loops_neon();
#endif
#if defined(DEFAKEQ_BUILT_NEONDOT)
    if (name == "neondot") return *peak_loops_neondot();
#endif
#if defined(DEFAKEQ_BUILT_I8MM)
    if (name == "i8mm") return *peak_loops_i8mm();
#endif
  }
  std::string accepted;
  for (const std::string& tier : info.built) {
    if (!contains(info.supported, tier)) continue;
    accepted += (accepted.empty() ? "" : ", ") + tier;
  }
  throw std::invalid_argument("isa: found '" + name + "', accepted here: " + accepted);
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Work a second, in units of 10^9, of fn(rounds) -> work: the median of a few runs.
template <class Fn>
double rate(Fn&& fn) {
  int64_t rounds = 1;
  for (;;) {
    const auto begin = Clock::now();
    fn(rounds);
    const double spent = seconds_since(begin);
    if (spent >= kRunSeconds) break;
    const double factor = spent > 0 ? 1.2 * kRunSeconds / spent : 16.0;
    rounds = std::max(rounds + 1,
                      static_cast<int64_t>(static_cast<double>(rounds) * std::min(factor, 16.0)));
  }
  std::array<double, kRuns> rates;
  for (double& value : rates) {
    const auto begin = Clock::now();
    const double work = static_cast<double>(fn(rounds));
    value = work / seconds_since(begin) * 1e-9;
  }
  std::nth_element(rates.begin(), rates.begin() + kRuns / 2, rates.end());
  return rates[kRuns / 2];
}

double read_rate(const PeakLoops& loops, size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  const std::unique_ptr<void, Free> data(std::aligned_alloc(64, bytes));
  if (data == nullptr) throw std::bad_alloc();
  std::memset(data.get(), 1, bytes);
  volatile uint64_t sink = 0;
  return rate([&](int64_t rounds) {
    for (int64_t r = 0; r < rounds; ++r) sink = sink ^ loops.read(data.get(), bytes);
    return rounds * static_cast<int64_t>(bytes);
  });
}

}  // namespace

double int8_peak_gmacs(const char* isa) { return rate(loops_of(isa).int8_macs); }

Peak probe_peak(const char* isa) {
  const PeakLoops& loops = loops_of(isa);
  return {rate(loops.int8_macs), rate(loops.fp32_macs), read_rate(loops, size_t{256} << 10),
          read_rate(loops, size_t{128} << 20)};
}

}  // namespace defakeq

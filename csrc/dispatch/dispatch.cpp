#include "dispatch/dispatch.h"

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

#include "defakeq/cpu_info.h"
#include "defakeq/version.h"
#include "dispatch/cpu_features.h"

namespace defakeq {

namespace {

struct Tier {
  const char* name;
  const KernelTable* table;  // null: not built
  bool supported;
};

#if defined(__aarch64__)
constexpr int kTiers = 4;
#else
constexpr int kTiers = 3;
#endif
using Tiers = std::array<Tier, kTiers>;

const Tiers& tiers() {
  static const Tiers value = [] {
    [[maybe_unused]] const CpuFeatures cpu = detect_cpu_features();
#if defined(__aarch64__)
    Tiers all = {{{"scalar", kernel_table_scalar(), true},
                  {"neon", nullptr, cpu.neon},
                  {"neondot", nullptr, cpu.neondot},
                  {"i8mm", nullptr, cpu.i8mm}}};
#if defined(DEFAKEQ_BUILT_NEON)
    all[1].table = kernel_table_neon();
#endif
#if defined(DEFAKEQ_BUILT_NEONDOT)
    all[2].table = kernel_table_neondot();
#endif
#if defined(DEFAKEQ_BUILT_I8MM)
    all[3].table = kernel_table_i8mm();
#endif
#else
    Tiers all = {{{"scalar", kernel_table_scalar(), true},
                  {"avx2", nullptr, cpu.avx2},
                  {"avx512vnni", nullptr, cpu.avx512vnni}}};
#if defined(DEFAKEQ_BUILT_AVX2)
    all[1].table = kernel_table_avx2();
#endif
#if defined(DEFAKEQ_BUILT_AVX512VNNI)
    all[2].table = kernel_table_avx512vnni();
#endif
#endif
    return all;
  }();
  return value;
}

bool usable(const Tier& tier) { return tier.table != nullptr && tier.supported; }

int find_tier(std::string_view name) {
  for (int i = 0; i < kTiers; ++i) {
    if (name == tiers()[i].name) return i;
  }
  return -1;
}

std::string names_of(bool usable_only) {
  std::string text;
  for (const Tier& tier : tiers()) {
    if (usable_only && !usable(tier)) continue;
    if (!text.empty()) text += ", ";
    text += tier.name;
  }
  return text;
}

// The highest tier that DEFAKEQ_ISA allows.
int highest_allowed() {
  const char* value = std::getenv("DEFAKEQ_ISA");
  if (value == nullptr || *value == '\0') return kTiers - 1;
  const int tier = find_tier(value);
  if (tier < 0) {
    throw std::invalid_argument(std::string("DEFAKEQ_ISA: found '") + value +
                                "', accepted: " + names_of(false));
  }
  return tier;
}

// The default choice; warns once when DEFAKEQ_ISA asks for more than there is.
int default_tier() {
  static const int value = [] {
    const int limit = highest_allowed();
    int best = 0;
    for (int i = 0; i <= limit; ++i) {
      if (usable(tiers()[i])) best = i;
    }
    if (best < limit && std::getenv("DEFAKEQ_ISA") != nullptr &&
        *std::getenv("DEFAKEQ_ISA") != '\0') {
      const Tier& wanted = tiers()[limit];
      std::fprintf(stderr, "defakeq: warning: DEFAKEQ_ISA=%s is not %s, using %s\n", wanted.name,
                   wanted.table == nullptr ? "in this build" : "supported by this processor",
                   tiers()[best].name);
    }
    return best;
  }();
  return value;
}

std::atomic<const KernelTable*> g_selected{nullptr};

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = g_selected.load(std::memory_order_acquire);
  if (table == nullptr) {
    table = tiers()[default_tier()].table;
    g_selected.store(table, std::memory_order_release);
  }
  return *table;
}

void set_isa(const char* name) {
  if (name == nullptr) {
    g_selected.store(tiers()[default_tier()].table, std::memory_order_release);
    return;
  }
  const int tier = find_tier(name);
  if (tier < 0 || !usable(tiers()[tier])) {
    throw std::invalid_argument(std::string("isa: found '") + name +
                                "', accepted here: " + names_of(true));
  }
  g_selected.store(tiers()[tier].table, std::memory_order_release);
}

const char* selected_isa() { return kernels().isa; }

CpuInfo cpu_info() {
  CpuInfo info;
  info.cpu = cpu_name();
  const int limit = highest_allowed();
  for (int i = 0; i < kTiers; ++i) {
    const Tier& tier = tiers()[i];
    if (tier.table != nullptr) info.built.emplace_back(tier.name);
    if (tier.supported) info.supported.emplace_back(tier.name);
    if (i <= limit) info.allowed.emplace_back(tier.name);
  }
  info.selected = selected_isa();
  info.threads = available_threads();
  return info;
}

const char* version() { return DEFAKEQ_VERSION; }

}  // namespace defakeq

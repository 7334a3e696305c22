// A tier that the processor lacks is refused by name; nothing of it runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "defakeq/cpu_info.h"
#include "defakeq/peak.h"
#include "dispatch/dispatch.h"

namespace defakeq {
namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

TEST(Dispatch, UsesWhatTheProcessorHasAndRefusesTheRest) {
  const CpuInfo info = cpu_info();
  EXPECT_TRUE(contains(info.supported, "scalar"));
  for (const std::string& tier : info.built) {
    SCOPED_TRACE(tier);
    if (contains(info.supported, tier)) {
      set_isa(tier.c_str());
      EXPECT_EQ(selected_isa(), tier);
      EXPECT_EQ(kernels().isa, tier);
      EXPECT_GT(int8_peak_gmacs(tier.c_str()), 0.0);
      continue;
    }
    EXPECT_THROW(set_isa(tier.c_str()), std::invalid_argument);
    EXPECT_THROW(int8_peak_gmacs(tier.c_str()), std::invalid_argument);
  }
  set_isa(nullptr);
}

TEST(Dispatch, TheDefaultIsTheHighestUsableTier) {
  const CpuInfo info = cpu_info();
  std::string highest;
  for (const std::string& tier : info.built) {
    if (contains(info.supported, tier) && contains(info.allowed, tier)) highest = tier;
  }
  EXPECT_EQ(info.selected, highest);
}

TEST(Dispatch, UnknownTiersAreRefused) {
  EXPECT_THROW(set_isa("avx9"), std::invalid_argument);
  EXPECT_THROW(set_isa(""), std::invalid_argument);
}

}  // namespace
}  // namespace defakeq

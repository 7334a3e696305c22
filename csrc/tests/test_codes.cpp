#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "pack/codes.h"

namespace defakeq {
namespace {

using Bytes = std::vector<uint8_t>;

int64_t row_bytes(int64_t count, int bits) { return (count * bits + 7) / 8; }

// Bit by bit, as the format's page says it.
uint8_t code_at(const uint8_t* row, int64_t k, int bits) {
  int code = 0;
  for (int j = 0; j < bits; ++j) {
    const int64_t bit = k * bits + j;
    code |= ((row[bit / 8] >> (bit % 8)) & 1) << j;
  }
  return static_cast<uint8_t>(code);
}

Bytes random_bytes(int64_t count, std::mt19937* engine) {
  Bytes bytes(static_cast<size_t>(count));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>((*engine)());
  return bytes;
}

int64_t rounded_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

TEST(Codes, UnpackEveryWidthAndLength) {
  std::mt19937 engine(1);
  for (int bits = 1; bits <= 8; ++bits) {
    for (int64_t count = 0; count < 150; ++count) {
      // exactly as long as the row, so that sanitizers see a read past it
      const Bytes row = random_bytes(row_bytes(count, bits), &engine);
      Bytes codes(static_cast<size_t>(rounded_up(count, kCodeGroup)));
      unpack_codes(row.data(), count, bits, codes.data());
      int64_t sum = 0;
      for (int64_t k = 0; k < count; ++k) {
        const uint8_t want = code_at(row.data(), k, bits);
        ASSERT_EQ(codes[static_cast<size_t>(k)], want)
            << bits << " bits, " << count << " codes, code " << k;
        sum += want;
      }
      EXPECT_EQ(sum_codes(codes.data(), count), sum);
    }
  }
}

TEST(Codes, LongSumsDoNotWrap) {
  const Bytes codes((size_t{1} << 24) + 100, 255);
  const auto count = static_cast<int64_t>(codes.size());
  EXPECT_EQ(sum_codes(codes.data(), count), 255 * count);
}

// Planes turned back into codes by the kernel that reads them.
TEST(Codes, PlanesHoldTheCodesOfABlock) {
  std::mt19937 engine(2);
  const KernelTable& kernels = *kernel_table_scalar();
  for (int bits = 1; bits <= 8; ++bits) {
    const int scale = bits == 1 ? 2 : 1;  // 1-bit codes come out doubled
    for (const auto& [taps, tap_length] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {1, 64}, {3, 7}, {3, 12}, {9, 33}}) {
      for (const int rows : {1, 5, kBlock}) {
        const int64_t count = taps * tap_length, stride = rounded_up(count, kCodeGroup) + 8;
        Bytes codes = random_bytes(stride * kBlock, &engine);
        for (uint8_t& code : codes) code &= static_cast<uint8_t>((1 << bits) - 1);
        const int64_t tap_steps = (tap_length + 3) / 4;
        const int64_t steps = rounded_up(taps * tap_steps, kPlaneSteps);
        Bytes planes(static_cast<size_t>(steps / kPlaneSteps * bits * 64), 0xAA);
        write_planes({codes.data(), stride, rows, taps, tap_length}, steps, bits, planes.data());
        Bytes found(static_cast<size_t>(steps * 64));
        if (bits == 8) {
          found = planes;
        } else {
          kernels.expand_codes(planes.data(), bits, steps, found.data());
        }
        Bytes want(found.size());
        for (int64_t k = 0; k < count; ++k) {
          const int64_t step = k / tap_length * tap_steps + k % tap_length / 4;
          for (int64_t n = 0; n < rows; ++n) {
            want[static_cast<size_t>(step * 64 + n * 4 + k % tap_length % 4)] =
                static_cast<uint8_t>(scale * codes[static_cast<size_t>(n * stride + k)]);
          }
        }
        ASSERT_EQ(found, want) << bits << " bits, " << taps << " x " << tap_length << ", " << rows
                               << " rows";
      }
    }
  }
}

}  // namespace
}  // namespace defakeq

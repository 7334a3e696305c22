#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/base64.h"
#include "runtime/inflate.h"

namespace defakeq {
namespace {

using Bytes = std::vector<uint8_t>;

// Streams by zlib, one for each kind of block.
const char kStored[] = "ARsA5P9wcmVjaXNpb24gcHJlY2lzaW9uIHByZWNpc2U=";
const char kFixed[] = "KyhKTc4szszPUyhAY6UCAA==";
const char kDynamic[] =
    "7czBEcAgCACwWWlF4RTEQ2H9vruDGSBA1cMeUNeEuVfBU0Ammb4NmOMNokQYgoN3WkZXXtZ6NWvCfsQXNrjJTf7JBw==";

Bytes decoded(const std::string& text) {
  Bytes bytes;
  EXPECT_TRUE(decode_base64(text, &bytes)) << text;
  return bytes;
}

std::string dynamic_text() {
  std::string text;
  for (int i = 0; i < 600; ++i) text += static_cast<char>('a' + (i * i * 7 + i / 3) % 23);
  return text;
}

TEST(Base64, KnownAnswers) {
  EXPECT_EQ(decoded(""), Bytes{});
  EXPECT_EQ(decoded("Zg=="), Bytes({'f'}));
  EXPECT_EQ(decoded("Zm8="), Bytes({'f', 'o'}));
  EXPECT_EQ(decoded("Zm9v"), Bytes({'f', 'o', 'o'}));
  EXPECT_EQ(decoded("+/+/"), Bytes({0xFB, 0xFF, 0xBF}));
}

TEST(Base64, RefusesWhatNoEncoderWrites) {
  Bytes bytes;
  for (const char* text : {"Z", "Zg", "Zg=", "Zh==", "Zm9=", "====", "Zg==Zg==", "Zm 8", "Zm9v\n",
                           "Z===", "=Zg=", "Zm-_"}) {
    EXPECT_FALSE(decode_base64(text, &bytes)) << text;
  }
}

TEST(Inflate, KnownAnswers) {
  EXPECT_EQ(inflate(decoded(kStored), 100), "precision precision precise");
  EXPECT_EQ(inflate(decoded(kFixed), 100), "precision precision precise");
  EXPECT_EQ(inflate(decoded(kDynamic), 1000), dynamic_text());
}

TEST(Inflate, KeepsTheLimit) {
  EXPECT_EQ(inflate(decoded(kDynamic), 600).size(), 600u);
  EXPECT_THROW(inflate(decoded(kDynamic), 599), std::runtime_error);
  EXPECT_THROW(inflate(decoded(kStored), 26), std::runtime_error);
}

TEST(Inflate, RefusesStreamsThatEndEarlyOrLate) {
  for (const char* text : {kStored, kFixed, kDynamic}) {
    Bytes bytes = decoded(text);
    for (size_t count = 0; count < bytes.size(); ++count) {
      const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(count));
      EXPECT_THROW(inflate(cut, 1000), std::runtime_error) << text << " of " << count;
    }
    bytes.push_back(0);
    EXPECT_THROW(inflate(bytes, 1000), std::runtime_error) << text;
  }
}

// Any bytes are refused or give at most the limit; the sanitizers watch the rest.
TEST(Inflate, AnyBytesAreReadOrRefused) {
  std::mt19937 random(5);
  int refused = 0;
  for (int i = 0; i < 30000; ++i) {
    Bytes bytes = decoded(i % 3 == 0 ? kStored : i % 3 == 1 ? kFixed : kDynamic);
    for (uint32_t n = 1 + random() % 3; n > 0; --n) {
      bytes[random() % bytes.size()] ^= static_cast<uint8_t>(1u << (random() % 8));
    }
    try {
      ASSERT_LE(inflate(bytes, 1000).size(), 1000u);
    } catch (const std::runtime_error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 5000);
}

}  // namespace
}  // namespace defakeq

// One lane: the reference that every vector type follows.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace defakeq::scalar {

struct Vec {
  static constexpr int W = 1;
  using F = float;
  using I = int32_t;
  static F load(const float* p) { return *p; }
  static void store(float* p, F v) { *p = v; }
  static F set1(float v) { return v; }
  static I load_i(const int32_t* p) { return *p; }
  static I set1_i(int32_t v) { return v; }
  static F fma(F a, F b, F c) { return std::fma(a, b, c); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F max(F a, F b) { return a > b ? a : b; }  // b when either is NaN, on every ISA
  static F min(F a, F b) { return a < b ? a : b; }
  static F abs(F a) { return std::fabs(a); }
  static F copysign(F a, F s) { return std::copysign(a, s); }
  // Round to nearest even; |v| < 2^31.
  static I rne(F v) { return static_cast<int32_t>(std::nearbyint(v)); }
  static F to_f(I v) { return static_cast<float>(v); }
  // Integer arithmetic wraps modulo 2^32, as in the vector registers.
  static I add_i(I a, I b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }
  static I sub_i(I a, I b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b));
  }
  static I mul_i(I a, I b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
  }
  // v * 2^n for v in [0.5, 2] and n in [-126, 127]
  static F scale2(F v, I n) {
    return std::bit_cast<float>(add_i(std::bit_cast<int32_t>(v), n * (1 << 23)));
  }
  static I load_s8(const int8_t* p) { return *p; }
  static void store_s8(int8_t* p, I v) { *p = static_cast<int8_t>(v); }
  // table[v + 128] for v in [-128, 127]
  static I lookup(const int8_t* table, I v) { return table[v + 128]; }
};

}  // namespace defakeq::scalar

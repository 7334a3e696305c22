// Activations as the weight operand of gemm_s8: the same 128-bit shuffles on every ISA.
#pragma once

#include <cstring>

#include "kernels/node_args.h"
#include "kernels/simd/math.h"

namespace defakeq::simd {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint16_t Halves8 __attribute__((vector_size(16)));
typedef uint32_t Words4 __attribute__((vector_size(16)));

// Elements I... of a and b end to end.
template <int... I, class T>
DQ_INLINE T select(T a, T b) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, T{I...});
#endif
}

template <class T>
DQ_INLINE T load16(const void* p) {
  T v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
DQ_INLINE void store16(void* p, T v) {
  std::memcpy(p, &v, sizeof(v));
}

DQ_INLINE Bytes16 low_bytes(Bytes16 a, Bytes16 b) {
  return select<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b);
}

DQ_INLINE Bytes16 high_bytes(Bytes16 a, Bytes16 b) {
  return select<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b);
}

// Adds up the bytes of 32-bit lanes. 16-bit halves hold the sums of kLongest vectors.
template <class V>
struct ByteSums {
  static constexpr int kLongest = 128;  // 128 * 2 * 255 < 2^16
  Words4 halves = {}, total = {};
  int count = 0;

  void add(Words4 codes) {
    halves += (codes & 0x00ff00ffu) + ((codes >> 8) & 0x00ff00ffu);
    if (++count == kLongest) flush();
  }
  void flush() {
    total += (halves & 0xffffu) + (halves >> 16);
    halves = Words4{};
    count = 0;
  }
  void store(int32_t* sums) {
    flush();
    store16(sums, total);
  }
};

// Four rows of up to 16 bytes each, from byte k on; rows that are not there have null pointers, and
// bytes that are not there are -128, whose code is 0.
DQ_INLINE Words4 row_bytes(const int8_t* row, int64_t k, int64_t length) {
  if (row != nullptr && length - k >= 16) return load16<Words4>(row + k);
  int8_t bytes[16];
  std::memset(bytes, -128, sizeof(bytes));
  if (row != nullptr) std::memcpy(bytes, row + k, static_cast<size_t>(length - k));
  return load16<Words4>(bytes);
}

// Outputs are rows: their reduction is contiguous.
template <class V>
void pack_rows(const PackCodesArgs& g) {
  const int64_t steps = (g.length + 3) / 4;
  for (int64_t n = 0; n < (g.outputs + kBlock - 1) / kBlock * kBlock; n += 4) {
    const int8_t* rows[4];
    for (int64_t i = 0; i < 4; ++i) {
      rows[i] = n + i < g.outputs ? g.x + (n + i) * g.row_stride : nullptr;
    }
    uint8_t* to = g.codes + n / kBlock * steps * 64 + n % kBlock * 4;
    ByteSums<V> sums;
    for (int64_t s = 0; s < steps; s += 4) {
      const Words4 a = row_bytes(rows[0], 4 * s, g.length), b = row_bytes(rows[1], 4 * s, g.length);
      const Words4 c = row_bytes(rows[2], 4 * s, g.length), d = row_bytes(rows[3], 4 * s, g.length);
      const Words4 ab = select<0, 4, 1, 5>(a, b), ab2 = select<2, 6, 3, 7>(a, b);
      const Words4 cd = select<0, 4, 1, 5>(c, d), cd2 = select<2, 6, 3, 7>(c, d);
      const Words4 step[4] = {select<0, 1, 4, 5>(ab, cd), select<2, 3, 6, 7>(ab, cd),
                              select<0, 1, 4, 5>(ab2, cd2), select<2, 3, 6, 7>(ab2, cd2)};
      for (int64_t i = 0; i < 4 && s + i < steps; ++i) {
        const Words4 codes = step[i] ^ 0x80808080u;
        sums.add(codes);
        store16(to + (s + i) * 64, codes);
      }
    }
    sums.store(g.sums + n);
  }
}

// Up to 16 outputs of reduction position k, as row_bytes.
DQ_INLINE Bytes16 column_bytes(const PackCodesArgs& g, int64_t k, int64_t n) {
  const int8_t* row = k < g.length ? g.x + k * g.row_stride : nullptr;
  return reinterpret_cast<Bytes16>(row_bytes(row, n, g.outputs));
}

// Outputs are columns: reduction position k of all outputs is contiguous.
template <class V>
void pack_columns(const PackCodesArgs& g) {
  const int64_t steps = (g.length + 3) / 4;
  for (int64_t n = 0; n < g.outputs; n += kBlock) {
    uint8_t* to = g.codes + n * steps * 4;
    ByteSums<V> sums[4];
    for (int64_t s = 0; s < steps; ++s) {
      const Bytes16 a = column_bytes(g, 4 * s, n), b = column_bytes(g, 4 * s + 1, n);
      const Bytes16 c = column_bytes(g, 4 * s + 2, n), d = column_bytes(g, 4 * s + 3, n);
      const auto ab = reinterpret_cast<Halves8>(low_bytes(a, b));
      const auto cd = reinterpret_cast<Halves8>(low_bytes(c, d));
      const auto ab2 = reinterpret_cast<Halves8>(high_bytes(a, b));
      const auto cd2 = reinterpret_cast<Halves8>(high_bytes(c, d));
      const Halves8 four[4] = {
          select<0, 8, 1, 9, 2, 10, 3, 11>(ab, cd), select<4, 12, 5, 13, 6, 14, 7, 15>(ab, cd),
          select<0, 8, 1, 9, 2, 10, 3, 11>(ab2, cd2), select<4, 12, 5, 13, 6, 14, 7, 15>(ab2, cd2)};
      for (int i = 0; i < 4; ++i) {
        const Words4 codes = reinterpret_cast<Words4>(four[i]) ^ 0x80808080u;
        sums[i].add(codes);
        store16(to + s * 64 + i * 16, codes);
      }
    }
    for (int i = 0; i < 4; ++i) sums[i].store(g.sums + n + 4 * i);
  }
}

}  // namespace defakeq::simd

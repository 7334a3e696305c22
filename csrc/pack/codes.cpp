#include "pack/codes.h"

#include <algorithm>
#include <cstring>

#include "kernels/simd/planes.h"

namespace defakeq {

namespace {

constexpr int64_t kVector = 4 * kBlock;  // bytes of one step of a block

constexpr uint64_t low_bits(int count) { return (uint64_t{1} << count) - 1; }

// `value` in each of the 64 / width lanes.
constexpr uint64_t lanes(uint64_t value, int width) {
  uint64_t all = 0;
  for (int at = 0; at < 64; at += width) all |= value << at;
  return all;
}

// Eight codes of kBits bits, the first lowest, to a byte each: halves of the codes move to halves
// of the word, then quarters, then single codes.
template <int kBits>
uint64_t spread(uint64_t w) {
  constexpr uint64_t four = low_bits(4 * kBits);
  constexpr uint64_t two = lanes(low_bits(2 * kBits), 32), one = lanes(low_bits(kBits), 16);
  w = (w & four) | ((w & (four << 4 * kBits)) << (32 - 4 * kBits));
  w = (w & two) | ((w & (two << 2 * kBits)) << (16 - 2 * kBits));
  return (w & one) | ((w & (one << kBits)) << (8 - kBits));
}

template <int kBits>
void unpack(const uint8_t* row, int64_t count, uint8_t* codes) {
  const int64_t bytes = (count * kBits + 7) / 8;
  int64_t at = 0;
  for (int64_t i = 0; i < count; i += kCodeGroup, at += kBits) {
    uint64_t w = 0;
    if (at + 8 <= bytes) {
      std::memcpy(&w, row + at, 8);
    } else {
      std::memcpy(&w, row + at, static_cast<size_t>(std::min<int64_t>(kBits, bytes - at)));
    }
    w = spread<kBits>(w);
    std::memcpy(codes + i, &w, 8);
  }
}

// Each of `count` values of 2 * kBits bits to two, the low one first: a loop that compilers
// vectorize.
template <int kBits>
void halve(const uint8_t* __restrict from, int64_t count, uint8_t* __restrict to) {
  constexpr auto kMask = static_cast<uint8_t>(low_bits(kBits));
  for (int64_t i = 0; i < count; ++i) {
    to[2 * i] = from[i] & kMask;
    to[2 * i + 1] = static_cast<uint8_t>(from[i] >> kBits);
  }
}

// 4-, 2- and 1-bit codes fill bytes: halved and halved again.
template <int kBits>
void unpack_whole(const uint8_t* row, int64_t count, uint8_t* codes) {
  constexpr int kEach = 8 / kBits;
  constexpr int64_t kChunk = 256;
  const int64_t bytes = (count + kEach - 1) / kEach;
  if constexpr (kBits == 4) return halve<4>(row, bytes, codes);
  uint8_t four[2 * kChunk], two[4 * kChunk];
  for (int64_t begin = 0; begin < bytes; begin += kChunk) {
    const int64_t n = std::min(kChunk, bytes - begin);
    halve<4>(row + begin, n, four);
    halve<2>(four, 2 * n, kBits == 2 ? codes + 4 * begin : two);
    if constexpr (kBits == 1) halve<1>(two, 4 * n, codes + 8 * begin);
  }
}

uint64_t word(const uint8_t* from) {
  uint64_t w;
  std::memcpy(&w, from, 8);
  return w;
}

// kPlaneSteps vectors of codes to the planes of one block.
template <int kBits>
void planes_of_block(const uint8_t* codes, uint8_t* out) {
  constexpr simd::Planes planes = simd::planes_of(kBits);
  const auto each_word = [&out](int vector, auto&& value) {
    uint8_t* to = out + vector * kVector;
    for (int64_t at = 0; at < kVector; at += 8) {
      const uint64_t w = value(at);
      std::memcpy(to + at, &w, 8);
    }
  };
  if constexpr (planes.four) {
    for (int i = 0; i < 4; ++i) {
      const uint8_t* from = codes + 2 * i * kVector;
      each_word(i, [from](int64_t at) {
        constexpr uint64_t mask = lanes(15, 8);
        return (word(from + at) & mask) | ((word(from + kVector + at) & mask) << 4);
      });
    }
  }
  if constexpr (planes.two) {
    for (int i = 0; i < 2; ++i) {
      const uint8_t* from = codes + 4 * i * kVector;
      each_word(planes.offset_two + i, [from](int64_t at) {
        uint64_t w = 0;
        for (int v = 0; v < 4; ++v) {
          w |= ((word(from + v * kVector + at) >> planes.shift_two) & lanes(3, 8)) << (2 * v);
        }
        return w;
      });
    }
  }
  if constexpr (planes.one) {
    each_word(planes.offset_one, [codes](int64_t at) {
      uint64_t w = 0;
      for (int v = 0; v < kPlaneSteps; ++v) {
        w |= ((word(codes + v * kVector + at) >> (kBits - 1)) & lanes(1, 8)) << v;
      }
      return w;
    });
  }
}

// Step by step through the taps of a block: 4 codes of each row side by side.
class Interleaver {
 public:
  explicit Interleaver(const BlockCodes& block) : b_(block) {}

  // The next `steps` vectors.
  void write(int64_t steps, uint8_t* out) {
    while (steps > 0) {
      if (tap_ == b_.taps) {
        std::memset(out, 0, static_cast<size_t>(steps * kVector));
        return;
      }
      const int64_t whole = std::min(steps, (b_.tap_length - at_) / 4);
      const uint8_t* from = b_.codes + tap_ * b_.tap_length + at_;
      for (int64_t s = 0; s < whole; ++s, from += 4, out += kVector) put(from, 4, out);
      at_ += 4 * whole;
      steps -= whole;
      if (steps > 0 && at_ < b_.tap_length) {
        put(from, b_.tap_length - at_, out);
        at_ = b_.tap_length;
        out += kVector;
        --steps;
      }
      if (at_ == b_.tap_length) {
        ++tap_;
        at_ = 0;
      }
    }
  }

 private:
  void put(const uint8_t* from, int64_t count, uint8_t* out) const {
    if (count == 4 && b_.rows == kBlock) {
      for (int64_t n = 0; n < kBlock; ++n) std::memcpy(out + 4 * n, from + n * b_.stride, 4);
      return;
    }
    std::memset(out, 0, kVector);
    for (int64_t n = 0; n < b_.rows; ++n) {
      std::memcpy(out + 4 * n, from + n * b_.stride, static_cast<size_t>(count));
    }
  }

  const BlockCodes& b_;
  int64_t tap_ = 0, at_ = 0;  // the next code
};

}  // namespace

void unpack_codes(const uint8_t* row, int64_t count, int bits, uint8_t* codes) {
  if (count == 0) return;  // `row` may be null
  simd::with_bits(bits, [&]<int kBits>() {
    if constexpr (kBits == 8) {
      std::memcpy(codes, row, static_cast<size_t>(count));
    } else if constexpr (8 % kBits == 0) {
      unpack_whole<kBits>(row, count, codes);
    } else {
      unpack<kBits>(row, count, codes);
    }
  });
}

int64_t sum_codes(const uint8_t* codes, int64_t count) {
  int64_t sum = 0;
  constexpr int64_t kRun = 1 << 16;  // its sum fits 32 bits
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = std::min(count, begin + kRun);
    uint32_t part = 0;
    for (int64_t i = begin; i < end; ++i) part += codes[i];
    sum += part;
  }
  return sum;
}

void write_planes(const BlockCodes& block, int64_t padded_steps, int bits, uint8_t* out) {
  Interleaver interleaver(block);
  if (bits == 8) return interleaver.write(padded_steps, out);
  simd::with_bits(bits, [&]<int kBits>() {
    if constexpr (kBits < 8) {
      uint8_t codes[kPlaneSteps * kVector];
      for (int64_t s = 0; s < padded_steps; s += kPlaneSteps, out += kBits * kVector) {
        interleaver.write(kPlaneSteps, codes);
        planes_of_block<kBits>(codes, out);
      }
    }
  });
}

}  // namespace defakeq

// Four lanes of NEON, for every ARM tier.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "kernels/kernel_table.h"
#include "kernels/simd/math.h"

namespace defakeq {
namespace {

struct Vec {
  static constexpr int W = 4;
  using F = float32x4_t;
  using I = int32x4_t;
  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  static F set1(float v) { return vdupq_n_f32(v); }
  static I load_i(const int32_t* p) { return vld1q_s32(p); }
  static I set1_i(int32_t v) { return vdupq_n_s32(v); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  template <int kLane>
  static F fma_lane(F a, F x, F c) {
    return vfmaq_laneq_f32(c, a, x, kLane);
  }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  // FMAX and FMIN treat NaN and signed zeros in their own way, so the choice is spelled out.
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F abs(F a) { return vabsq_f32(a); }
  static F copysign(F a, F s) { return vbslq_f32(vdupq_n_u32(0x80000000u), s, a); }
  static I rne(F v) { return vcvtnq_s32_f32(v); }
  static F to_f(I v) { return vcvtq_f32_s32(v); }
  static I add_i(I a, I b) { return vaddq_s32(a, b); }
  static I sub_i(I a, I b) { return vsubq_s32(a, b); }
  static I mul_i(I a, I b) { return vmulq_s32(a, b); }
  static F scale2(F v, I n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), vshlq_n_s32(n, 23)));
  }
  static I load_s8(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return vmovl_s16(vget_low_s16(vmovl_s8(bytes)));
  }
  static void store_s8(int8_t* p, I v) {
    const int8x16_t bytes = vreinterpretq_s8_s32(v);
    const int8x16_t even = vuzp1q_s8(bytes, bytes);
    const int32_t four = vgetq_lane_s32(vreinterpretq_s32_s8(vuzp1q_s8(even, even)), 0);
    std::memcpy(p, &four, 4);
  }
  // lanes i and i + 2, i + 1
  static float sum(F v) {
    const float32x2_t pairs = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(pairs, 0) + vget_lane_f32(pairs, 1);
  }
  // Adds rows of B blocks of bytes; int16 holds 256 of them.
  template <int B>
  static void add_rows(const int8_t* x, int64_t rows, int64_t stride, I (&sum)[B * 4]) {
    while (rows > 0) {
      const int64_t count = rows < 256 ? rows : 256;
      int16x8_t part[B * 2];
      for (auto& p : part) p = vdupq_n_s16(0);
      for (int64_t r = 0; r < count; ++r, x += stride) {
        for (int b = 0; b < B; ++b) {
          const int8x16_t v = vld1q_s8(x + b * kBlock);
          part[2 * b] = vaddw_s8(part[2 * b], vget_low_s8(v));
          part[2 * b + 1] = vaddw_high_s8(part[2 * b + 1], v);
        }
      }
      for (int i = 0; i < B * 2; ++i) {
        sum[2 * i] = vaddw_s16(sum[2 * i], vget_low_s16(part[i]));
        sum[2 * i + 1] = vaddw_high_s16(sum[2 * i + 1], part[i]);
      }
      rows -= count;
    }
  }
  static I lookup(const int8_t* table, I v) {
    int32_t lanes[W];
    vst1q_s32(lanes, v);
    for (int32_t& lane : lanes) lane = table[lane + 128];
    return vld1q_s32(lanes);
  }
};

// n < 8 bytes from p on, then zeros.
DQ_INLINE uint64_t load_few(const int8_t* p, int64_t n) {
  // both ends, which may overlap
  if (n >= 4) {
    uint32_t first, last;
    std::memcpy(&first, p, 4);
    std::memcpy(&last, p + n - 4, 4);
    return first | uint64_t{last} << (8 * (n - 4));
  }
  if (n >= 2) {
    uint16_t first;
    std::memcpy(&first, p, 2);
    return first | uint64_t{static_cast<uint8_t>(p[n - 1])} << (8 * (n - 1));
  }
  return n == 1 ? static_cast<uint8_t>(*p) : 0;
}

// n <= 16 bytes from p on, then zeros.
DQ_INLINE int8x16_t load_bytes(const int8_t* p, int64_t n) {
  if (n >= kBlock) return vld1q_s8(p);
  if (n < 8) return vreinterpretq_s8_u64(vcombine_u64(vcreate_u64(load_few(p, n)), vcreate_u64(0)));
  return vcombine_s8(vld1_s8(p), vcreate_s8(load_few(p + 8, n - 8)));
}

// The first n bytes, or all 16.
DQ_INLINE void store_bytes(int8_t* out, int64_t n, int8x16_t bytes) {
  if (n >= kBlock) return vst1q_s8(out, bytes);
  int8x8_t part = vget_low_s8(bytes);
  if ((n & 8) != 0) {
    vst1_s8(out, part);
    part = vget_high_s8(bytes);
    out += 8;
  }
  uint64_t rest = vget_lane_u64(vreinterpret_u64_s8(part), 0);
  if ((n & 4) != 0) {
    std::memcpy(out, &rest, 4);
    rest >>= 32;
    out += 4;
  }
  if ((n & 2) != 0) {
    std::memcpy(out, &rest, 2);
    rest >>= 16;
    out += 2;
  }
  if ((n & 1) != 0) *out = static_cast<int8_t>(rest);
}

// 16 bytes from or to p, which moves on by `step`: one instruction, which GCC does not choose.
DQ_INLINE int8x16_t load_step(const int8_t*& p, int64_t step) {
  int8x16_t bytes;
  __asm__ volatile("ld1 {%0.16b}, [%1], %2" : "=w"(bytes), "+r"(p) : "r"(step) : "memory");
  return bytes;
}
DQ_INLINE void store_step(int8_t*& p, int64_t step, int8x16_t bytes) {
  __asm__ volatile("st1 {%1.16b}, [%0], %2" : "+r"(p) : "w"(bytes), "r"(step) : "memory");
}
// Four times 16 bytes, `step` apart, to adjacent ones; both pointers move on.
DQ_INLINE void copy_four(const int8_t*& p, int64_t step, int8_t*& out) {
  __asm__ volatile(
      "ld1 {v0.16b}, [%0], %2\n\tld1 {v1.16b}, [%0], %2\n\tld1 {v2.16b}, [%0], %2\n\t"
      "ld1 {v3.16b}, [%0], %2\n\tst1 {v0.16b, v1.16b, v2.16b, v3.16b}, [%1], #64"
      : "+r"(p), "+r"(out)
      : "r"(step)
      : "memory", "v0", "v1", "v2", "v3");
}

}  // namespace
}  // namespace defakeq

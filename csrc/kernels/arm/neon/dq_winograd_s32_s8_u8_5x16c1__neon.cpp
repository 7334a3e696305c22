// smlal by lane takes a channel of 16 outputs at a time.
#include "kernels/arm/kernels.h"
#include "kernels/arm/neon/winograd_tiles.h"
#include "kernels/arm/vec.h"
#include "kernels/simd/winograd.h"

namespace defakeq::neon {

namespace {

struct Winograd {
  using Vec = defakeq::Vec;
  using Short = int16x8_t;
  static constexpr int kShorts = 8;
  static constexpr bool kMultipliesAndAdds = true;
  static constexpr int kTiles = 5;

  static Short zero() { return vdupq_n_s16(0); }
  static Short load(const int8_t* p) { return vmovl_s8(vld1_s8(p)); }
  static Short load_part(const int8_t* p, int64_t n) {
    return vmovl_s8(vcreate_s8(load_few(p, n)));
  }
  // Stores and goes on to the next position.
  static void store_next(int16_t*& p, int64_t stride, Short v) {
    asm volatile("st1 {%1.8h}, [%0], %2" : "+r"(p) : "w"(v), "r"(stride * 2) : "memory");
  }
  static Short add(Short a, Short b) { return vaddq_s16(a, b); }
  static Short sub(Short a, Short b) { return vsubq_s16(a, b); }
  template <int kBits>
  static Short add_shifted(Short a, Short b) {
    return vmlaq_n_s16(a, b, 1 << kBits);
  }
  template <int kBits>
  static Short sub_shifted(Short a, Short b) {
    return vmlsq_n_s16(a, b, 1 << kBits);
  }
  template <int kFactor>
  static int32x4_t add_times(int32x4_t a, int32x4_t b) {
    return kFactor < 0 ? vmlsq_n_s32(a, b, -kFactor) : vmlaq_n_s32(a, b, kFactor);
  }
  static void store_i(int32_t* p, int32x4_t v) { vst1q_s32(p, v); }
  template <int kBits>
  static int32x4_t sra(int32x4_t v) {
    return vshrq_n_s32(v, kBits);
  }

  // Eight outputs of one channel each.
  static void load_codes(const uint8_t* step, Short (&q)[8]) {
    const uint8x16x4_t channels = vld4q_u8(step);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      q[2 * c] = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(channels.val[c])));
      q[2 * c + 1] = vreinterpretq_s16_u16(vmovl_high_u8(channels.val[c]));
    }
  }
  static void load_zero_points(const int32_t* zero_point, Short (&zero)[8]) {
    for (int i = 0; i < 8; ++i) {
      const int32_t* from = zero_point + i % 2 * 8;
      zero[i] = vmovn_high_s32(vmovn_s32(vld1q_s32(from)), vld1q_s32(from + 4));
    }
  }

  // [R][16] of one position.
  template <int R>
  DQ_MEMBER static void products(const int16_t* v, int64_t tile_stride, const int16_t* u,
                                 int64_t steps, int32_t* out) {
    multiply_tiles<R>(v, tile_stride, u, steps, out);
  }
};

}  // namespace

DQ_DEFINE_WINOGRAD(Winograd);

}  // namespace defakeq::neon

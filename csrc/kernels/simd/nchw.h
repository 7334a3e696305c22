// Images between [channels][pixels] float32 and [pixels][channels].
#pragma once

#include "kernels/node_args.h"
#include "kernels/simd/rows.h"

namespace defakeq::simd {

inline constexpr int64_t kNchwPixels = 64;
inline constexpr int64_t kNchwChannels = 16;

template <class T>
DQ_INLINE void interleave(const T (&planes)[kNchwChannels][kNchwPixels], int64_t channels,
                          int64_t pixels, int64_t stride, T* out) {
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) out[p * stride + c] = planes[c][p];
  }
}

template <class V>
void from_nchw(const float* x, int64_t channels, int64_t pixels, const Post& post, void* out,
               int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; p += kNchwPixels) {
    const int64_t n = end - p < kNchwPixels ? end - p : kNchwPixels;
    for (int64_t c = 0; c < channels; c += kNchwChannels) {
      const int64_t count = channels - c < kNchwChannels ? channels - c : kNchwChannels;
      const float* from = x + c * pixels + p;
      if (post.out_dtype == DType::kFloat32) {
        float planes[kNchwChannels][kNchwPixels];
        for (int64_t i = 0; i < count; ++i) {
          std::memcpy(planes[i], from + i * pixels, sizeof(float) * static_cast<size_t>(n));
        }
        interleave(planes, count, n, channels, static_cast<float*>(out) + p * channels + c);
        continue;
      }
      int8_t planes[kNchwChannels][kNchwPixels];
      for (int64_t i = 0; i < count; ++i) {
        quantize<V>(from + i * pixels, n, post.inv_scale, post.zero_point, post.low, post.high,
                    planes[i]);
      }
      auto* to = static_cast<int8_t*>(out) + p * channels + c;
      if (channels == 3) {
        for (int64_t i = 0; i < n; ++i) {
          to[3 * i] = planes[0][i];
          to[3 * i + 1] = planes[1][i];
          to[3 * i + 2] = planes[2][i];
        }
      } else {
        interleave(planes, count, n, channels, to);
      }
    }
  }
}

template <class V>
void to_nchw(const Operand& x, int64_t channels, int64_t pixels, float* out, int64_t begin,
             int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    for_blocks(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
      Block<V> y;
      load_block<V>(x, p * channels + c, n, y);
      float lanes[kBlock];
      for (int i = 0; i < kBlock / V::W; ++i) V::store(lanes + i * V::W, y[i]);
      for (int i = 0; i < n; ++i) out[(c + i) * pixels + p] = lanes[i];
    });
  }
}

}  // namespace defakeq::simd

// Pooling and interpolation over NHWC images. Plain loops over channels: the compiler vectorizes
// them, and integer sums and maxima do not depend on how.
#pragma once

#include "kernels/node_args.h"
#include "kernels/simd/blocks.h"

namespace defakeq::simd {

// A window of pixels: rows [y0, y1), columns [x0, x1), and what an average divides by.
struct Window {
  int64_t y0, y1, x0, x1;
  int64_t divisor;
};

inline constexpr int64_t kPoolChannels = 64;

// Sums of int8 channels [c, c + n) over a window, or over pixels of any stride.
DQ_INLINE void add_window(const int8_t* x, int64_t width, int64_t channels, const Window& w,
                          int64_t c, int64_t n, int32_t* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] = 0;
  for (int64_t y = w.y0; y < w.y1; ++y) {
    for (int64_t px = w.x0; px < w.x1; ++px) {
      const int8_t* from = x + (y * width + px) * channels + c;
      if (n == kPoolChannels) {
        for (int64_t i = 0; i < kPoolChannels; ++i) sum[i] += from[i];
      } else {
        for (int64_t i = 0; i < n; ++i) sum[i] += from[i];
      }
    }
  }
}

// Sums of B blocks of adjacent int8 channels over `rows` rows, `stride` bytes apart.
template <class V, int B>
DQ_INLINE void sum_columns(const int8_t* x, int64_t rows, int64_t stride,
                           typename V::I (&sum)[B * kBlock / V::W]) {
  constexpr int kParts = B * kBlock / V::W;
  for (int64_t r = 0; r < rows; ++r) {
    for (int i = 0; i < kParts; ++i) {
      sum[i] = V::add_i(sum[i], V::load_s8(x + r * stride + i * V::W));
    }
  }
}

// The mean over rows of B blocks of channels from c on; of the last, n channels are there.
template <class V, int B>
DQ_INLINE void mean_columns(const Operand& x, int64_t rows, int64_t channels, const Post& post,
                            void* out, int64_t c, int n) {
  constexpr int kParts = kBlock / V::W;
  const auto* bytes = static_cast<const int8_t*>(x.data);
  typename V::I sum[B * kParts];
  for (auto& part : sum) part = V::set1_i(0);
  // The bytes behind the channels of a part block are read too, as long as they belong to x.
  int64_t whole = rows;
  while (whole > 0 && (whole - 1) * channels + c + B * kBlock > rows * channels) --whole;
  sum_columns<V, B>(bytes + c, whole, channels, sum);
  for (int64_t r = whole; r < rows; ++r) {
    int8_t tail[B * kBlock] = {};
    std::memcpy(tail, bytes + r * channels + c, static_cast<size_t>(n));
    sum_columns<V, B>(tail, 1, 0, sum);
  }
  const typename V::F factor = V::set1(x.quantization.scale * (1.0f / static_cast<float>(rows)));
  const typename V::I zero = V::set1_i(static_cast<int32_t>(rows * x.quantization.zero_point));
  for (int b = 0; b < B; ++b) {
    Block<V> y;
    for (int i = 0; i < kParts; ++i) {
      y[i] = V::mul(V::to_f(V::sub_i(sum[b * kParts + i], zero)), factor);
    }
    finish_block<V>(post, out, 0, 0, c + b * kBlock, b + 1 < B ? kBlock : n, y);
  }
}

// One output pixel `row` of an average.
template <class V>
DQ_INLINE void average_window(const Operand& x, int64_t width, int64_t channels, const Window& w,
                              const Post& post, void* out, int64_t row) {
  constexpr int kParts = kBlock / V::W;
  const int64_t pixels = (w.y1 - w.y0) * (w.x1 - w.x0);
  const float inv = 1.0f / static_cast<float>(w.divisor);
  if (x.dtype == DType::kInt8) {
    const auto* bytes = static_cast<const int8_t*>(x.data);
    const typename V::F factor = V::set1(x.quantization.scale * inv);
    const auto zero = static_cast<int32_t>(pixels * x.quantization.zero_point);
    for (int64_t c = 0; c < channels; c += kPoolChannels) {
      const int64_t n = channels - c < kPoolChannels ? channels - c : kPoolChannels;
      int32_t sum[kPoolChannels] = {};
      add_window(bytes, width, channels, w, c, n, sum);
      for_blocks(n, [&](int64_t b, int lanes) __attribute__((always_inline)) {
        Block<V> y;
        for (int i = 0; i < kParts; ++i) {
          const typename V::I s = V::sub_i(V::load_i(sum + b + i * V::W), V::set1_i(zero));
          y[i] = V::mul(V::to_f(s), factor);
        }
        finish_block<V>(post, out, channels, row, c + b, lanes, y);
      });
    }
    return;
  }
  for_blocks(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    Block<V> y, v;
    for (auto& part : y) part = V::set1(0.0f);
    for (int64_t py = w.y0; py < w.y1; ++py) {
      for (int64_t px = w.x0; px < w.x1; ++px) {
        load_block<V>(x, (py * width + px) * channels + c, n, v);
        for (int i = 0; i < kParts; ++i) y[i] = V::add(y[i], v[i]);
      }
    }
    for (auto& part : y) part = V::mul(part, V::set1(inv));
    finish_block<V>(post, out, channels, row, c, n, y);
  });
}

template <int kBytes>
struct PoolBytes {
  typedef int8_t Vector __attribute__((vector_size(kBytes)));
};

// The largest of kBytes channels from c on.
template <int kBytes>
DQ_INLINE void max_bytes(const int8_t* x, int64_t width, int64_t channels, const Window& w,
                         int64_t c, int8_t* out) {
  typename PoolBytes<kBytes>::Vector best;
  std::memset(&best, -128, sizeof(best));
  for (int64_t y = w.y0; y < w.y1; ++y) {
    const int8_t* from = x + (y * width + w.x0) * channels + c;
    for (int64_t px = w.x0; px < w.x1; ++px, from += channels) {
      typename PoolBytes<kBytes>::Vector v;
      std::memcpy(&v, from, sizeof(v));
      best = v > best ? v : best;
    }
  }
  std::memcpy(out + c, &best, sizeof(best));
}

// All of at least kBytes channels; the last ones, some of them again.
template <int kBytes>
DQ_INLINE void max_channels(const int8_t* x, int64_t width, int64_t channels, const Window& w,
                            int8_t* out) {
  int64_t c = 0;
  for (; c + kBytes <= channels; c += kBytes) max_bytes<kBytes>(x, width, channels, w, c, out);
  if (c < channels) max_bytes<kBytes>(x, width, channels, w, channels - kBytes, out);
}

template <class V>
DQ_INLINE void max_window(const Operand& x, int64_t width, int64_t channels, const Window& w,
                          const Post& post, void* out, int64_t row) {
  constexpr int kParts = kBlock / V::W;
  if (x.dtype == DType::kInt8 && post.out_dtype == DType::kInt8) {
    // the same quantization on both sides: bytes are compared as they are
    const auto* bytes = static_cast<const int8_t*>(x.data);
    auto* to = static_cast<int8_t*>(out) + row * channels;
    if (channels >= 64) return max_channels<64>(bytes, width, channels, w, to);
    if (channels >= 32) return max_channels<32>(bytes, width, channels, w, to);
    if (channels >= 16) return max_channels<16>(bytes, width, channels, w, to);
    for (int64_t c = 0; c < channels; ++c) {
      int8_t best = -128;
      for (int64_t y = w.y0; y < w.y1; ++y) {
        for (int64_t px = w.x0; px < w.x1; ++px) {
          const int8_t v = bytes[(y * width + px) * channels + c];
          best = v > best ? v : best;
        }
      }
      to[c] = best;
    }
    return;
  }
  for_blocks(channels, [&](int64_t c, int n) __attribute__((always_inline)) {
    Block<V> y, v;
    for (auto& part : y) part = V::set1(-INFINITY);
    for (int64_t py = w.y0; py < w.y1; ++py) {
      for (int64_t px = w.x0; px < w.x1; ++px) {
        load_block<V>(x, (py * width + px) * channels + c, n, v);
        for (int i = 0; i < kParts; ++i) y[i] = V::max(v[i], y[i]);
      }
    }
    finish_block<V>(post, out, channels, row, c, n, y);
  });
}

// Channels [begin, end) of the mean over all rows; begin is a multiple of 16.
template <class V>
void mean_rows(const Operand& x, int64_t rows, int64_t channels, const Post& post, void* out,
               int64_t begin, int64_t end) {
  constexpr int kParts = kBlock / V::W;
  if (x.dtype == DType::kInt8) {
    int64_t c = begin;
    for (; c + 4 * kBlock <= end; c += 4 * kBlock) {
      mean_columns<V, 4>(x, rows, channels, post, out, c, kBlock);
    }
    for_blocks(end - c, [&](int64_t b, int n) __attribute__((always_inline)) {
      mean_columns<V, 1>(x, rows, channels, post, out, c + b, n);
    });
    return;
  }
  const typename V::F inv = V::set1(1.0f / static_cast<float>(rows));
  for_blocks(end - begin, [&](int64_t c, int n) __attribute__((always_inline)) {
    Block<V> y, v;
    for (auto& part : y) part = V::set1(0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      load_block<V>(x, r * channels + begin + c, n, v);
      for (int i = 0; i < kParts; ++i) y[i] = V::add(y[i], v[i]);
    }
    for (auto& part : y) part = V::mul(part, inv);
    finish_block<V>(post, out, 0, 0, begin + c, n, y);
  });
}

DQ_INLINE Window pool_window(const Pool2dArgs& g, int64_t oy, int64_t ox) {
  const int64_t y = oy * g.stride[0] - g.padding[0], x = ox * g.stride[1] - g.padding[1];
  // torch lets an average's window reach into the padding, but not beyond it
  const int64_t y_end = y + g.kernel[0] < g.h + g.padding[0] ? y + g.kernel[0] : g.h + g.padding[0];
  const int64_t x_end = x + g.kernel[1] < g.w + g.padding[1] ? x + g.kernel[1] : g.w + g.padding[1];
  Window w;
  w.y0 = y > 0 ? y : 0;
  w.x0 = x > 0 ? x : 0;
  w.y1 = y_end < g.h ? y_end : g.h;
  w.x1 = x_end < g.w ? x_end : g.w;
  w.divisor = g.count_include_pad ? (y_end - y) * (x_end - x) : (w.y1 - w.y0) * (w.x1 - w.x0);
  return w;
}

template <class V>
void pool2d(const Pool2dArgs& g, const Post& post, int64_t out_w, int64_t begin, int64_t end) {
  for (int64_t oy = begin; oy < end; ++oy) {
    for (int64_t ox = 0; ox < out_w; ++ox) {
      const Window w = pool_window(g, oy, ox);
      const int64_t row = oy * out_w + ox;
      if (g.mode == PoolMode::kMax) {
        max_window<V>(g.x, g.w, g.channels, w, post, g.out.data, row);
      } else {
        average_window<V>(g.x, g.w, g.channels, w, post, g.out.data, row);
      }
    }
  }
}

// Rows [begin, end) of the output.
template <class V>
void adaptive_avg_pool2d(const AdaptivePoolArgs& g, const Post& post, int64_t begin, int64_t end) {
  for (int64_t oy = begin; oy < end; ++oy) {
    for (int64_t ox = 0; ox < g.out_w; ++ox) {
      Window w;
      w.y0 = oy * g.h / g.out_h;
      w.y1 = ((oy + 1) * g.h + g.out_h - 1) / g.out_h;
      w.x0 = ox * g.w / g.out_w;
      w.x1 = ((ox + 1) * g.w + g.out_w - 1) / g.out_w;
      w.divisor = (w.y1 - w.y0) * (w.x1 - w.x0);
      average_window<V>(g.x, g.w, g.channels, w, post, g.out, oy * g.out_w + ox);
    }
  }
}

template <class V>
void interpolate(const InterpolateArgs& g, const InterpolateAxis& ys, const InterpolateAxis& xs,
                 const Post& post, int64_t begin, int64_t end) {
  constexpr int kParts = kBlock / V::W;
  for (int64_t oy = begin; oy < end; ++oy) {
    const InterpolatePoint py = ys.at(oy);
    for (int64_t ox = 0; ox < g.out_w; ++ox) {
      const InterpolatePoint px = xs.at(ox);
      const auto pixel = [&](int64_t y, int64_t x) { return (y * g.w + x) * g.channels; };
      const int64_t p00 = pixel(py.low, px.low), p01 = pixel(py.low, px.high);
      const int64_t p10 = pixel(py.high, px.low), p11 = pixel(py.high, px.high);
      const typename V::F lx = V::set1(px.weight), ly = V::set1(py.weight);
      for_blocks(g.channels, [&](int64_t c, int n) __attribute__((always_inline)) {
        Block<V> y;
        load_block<V>(g.x, p00 + c, n, y);
        if (g.bilinear) {
          Block<V> v01, v10, v11;
          load_block<V>(g.x, p01 + c, n, v01);
          load_block<V>(g.x, p10 + c, n, v10);
          load_block<V>(g.x, p11 + c, n, v11);
          for (int i = 0; i < kParts; ++i) {
            const typename V::F top = V::fma(V::sub(v01[i], y[i]), lx, y[i]);
            const typename V::F bottom = V::fma(V::sub(v11[i], v10[i]), lx, v10[i]);
            y[i] = V::fma(V::sub(bottom, top), ly, top);
          }
        }
        finish_block<V>(post, g.out.data, g.channels, oy * g.out_w + ox, c, n, y);
      });
    }
  }
}

}  // namespace defakeq::simd

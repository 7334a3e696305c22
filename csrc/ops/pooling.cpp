#include <algorithm>

#include "dispatch/dispatch.h"
#include "kernels/node_args.h"
#include "ops/node_checks.h"

namespace defakeq {

namespace {

constexpr int64_t kMaxWindow = int64_t{1} << 23;  // 255 * 2^23 fits int32

void check_window(int64_t pixels) {
  if (pixels > kMaxWindow) {
    refuse("window", std::to_string(pixels) + " pixels",
           "at most " + std::to_string(kMaxWindow) + ", so that sums fit int32");
  }
}

void check_image(const Operand& x, int64_t h, int64_t w, int64_t channels) {
  check_range("h", h, 1, kMaxSize);
  check_range("w", w, 1, kMaxSize);
  check_range("channels", channels, 1, kMaxSize);
  check_operand("x", x);
}

bool same(const Quantization& a, const Quantization& b) {
  return a.scale == b.scale && a.zero_point == b.zero_point && a.bits == b.bits;
}

}  // namespace

int64_t pool_out_size(int64_t in, int32_t kernel, int32_t stride, int32_t padding, bool ceil_mode) {
  const int64_t span = in + 2 * int64_t{padding} - kernel;
  if (span < 0) return 0;
  int64_t out = (span + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  // a window must not start in the padding on the right
  if (ceil_mode && (out - 1) * stride >= in + padding) --out;
  return out;
}

void pool2d(const Pool2dArgs& args, Parallel& parallel) {
  check_image(args.x, args.h, args.w, args.channels);
  for (int d = 0; d < 2; ++d) {
    check_range("kernel", args.kernel[d], 1, kMaxSize);
    check_range("stride", args.stride[d], 1, kMaxSize);
    if (args.padding[d] < 0 || args.padding[d] > args.kernel[d] / 2) {
      refuse("padding", std::to_string(args.padding[d]), "0 to half of the kernel");
    }
  }
  if (args.x.dtype == DType::kInt8) check_window(int64_t{args.kernel[0]} * args.kernel[1]);
  const int64_t out_h =
      pool_out_size(args.h, args.kernel[0], args.stride[0], args.padding[0], args.ceil_mode);
  const int64_t out_w =
      pool_out_size(args.w, args.kernel[1], args.stride[1], args.padding[1], args.ceil_mode);
  if (out_h < 1 || out_w < 1) {
    refuse("x", std::to_string(args.h) + "x" + std::to_string(args.w),
           "an image that the kernel fits into");
  }
  if (args.mode == PoolMode::kMax && args.x.dtype == DType::kInt8 &&
      args.out.dtype == DType::kInt8 && !same(args.x.quantization, args.out.quantization)) {
    refuse("out", "another quantization", "that of x, since a maximum does not change it");
  }
  const Post post = result_post(args.out);
  share(parallel, out_h, out_w * args.channels * args.kernel[0] * args.kernel[1] / 8 + 1,
        [&](int64_t, int64_t begin, int64_t end) {
          kernels().pool2d(args, post, out_w, begin, end);
        });
}

void adaptive_avg_pool2d(const Operand& x, int64_t h, int64_t w, int64_t channels, int64_t out_h,
                         int64_t out_w, const Result& out, Parallel& parallel) {
  check_image(x, h, w, channels);
  check_range("out_h", out_h, 1, kMaxSize);
  check_range("out_w", out_w, 1, kMaxSize);
  if (x.dtype == DType::kInt8) check_window(h * w);
  const AdaptivePoolArgs args{x, h, w, channels, out_h, out_w, out.data};
  const Post post = result_post(out);
  share(parallel, out_h, h * w * channels / out_h / 8 + 1,
        [&](int64_t, int64_t begin, int64_t end) {
          kernels().adaptive_avg_pool2d(args, post, begin, end);
        });
}

void mean_rows(const Operand& x, int64_t rows, int64_t channels, const Result& out,
               Parallel& parallel) {
  check_range("rows", rows, 1, kMaxSize);
  check_image(x, 1, 1, channels);
  if (x.dtype == DType::kInt8) check_window(rows);
  const Post post = result_post(out);
  // a cache line of channels at least
  constexpr int64_t kGrain = 4 * kBlock;
  share(parallel, (channels + kGrain - 1) / kGrain, rows * kGrain / 8 + 1,
        [&](int64_t, int64_t begin, int64_t end) {
          kernels().mean_rows(x, rows, channels, post, out.data, begin * kGrain,
                              std::min(end * kGrain, channels));
        });
}

}  // namespace defakeq

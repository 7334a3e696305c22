#include "dispatch/dispatch.h"
#include "ops/node_checks.h"

namespace defakeq {

namespace {

// Lane sums of float32 ones stay exact up to here, so that a count is what it says.
constexpr int64_t kMaxChannels = int64_t{1} << 24;

void check_rows(int64_t rows, int64_t channels, const Operand& x) {
  check_size("rows", rows);
  check_range("channels", channels, 1, kMaxSize);
  if (channels > kMaxChannels) {
    refuse("channels", std::to_string(channels), "at most " + std::to_string(kMaxChannels));
  }
  check_operand("x", x);
}

}  // namespace

void layer_norm(const LayerNormArgs& args, Parallel& parallel) {
  check_rows(args.rows, args.channels, args.x);
  check_range("count", args.count, args.channels, kMaxSize);
  if (args.count > kMaxChannels) {
    refuse("count", std::to_string(args.count), "at most " + std::to_string(kMaxChannels));
  }
  if (!(args.eps >= 0.0f)) refuse("eps", std::to_string(args.eps), "0 or more");
  const Post post = result_post(args.out);
  share(parallel, args.rows, args.channels * 4,
        [&](int64_t, int64_t begin, int64_t end) { kernels().layer_norm(args, post, begin, end); });
}

void softmax(const Operand& x, int64_t rows, int64_t channels, const Result& out,
             Parallel& parallel) {
  check_rows(rows, channels, x);
  const Post post = result_post(out);
  share(parallel, rows, channels * 8, [&](int64_t, int64_t begin, int64_t end) {
    kernels().softmax(x, channels, post, out.data, begin, end);
  });
}

void reduce(ReduceFn fn, const Operand& x, int64_t rows, int64_t channels, const Result& out,
            Parallel& parallel) {
  check_rows(rows, channels, x);
  const Post post = result_post(out);
  share(parallel, rows, channels, [&](int64_t, int64_t begin, int64_t end) {
    kernels().reduce(fn, x, channels, post, out.data, begin, end);
  });
}

}  // namespace defakeq

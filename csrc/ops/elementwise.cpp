#include <cstring>
#include <numeric>

#include "dispatch/dispatch.h"
#include "kernels/node_args.h"
#include "ops/node_checks.h"
#include "ops/post.h"

namespace defakeq {
namespace {

// Elements [begin, end) as a single row: short rows would leave most of a vector's lanes idle.
void binary_elements(BinaryArgs args, int64_t begin, int64_t end) {
  args.a.data = offset(args.a.data, begin, args.a.dtype);
  if (args.b_shape == Broadcast::kNone) args.b.data = offset(args.b.data, begin, args.b.dtype);
  args.out = offset(args.out, begin, args.post.out_dtype);
  args.channels = end - begin;
  kernels().binary(args, 0, 1);
}

// As many of the rows [begin, end) as make whole vectors, several rows as one, with b as often;
// returns the first row that is left.
int64_t binary_periods(BinaryArgs args, int64_t begin, int64_t end) {
  constexpr int64_t kMost = 1024;
  const int64_t channels = args.channels, times = kBlock / std::gcd(channels, int64_t{kBlock});
  if (channels * times > kMost || end - begin < 2 * times) return begin;
  alignas(64) char repeated[kMost * sizeof(float)];
  const int64_t bytes = channels * size_of(args.b.dtype);
  for (int64_t i = 0; i < times; ++i) {
    std::memcpy(repeated + i * bytes, args.b.data, static_cast<size_t>(bytes));
  }
  args.a.data = offset(args.a.data, begin * channels, args.a.dtype);
  args.out = offset(args.out, begin * channels, args.post.out_dtype);
  args.b.data = repeated;
  args.channels = channels * times;
  const int64_t periods = (end - begin) / times;
  kernels().binary(args, 0, periods);
  return begin + periods * times;
}

}  // namespace

void lookup(const int8_t* x, int64_t count, const int8_t* table, int8_t* out, Parallel& parallel) {
  check_size("count", count);
  check_pointer("x", x);
  check_pointer("table", table);
  check_pointer("out", out);
  share_elements(parallel, count, [&](int64_t begin, int64_t end) {
    kernels().lookup(x + begin, end - begin, table, out + begin);
  });
}

void unary(UnaryFn fn, const Operand& x, int64_t count, const Result& out, Parallel& parallel) {
  check_range("fn", static_cast<int64_t>(fn), 0, static_cast<int64_t>(UnaryFn::kReciprocal));
  check_size("count", count);
  check_operand("x", x);
  const Post post = result_post(out);
  share_elements(parallel, count, [&](int64_t begin, int64_t end) {
    kernels().unary(fn, x, post, out.data, begin, end);
  });
}

void binary(BinaryFn fn, const Operand& a, const Operand& b, Broadcast b_shape, int64_t rows,
            int64_t channels, Activation activation, const Result& out, Parallel& parallel) {
  check_range("fn", static_cast<int64_t>(fn), 0, static_cast<int64_t>(BinaryFn::kMin));
  check_range("b_shape", static_cast<int64_t>(b_shape), 0, static_cast<int64_t>(Broadcast::kRow));
  check_range("activation", static_cast<int64_t>(activation), 0,
              static_cast<int64_t>(Activation::kSigmoid));
  check_size("rows", rows);
  check_range("channels", channels, 1, kMaxSize);
  check_operand("a", a);
  check_operand("b", b);
  BinaryArgs args{fn, a, b, b_shape, channels, result_post(out), out.data};
  args.post.activation = activation;
  if (b_shape == Broadcast::kNone || b_shape == Broadcast::kScalar) {
    return share_elements(parallel, rows * channels,
                          [&](int64_t begin, int64_t end) { binary_elements(args, begin, end); });
  }
  share(parallel, rows, channels, [&](int64_t, int64_t begin, int64_t end) {
    if (b_shape == Broadcast::kChannel && channels % kBlock != 0) {
      begin = binary_periods(args, begin, end);
    }
    kernels().binary(args, begin, end);
  });
}

}  // namespace defakeq

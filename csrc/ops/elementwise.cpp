#include <array>
#include <cstring>

#include "dispatch/dispatch.h"
#include "kernels/node_args.h"
#include "ops/node_checks.h"

namespace defakeq {
namespace {

constexpr int64_t kWide = 64;  // channels from which rows fill vectors well enough

// How many rows are read as one: a power of two that divides their number and makes them `kWide`.
int64_t rows_as_one(int64_t rows, int64_t channels) {
  int64_t count = 1;
  while (count * channels < kWide && rows % (2 * count) == 0) count *= 2;
  return count;
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
  std::array<char, 2 * kWide * sizeof(float)> repeated;
  if (b_shape != Broadcast::kRow) {
    const int64_t count = rows_as_one(rows, channels);
    if (count > 1 && b_shape == Broadcast::kChannel) {
      const int64_t bytes = channels * (b.dtype == DType::kInt8 ? 1 : 4);
      for (int64_t i = 0; i < count; ++i) std::memcpy(&repeated[i * bytes], b.data, bytes);
      args.b.data = repeated.data();
    }
    args.channels *= count;
    rows /= count;
  }
  args.post.activation = activation;
  share(parallel, rows, args.channels,
        [&](int64_t, int64_t begin, int64_t end) { kernels().binary(args, begin, end); });
}

}  // namespace defakeq

// Data movement: chunks by index, and images between NCHW and NHWC.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dispatch/dispatch.h"
#include "ops/node_checks.h"

namespace defakeq {

namespace {

void copy_range(const CopyArgs& args, int64_t begin, int64_t end) {
  const auto bytes = static_cast<size_t>(args.chunk_bytes);
  char* to = static_cast<char*>(args.out) + begin * args.chunk_bytes;
  for (int64_t i = begin; i < end;) {
    // chunks that lie side by side move as one
    int64_t run = 1;
    const int32_t first = args.index[i];
    if (first < 0) {
      while (i + run < end && args.index[i + run] < 0) ++run;
      std::memset(to, args.fill, bytes * static_cast<size_t>(run));
    } else {
      int64_t at = first, input = 0;
      while (at >= args.input_chunks[input]) at -= args.input_chunks[input++];
      while (i + run < end && at + run < args.input_chunks[input] &&
             args.index[i + run] == first + run) {
        ++run;
      }
      std::memcpy(to, static_cast<const char*>(args.inputs[input]) + at * args.chunk_bytes,
                  bytes * static_cast<size_t>(run));
    }
    to += run * args.chunk_bytes;
    i += run;
  }
}

}  // namespace

void copy_chunks(const CopyArgs& args, Parallel& parallel) {
  check_range("input_count", args.input_count, 0, 1 << 20);
  check_size("count", args.count);
  check_size("chunk_bytes", args.chunk_bytes);
  check_pointer("index", args.index);
  check_pointer("out", args.out);
  int64_t chunks = 0;
  for (int64_t i = 0; i < args.input_count; ++i) {
    check_range("input_chunks", args.input_chunks[i], 0, INT32_MAX);
    if (args.input_chunks[i] > 0) check_pointer("inputs", args.inputs[i]);
    chunks += args.input_chunks[i];
  }
  int32_t low = 0, high = -1;
  for (int64_t i = 0; i < args.count; ++i) {
    low = std::min(low, args.index[i]);
    high = std::max(high, args.index[i]);
  }
  if (low < -1 || high >= chunks) {
    refuse("index", std::to_string(low < -1 ? low : high),
           "-1 to " + std::to_string(chunks - 1) + ", the chunks of the inputs");
  }
  share(parallel, args.count, args.chunk_bytes,
        [&](int64_t, int64_t begin, int64_t end) { copy_range(args, begin, end); });
}

void from_nchw(const float* x, int64_t channels, int64_t pixels, const Result& out,
               Parallel& parallel) {
  check_size("channels", channels);
  check_size("pixels", pixels);
  check_pointer("x", x);
  const Post post = result_post(out);
  const KernelTable& k = kernels();
  constexpr int64_t kGrain = 64;
  share(parallel, (pixels + kGrain - 1) / kGrain, kGrain * channels,
        [&](int64_t, int64_t begin, int64_t end) {
          k.from_nchw(x, channels, pixels, post, out.data, begin * kGrain,
                      std::min(end * kGrain, pixels));
        });
}

void to_nchw(const Operand& x, int64_t channels, int64_t pixels, float* out, Parallel& parallel) {
  check_size("channels", channels);
  check_size("pixels", pixels);
  check_operand("x", x);
  check_pointer("out", out);
  const KernelTable& k = kernels();
  share(parallel, pixels, channels, [&](int64_t, int64_t begin, int64_t end) {
    k.to_nchw(x, channels, pixels, out, begin, end);
  });
}

}  // namespace defakeq

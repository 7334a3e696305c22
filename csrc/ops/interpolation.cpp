#include <algorithm>
#include <cmath>

#include "dispatch/dispatch.h"
#include "kernels/node_args.h"
#include "ops/node_checks.h"

namespace defakeq {

void interpolate(const InterpolateArgs& args, Parallel& parallel) {
  check_range("h", args.h, 1, kMaxSize);
  check_range("w", args.w, 1, kMaxSize);
  check_range("channels", args.channels, 1, kMaxSize);
  check_range("out_h", args.out_h, 1, kMaxSize);
  check_range("out_w", args.out_w, 1, kMaxSize);
  check_operand("x", args.x);
  for (const double scale : args.scale) {
    if (!(scale >= 0.0 && scale <= 16777216.0)) {
      refuse("scale", std::to_string(scale), "0 to 2^24");
    }
  }
  const InterpolateAxis ys{args.h, args.out_h, args.scale[0], args.bilinear, args.align_corners};
  const InterpolateAxis xs{args.w, args.out_w, args.scale[1], args.bilinear, args.align_corners};
  const Post post = result_post(args.out);
  share(parallel, args.out_h, args.out_w * args.channels, [&](int64_t, int64_t begin, int64_t end) {
    kernels().interpolate(args, ys, xs, post, begin, end);
  });
}

}  // namespace defakeq

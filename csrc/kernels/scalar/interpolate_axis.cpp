#include <cmath>

#include "kernels/node_args.h"

namespace defakeq {

InterpolatePoint InterpolateAxis::at(int64_t o) const {
  const auto position = static_cast<double>(o);
  double from = position * scale;
  if (bilinear && !align_corners) from = (position + 0.5) * scale - 0.5;
  if (!(from > 0.0)) from = 0.0;
  const auto last = static_cast<double>(in - 1);
  const double floor = std::floor(from) < last ? std::floor(from) : last;
  const auto low = static_cast<int64_t>(floor);
  return {low, low + (low < in - 1 ? 1 : 0), static_cast<float>(from - floor)};
}

}  // namespace defakeq

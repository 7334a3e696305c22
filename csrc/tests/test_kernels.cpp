// Every function of every ISA's kernel table writes the bytes that the scalar table writes, over
// random shapes and extreme values. Buffers are exactly as large as the contracts say and outputs
// are compared with everything around them, so a read or write too far is noticed as well.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "dispatch/cpu_features.h"
#include "kernels/kernel_table.h"
#include "kernels/winograd_args.h"
#include "pack/shuffle_plan.h"

namespace defakeq {
namespace {

constexpr uint8_t kUntouched = 0xab;

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  bool once_in(int n) { return between(1, n) == 1; }
  float uniform(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(engine_);
  }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }

  // Values in [low, high]: random, constant at a bound, or bounds only.
  template <class T>
  std::vector<T> integers(int64_t count, int64_t low, int64_t high) {
    std::vector<T> v(static_cast<size_t>(count));
    const int64_t how = between(0, 5);
    for (T& x : v) {
      x = static_cast<T>(how == 0                    ? low
                         : how == 1                  ? high
                         : how == 2 && between(0, 1) ? low
                         : how == 2                  ? high
                                                     : between(low, high));
    }
    return v;
  }

  // Finite values of many magnitudes, exact zeros and ties of rounding among them.
  std::vector<float> floats(int64_t count, float limit) {
    std::vector<float> v(static_cast<size_t>(count));
    const bool small_steps = once_in(4);
    for (float& x : v) {
      x = uniform(-limit, limit);
      if (once_in(8)) x = 0.0f;
      if (once_in(16)) x = -0.0f;
      if (once_in(16)) x = x * 1e-30f;
      if (small_steps) x = std::nearbyint(x * 2) * 0.5f;
    }
    return v;
  }

  // Any float, NaN and infinities included.
  std::vector<float> wild_floats(int64_t count) {
    using Limits = std::numeric_limits<float>;
    std::vector<float> v = floats(count, 300.0f);
    for (float& x : v) {
      if (!once_in(3)) continue;
      x = one_of({Limits::quiet_NaN(), -Limits::quiet_NaN(), Limits::infinity(),
                  -Limits::infinity(), Limits::max(), Limits::lowest(), Limits::denorm_min(),
                  -Limits::denorm_min(), 2147483648.0f, -2147483648.0f, 4294967296.0f, 1e20f});
    }
    return v;
  }

 private:
  std::mt19937 engine_;
};

std::vector<uint8_t> untouched(int64_t bytes) {
  return std::vector<uint8_t>(static_cast<size_t>(bytes), kUntouched);
}

class AlignedBytes {
 public:
  explicit AlignedBytes(size_t size)
      : size_(size), data_(static_cast<uint8_t*>(::operator new(size + 1, kAlign))) {
    std::memset(data_, kUntouched, size + 1);
  }
  ~AlignedBytes() { ::operator delete(data_, kAlign); }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  uint8_t* data() { return data_; }
  bool overrun() const { return data_[size_] != kUntouched; }

 private:
  static constexpr std::align_val_t kAlign{64};
  size_t size_;
  uint8_t* data_;
};

void expect_same(const std::vector<uint8_t>& expected, const std::vector<uint8_t>& found,
                 const std::string& what) {
  ASSERT_EQ(expected.size(), found.size());
  const auto at = std::mismatch(expected.begin(), expected.end(), found.begin());
  if (at.first == expected.end()) return;
  FAIL() << what << ": byte " << (at.first - expected.begin()) << " of " << expected.size()
         << " is " << int{*at.second} << ", scalar writes " << int{*at.first};
}

// --- what the products share: epilogue, rows, output --------------------------------------------

struct Epilogue {
  Post post;
  std::vector<float> residual_f;
  std::vector<int8_t> residual_q;
  int64_t out_stride;
  int64_t out_bytes;
};

// For `rows` rows of n outputs, stored at the same stride as the residual.
Epilogue random_epilogue(Random& random, int64_t rows, int64_t n) {
  Epilogue e;
  Post& p = e.post;
  p.activation = random.one_of({Activation::kNone, Activation::kNone, Activation::kRelu,
                                Activation::kRelu6, Activation::kHardswish, Activation::kSilu,
                                Activation::kGelu, Activation::kSigmoid});
  p.out_dtype = random.one_of({DType::kFloat32, DType::kInt8, DType::kInt8});
  p.inv_scale = random.uniform(0.5f, 40.0f);
  const int bits = static_cast<int>(random.one_of({8, 8, 8, 7, 4}));
  const int qmin = -(1 << (bits - 1)), qmax = (1 << (bits - 1)) - 1;
  p.zero_point =
      static_cast<int32_t>(random.one_of<int64_t>({0, qmin, qmax, random.between(qmin, qmax)}));
  p.low = static_cast<float>(qmin - p.zero_point);
  p.high = static_cast<float>(qmax - p.zero_point);
  e.out_stride = n + random.one_of({0, 0, 1, 13});
  p.residual_stride = n + random.one_of({0, 0, 1, 5});
  const int64_t residuals = (rows - 1) * p.residual_stride + n;
  switch (random.between(0, 3)) {
    case 0:
      e.residual_f = random.floats(residuals, 4.0f);
      p.residual_dtype = DType::kFloat32;
      p.residual = e.residual_f.data();
      break;
    case 1:
      e.residual_q = random.integers<int8_t>(residuals, -128, 127);
      p.residual_dtype = DType::kInt8;
      p.residual = e.residual_q.data();
      p.residual_scale = random.uniform(0.001f, 0.1f);
      p.residual_zero_point = static_cast<int32_t>(random.between(-128, 127));
      break;
    default:
      break;
  }
  e.out_bytes = ((rows - 1) * e.out_stride + n) * (p.out_dtype == DType::kFloat32 ? 4 : 1);
  return e;
}

std::string to_text(const Post& p) {
  std::ostringstream s;
  s << " activation=" << static_cast<int>(p.activation) << " out=" << static_cast<int>(p.out_dtype)
    << " residual=" << (p.residual == nullptr ? -1 : static_cast<int>(p.residual_dtype));
  return s.str();
}

// The float parameters of `lanes` outputs, for m rows.
struct Lanes {
  std::vector<float> scale, bias, row_scale, row_bias;
  int64_t row_bias_stride;
};

Lanes random_lanes(Random& random, int64_t m, int64_t lanes, float spread) {
  Lanes l;
  for (int64_t i = 0; i < lanes; ++i) {
    l.scale.push_back(std::pow(10.0f, random.uniform(-2.0f, 0.5f)) / spread);
  }
  l.bias = random.floats(lanes, 3.0f);
  for (int64_t i = 0; i < m; ++i) l.row_scale.push_back(random.uniform(0.01f, 2.0f));
  l.row_bias_stride = lanes + random.one_of({0, 0, 3});
  l.row_bias = random.floats((m - 1) * l.row_bias_stride + lanes, 3.0f);
  return l;
}

template <class Args>
void set_lanes(Args& a, Random& random, const Lanes& l) {
  a.scale = l.scale.data();
  a.bias = l.bias.data();
  a.row_scale = random.once_in(3) ? l.row_scale.data() : nullptr;
  a.row_bias = random.once_in(3) ? l.row_bias.data() : nullptr;
  a.row_bias_stride = l.row_bias_stride;
}

// Rows of `taps` runs that may overlap; each row is its own allocation.
template <class T>
struct Rows {
  std::vector<std::vector<T>> data;
  std::vector<const T*> pointers;
  std::vector<int64_t> tap_offset;
};

template <class T>
Rows<T> random_rows(Random& random, int64_t m, int taps, int64_t length,
                    const std::function<std::vector<T>(int64_t)>& values) {
  Rows<T> rows;
  int64_t size = length;
  for (int t = 0; t < taps; ++t) {
    rows.tap_offset.push_back(random.between(0, int64_t{3} * length));
    size = std::max(size, rows.tap_offset.back() + length);
  }
  for (int64_t r = 0; r < m; ++r) rows.data.push_back(values(size));
  for (const auto& row : rows.data) rows.pointers.push_back(row.data());
  return rows;
}

int max_code(int bits) { return bits == 1 ? 2 : (1 << bits) - 1; }

// --- the kernels --------------------------------------------------------------------------------

// The codes of `a` (plain, of which `length` of a tap's positions count) as `isa` reads them.
std::vector<uint8_t> arranged(const KernelTable& isa, const GemmS8Args& a,
                              std::vector<uint8_t> codes, int64_t length) {
  if (isa.arrange_codes == nullptr) return codes;
  for (int b = 0; b < a.blocks; ++b) {
    for (int t = 0; t < a.taps; ++t) {
      isa.arrange_codes(codes.data() + b * a.w_stride + t * a.steps * 64, a.bits, a.steps, length);
    }
  }
  return codes;
}

// The products alone of `a` with codes in order: [m][stride].
std::vector<int32_t> products_of(const GemmS8Args& a, int64_t stride) {
  std::vector<int32_t> sums(static_cast<size_t>((a.m - 1) * stride + a.blocks * kBlock));
  for (int64_t r = 0; r < a.m; ++r) {
    for (int n = 0; n < a.blocks * kBlock; ++n) {
      const uint8_t* w = a.w + n / kBlock * a.w_stride + n % kBlock * 4;
      int32_t& sum = sums[static_cast<size_t>(r * stride + n)];
      for (int t = 0; t < a.taps; ++t) {
        const int8_t* x = a.rows[r] + a.tap_offset[t];
        for (int64_t k = 0; k < a.steps * 4; ++k) {
          sum += w[(t * a.steps + k / 4) * 64 + k % 4] * x[k];
        }
      }
    }
  }
  return sums;
}

// Checks gemm_s8 on arranged codes or planes, finish_s8 on their products, gemv_s8 on planes.
void check_product_s8(const KernelTable& isa, Random& random, bool gemv, int bits) {
  const KernelTable& scalar = *kernel_table_scalar();
  GemmS8Args a{};
  a.bits = bits;
  a.m = random.between(1, gemv ? 6 : 2 * kTileRows + 1);
  a.taps = gemv ? 1 : static_cast<int>(random.one_of({1, 1, 2, 3, 9}));
  a.steps = gemv ? kPlaneSteps * random.between(1, 12)
                 : random.between(1, random.one_of({3, 20, 150, 300}));
  if (!gemv && random.once_in(3)) a.steps = (a.steps + kPlaneSteps - 1) / kPlaneSteps * kPlaneSteps;
  a.planes = !gemv && isa.reads_planes && bits < 8 && random.once_in(2) &&
             (a.taps == 1 || a.steps % kPlaneSteps == 0);
  const bool planes = gemv || a.planes;
  const int64_t plane_blocks = (a.taps * a.steps + kPlaneSteps - 1) / kPlaneSteps;
  a.blocks = static_cast<int>(random.between(1, gemv ? kGemvBlocks : kTileBlocks));
  const int64_t lanes = int64_t{a.blocks} * kBlock;
  a.n = static_cast<int>(random.once_in(2) ? lanes : lanes - random.between(0, kBlock - 1));

  const int64_t block_bytes = planes ? plane_blocks * bits * 64 : a.taps * a.steps * int64_t{64};
  a.w_stride = block_bytes + random.one_of({0, 0, 64});
  const int64_t w_bytes = (a.blocks - 1) * a.w_stride + block_bytes;
  std::vector<uint8_t> w = random.integers<uint8_t>(w_bytes, 0, planes ? 255 : max_code(bits));
  if (!planes && bits == 1) {
    for (uint8_t& code : w) code = code & 2;
  }
  // Activations that meet no code may be anything, and are not in the row's sum.
  const int64_t length = a.steps * 4 - (planes ? 0 : random.one_of({0, 0, 1, 3}));
  for (int64_t i = 0; !planes && i < w_bytes; ++i) {
    if (i % a.w_stride >= block_bytes) continue;
    const int64_t step = i % a.w_stride / 64 % a.steps;
    if (step * 4 + i % 4 >= length) w[static_cast<size_t>(i)] = 0;
  }
  const std::vector<uint8_t> in_order = planes ? w : arranged(isa, a, w, length);
  a.w = w.data();

  const Rows<int8_t> rows =
      random_rows<int8_t>(random, a.m, a.taps, a.steps * 4,
                          [&](int64_t count) { return random.integers<int8_t>(count, -128, 127); });
  a.rows = rows.pointers.data();
  a.tap_offset = rows.tap_offset.data();
  std::vector<int32_t> row_sum(static_cast<size_t>(a.m));
  scalar.row_sums(a.rows, a.m, a.tap_offset, a.taps, length, row_sum.data());
  a.row_sum = row_sum.data();
  const std::vector<int32_t> zero_point = random.integers<int32_t>(lanes, 0, 255);
  const std::vector<int32_t> correction = random.integers<int32_t>(lanes, -(1 << 24), 1 << 24);
  a.zero_point = zero_point.data();
  a.correction = correction.data();
  const Lanes l =
      random_lanes(random, a.m, lanes, static_cast<float>(max_code(bits) * 32 * a.taps * a.steps));
  set_lanes(a, random, l);
  const Epilogue e = random_epilogue(random, a.m, a.n);
  a.post = e.post;
  a.out_stride = e.out_stride;

  // half-precision inputs, which the reference takes as a bias a row
  GemmS8Args reference = a;
  std::vector<uint8_t> codes;
  if (a.planes) {
    reference.planes = false;
    reference.w_stride = plane_blocks * kPlaneSteps * 64;
    codes.resize(static_cast<size_t>(a.blocks * reference.w_stride));
    for (int b = 0; b < a.blocks; ++b) {
      scalar.expand_codes(w.data() + b * a.w_stride, bits, plane_blocks * kPlaneSteps,
                          codes.data() + b * reference.w_stride);
    }
    reference.w = codes.data();
  }
  GemmF32Args chain{};
  Rows<float> half;
  std::vector<float> half_w, sums;
  if (!gemv && isa.fuses_half_inputs && random.once_in(2)) {
    a.half_length = random.between(1, 20);
    a.half_w_stride = a.taps * a.half_length * kBlock;
    half = random_rows<float>(random, a.m, a.taps, a.half_length,
                              [&](int64_t count) { return random.floats(count, 10.0f); });
    half_w = random.floats(a.blocks * a.half_w_stride, 10.0f);
    sums.resize(static_cast<size_t>(a.m * lanes));
    a.half_rows = chain.rows = half.pointers.data();
    a.half_tap_offset = chain.tap_offset = half.tap_offset.data();
    a.half_w = chain.w = half_w.data();
    chain.m = a.m;
    chain.taps = a.taps;
    chain.length = a.half_length;
    chain.blocks = a.blocks;
    chain.w_stride = a.half_w_stride;
    chain.chain_from_bias = true;
    chain.bias = a.bias;
    chain.row_bias = a.row_bias;
    chain.row_bias_stride = a.row_bias_stride;
    chain.out = sums.data();
    chain.out_stride = lanes;
    chain.n = static_cast<int>(lanes);
    chain.last_lanes = kBlock;
    scalar.gemm_f32(chain);
    reference.row_bias = sums.data();
    reference.row_bias_stride = lanes;
  }

  std::vector<uint8_t> expected = untouched(e.out_bytes), found = expected;
  reference.out = expected.data();
  (gemv ? scalar.gemv_s8 : scalar.gemm_s8)(reference);
  a.out = found.data();
  a.w = in_order.data();
  (gemv ? isa.gemv_s8 : isa.gemm_s8)(a);
  std::ostringstream what;
  what << "bits=" << bits << (a.planes ? " planes" : "") << " m=" << a.m << " taps=" << a.taps
       << " steps=" << a.steps << " n=" << a.n << to_text(a.post);
  expect_same(expected, found, what.str());
  if (planes) return;

  GemmS8Args finish = a;
  finish.sums_stride = lanes + random.one_of({0, 0, 16});
  finish.w = w.data();
  const std::vector<int32_t> products = products_of(finish, finish.sums_stride);
  finish.sums = products.data();
  finish.rows = nullptr;
  finish.w = nullptr;
  found = untouched(e.out_bytes);
  finish.out = found.data();
  isa.finish_s8(finish);
  expect_same(expected, found, "finish_s8 " + what.str());
}

void check_gemm_s8(const KernelTable& isa, Random& random, int trial) {
  check_product_s8(isa, random, false, trial % 8 + 1);
}

void check_gemv_s8(const KernelTable& isa, Random& random, int trial) {
  check_product_s8(isa, random, true, trial % 8 + 1);
}

void check_gemm_f32(const KernelTable& isa, Random& random, int) {
  GemmF32Args a{};
  a.m = random.between(1, 5 * kTileRows + 1);
  a.taps = static_cast<int>(random.one_of({1, 1, 2, 9}));
  a.length = random.between(1, random.one_of({3, 40, 300}));
  a.blocks = static_cast<int>(random.between(1, kTileBlocks));
  const int64_t lanes = int64_t{a.blocks} * kBlock;
  a.n = static_cast<int>(random.once_in(2) ? lanes : lanes - random.between(0, kBlock - 1));
  const int64_t block_floats = a.taps * a.length * kBlock;
  a.w_stride = block_floats + random.one_of({0, 0, 16});
  const float limit = random.one_of({1.0f, 255.0f, 1e15f});
  const std::vector<float> w = random.floats((a.blocks - 1) * a.w_stride + block_floats, limit);
  a.w = w.data();
  const Rows<float> rows = random_rows<float>(
      random, a.m, a.taps, a.length, [&](int64_t count) { return random.floats(count, limit); });
  a.rows = rows.pointers.data();
  a.tap_offset = rows.tap_offset.data();
  a.chain_from_bias = random.once_in(2);
  a.last_lanes = static_cast<int>(random.between(1, kBlock));
  const Lanes l = random_lanes(random, a.m, lanes,
                               limit * limit * std::sqrt(static_cast<float>(a.taps * a.length)));
  set_lanes(a, random, l);
  const Epilogue e = random_epilogue(random, a.m, a.n);
  a.post = e.post;
  a.out_stride = e.out_stride;

  std::vector<uint8_t> expected = untouched(e.out_bytes), found = expected;
  a.out = expected.data();
  kernel_table_scalar()->gemm_f32(a);
  a.out = found.data();
  isa.gemm_f32(a);
  // What the lanes after last_lanes hold is open.
  const int64_t size = a.post.out_dtype == DType::kFloat32 ? 4 : 1;
  const int64_t wanted = std::min<int64_t>(a.n, lanes - kBlock + a.last_lanes);
  for (int64_t r = 0; r < a.m; ++r) {
    for (std::vector<uint8_t>* out : {&expected, &found}) {
      std::fill_n(out->begin() + (r * a.out_stride + wanted) * size, (a.n - wanted) * size,
                  kUntouched);
    }
  }
  std::ostringstream what;
  what << "m=" << a.m << " taps=" << a.taps << " length=" << a.length << " n=" << a.n
       << " last_lanes=" << a.last_lanes << " from_bias=" << a.chain_from_bias << to_text(a.post);
  expect_same(expected, found, what.str());
}

// `count` different numbers below `width`, adjacent or not.
std::vector<int32_t> random_columns(Random& random, int64_t count, int64_t width) {
  std::vector<int32_t> all(static_cast<size_t>(width));
  std::iota(all.begin(), all.end(), 0);
  const bool adjacent = random.once_in(2);
  if (adjacent) {
    std::rotate(all.begin(), all.begin() + random.between(0, width - count), all.end());
  } else {
    for (size_t i = all.size() - 1; i > 0; --i) {
      std::swap(all[i], all[static_cast<size_t>(random.between(0, static_cast<int64_t>(i)))]);
    }
  }
  all.resize(static_cast<size_t>(count));
  return all;
}

template <class T>
std::vector<T> picked(const std::vector<T>& wide, int64_t stride, int64_t rows,
                      const std::vector<int32_t>& columns) {
  std::vector<T> own;
  for (int64_t r = 0; r < rows; ++r) {
    for (const int32_t c : columns) own.push_back(wide[static_cast<size_t>(r * stride + c)]);
  }
  return own;
}

void check_gemm_f32_turned(const KernelTable& isa, Random& random, int trial) {
  if (isa.gemm_f32_turned == nullptr) return;
  TurnedF32Args a{};
  a.vectors = random.between(1, 9);
  a.taps = static_cast<int>(random.one_of({1, 1, 2, 9}));
  a.channels = random.between(1, random.one_of({3, 20, 200}));
  a.zero_point = static_cast<int32_t>(random.between(-128, 127));
  a.outputs = trial % kLanes + 1;
  a.pairs = a.outputs == 1 && random.once_in(2);

  // turned pixels, 16 at a time; each pixel is its own allocation
  const int64_t turned_count = random.between(1, 12), length = a.taps * a.channels;
  std::vector<std::vector<int8_t>> pixels;
  AlignedBytes turned(static_cast<size_t>(turned_count * turned_bytes(a.channels, a.pairs)));
  for (int64_t i = 0; i < turned_count; ++i) {
    const int8_t* from[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      pixels.push_back(random.integers<int8_t>(a.channels, -128, 127));
      from[l] = pixels.back().data();
    }
    isa.turn_pixels(from, a.channels, a.pairs, a.zero_point,
                    turned.data() + i * turned_bytes(a.channels, a.pairs));
  }
  EXPECT_FALSE(turned.overrun());

  // which of them meet, and for the reference the same as rows of floats
  const int64_t rows = a.vectors * kLanes;
  std::vector<int32_t> order = random_columns(random, rows, rows);
  std::vector<std::vector<float>> floats(static_cast<size_t>(rows));
  std::vector<const uint8_t*> x;
  for (int64_t v = 0; v < a.vectors; ++v) {
    for (int t = 0; t < a.taps; ++t) {
      const int64_t from = random.between(0, turned_count - 1);
      x.push_back(turned.data() + from * turned_bytes(a.channels, a.pairs));
      for (int l = 0; l < kLanes; ++l) {
        std::vector<float>& row =
            floats[static_cast<size_t>(order[static_cast<size_t>(v * kLanes + l)])];
        for (const int8_t q : pixels[static_cast<size_t>(from * kLanes + l)]) {
          row.push_back(static_cast<float>(q - a.zero_point));
        }
      }
    }
  }
  a.x = x.data();
  const std::vector<float> w = random.floats(length * kBlock, 255.0f);
  a.w = w.data();
  const Lanes l =
      random_lanes(random, rows, kBlock, 65025.0f * std::sqrt(static_cast<float>(length)));
  set_lanes(a, random, l);
  const int64_t width = a.outputs + random.one_of({0, 1, 40});
  const std::vector<int32_t> columns = random_columns(random, a.outputs, width);
  a.column = columns.data();
  const Epilogue e = random_epilogue(random, rows, width);
  a.post = e.post;
  a.out_stride = e.out_stride;
  const bool float_out = a.post.out_dtype == DType::kFloat32;

  GemmF32Args b{};
  std::vector<const float*> pointers;
  for (const auto& row : floats) pointers.push_back(row.data());
  const int64_t no_offset = 0;
  b.rows = pointers.data();
  b.m = rows;
  b.tap_offset = &no_offset;
  b.taps = 1;
  b.length = length;
  b.blocks = 1;
  b.w = a.w;
  b.scale = a.scale;
  b.bias = a.bias;
  b.row_scale = a.row_scale;
  b.row_bias = a.row_bias;
  b.row_bias_stride = a.row_bias_stride;
  b.last_lanes = b.n = a.outputs;
  b.out_stride = a.outputs;
  b.post = a.post;
  b.post.residual_stride = a.outputs;
  std::vector<float> near_f;
  std::vector<int8_t> near_q;
  if (!e.residual_f.empty()) {
    near_f = picked(e.residual_f, a.post.residual_stride, rows, columns);
    b.post.residual = near_f.data();
  } else if (!e.residual_q.empty()) {
    near_q = picked(e.residual_q, a.post.residual_stride, rows, columns);
    b.post.residual = near_q.data();
  }
  const size_t size = float_out ? 4 : 1;
  std::vector<uint8_t> own = untouched(rows * a.outputs * static_cast<int64_t>(size));
  b.out = own.data();
  kernel_table_scalar()->gemm_f32(b);

  std::vector<uint8_t> expected = untouched(e.out_bytes), found = expected;
  for (int32_t& row : order) {
    if (random.once_in(5)) row = -1;
  }
  a.row = order.data();
  for (const int32_t row : order) {
    for (int n = 0; row >= 0 && n < a.outputs; ++n) {
      std::memcpy(
          expected.data() +
              static_cast<size_t>(row * a.out_stride + columns[static_cast<size_t>(n)]) * size,
          own.data() + static_cast<size_t>(row * a.outputs + n) * size, size);
    }
  }
  a.out = found.data();
  isa.gemm_f32_turned(a);
  std::ostringstream what;
  what << "vectors=" << a.vectors << " taps=" << a.taps << " channels=" << a.channels
       << " outputs=" << a.outputs << to_text(a.post);
  expect_same(expected, found, what.str());
}

// The geometry of a depthwise convolution with at least one output; returns its output height.
template <class Args>
int64_t random_geometry(Args& a, Random& random) {
  const bool square3 = random.once_in(2);
  const int32_t stride3 = random.once_in(3) ? 2 : 1;
  const bool wide = random.once_in(3);  // rows that take several segments
  int64_t out[2];
  do {
    a.h = random.between(1, 11);
    a.w = wide ? random.between(12, 40) : random.between(1, 11);
    const int64_t in[2] = {a.h, a.w};
    for (int d = 0; d < 2; ++d) {
      a.kernel[d] = square3 ? 3 : static_cast<int32_t>(random.between(1, 7));
      a.stride[d] = square3 ? stride3 : static_cast<int32_t>(random.one_of({1, 1, 2, 3}));
      a.dilation[d] = square3 ? 1 : static_cast<int32_t>(random.one_of({1, 1, 2}));
      a.padding[d] = static_cast<int32_t>(random.between(0, 4));
      const int64_t reach = int64_t{a.kernel[d] - 1} * a.dilation[d];
      out[d] = in[d] + 2 * a.padding[d] <= reach
                   ? 0
                   : (in[d] + 2 * a.padding[d] - reach - 1) / a.stride[d] + 1;
    }
  } while (out[0] < 1 || out[1] < 1);
  a.out_w = out[1];
  a.channels = random.once_in(2) ? random.between(1, 36) : random.between(37, 140);
  a.x_stride = a.channels + random.one_of({0, 0, 7});
  a.oy0 = random.once_in(2) ? 0 : random.between(0, out[0] - 1);
  a.oy1 = random.once_in(2) ? out[0] : random.between(a.oy0 + 1, out[0]);
  a.has_row_scale = random.once_in(3);
  a.row_scale = random.uniform(0.01f, 2.0f);
  return out[0];
}

template <class Args>
std::string geometry_text(const Args& a) {
  std::ostringstream s;
  s << "h=" << a.h << " w=" << a.w << " channels=" << a.channels << " rows=" << a.oy0 << ".."
    << a.oy1;
  for (int d = 0; d < 2; ++d) {
    s << " kernel=" << a.kernel[d] << " stride=" << a.stride[d] << " padding=" << a.padding[d]
      << " dilation=" << a.dilation[d];
  }
  return s.str() + to_text(a.post);
}

// Of a geometry and how outputs leave, with random weights and activations.
void compare_dw_s8(const KernelTable& isa, Random& random, DwS8Args a, const Epilogue& e,
                   float scale_by) {
  const int64_t blocks = (a.channels + kBlock - 1) / kBlock;
  const std::vector<int8_t> x =
      random.integers<int8_t>((a.h * a.w - 1) * a.x_stride + a.channels, -128, 127);
  a.x = x.data();
  a.pad_value =
      static_cast<int8_t>(random.one_of<int64_t>({0, -128, 127, random.between(-128, 127)}));
  const int64_t group_rows = int64_t{(a.kernel[0] + 3) / 4} * 4;
  const int64_t largest = random.one_of<int64_t>({7, 28, 127});
  std::vector<int8_t> weight =
      random.integers<int8_t>(blocks * group_rows * a.kernel[1] * kBlock, -largest - 1, largest);
  for (size_t i = 0; i < weight.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    const int64_t group = at / (a.kernel[1] * kBlock * 4) % (group_rows / 4);
    if (group * 4 + at % 4 >= a.kernel[0]) weight[i] = 0;
  }
  a.weight = weight.data();
  const std::vector<int32_t> correction =
      random.integers<int32_t>(blocks * kBlock, -(1 << 20), 1 << 20);
  // what zero points of 8 bits leave, up to 128, and more
  const int32_t least = random.once_in(3) ? -255 : -128, most = random.one_of({127, 128, 255});
  const std::vector<int32_t> factor = random.integers<int32_t>(blocks * kBlock, least, most);
  a.correction = correction.data();
  a.window_factor = random.once_in(2) ? factor.data() : nullptr;
  Lanes l = random_lanes(random, 1, blocks * kBlock,
                         64.0f * 128.0f * static_cast<float>(a.kernel[0] * a.kernel[1]));
  for (float& scale : l.scale) scale *= scale_by;
  a.scale = l.scale.data();
  a.bias = l.bias.data();
  a.post = e.post;
  a.out_stride = e.out_stride;

  std::vector<uint8_t> expected = untouched(e.out_bytes), found = expected;
  a.out = expected.data();
  kernel_table_scalar()->dw_s8(a);
  AlignedBytes scratch(isa.dw_s8_scratch(a));
  a.scratch = scratch.data();
  a.out = found.data();
  isa.dw_s8(a);
  EXPECT_FALSE(scratch.overrun()) << geometry_text(a);
  expect_same(expected, found,
              geometry_text(a) + (a.window_factor != nullptr ? " window" : " no window"));
}

void check_dw_s8(const KernelTable& isa, Random& random, int) {
  DwS8Args a{};
  const int64_t out_h = random_geometry(a, random);
  compare_dw_s8(isa, random, a, random_epilogue(random, out_h * a.out_w, a.channels), 1.0f);
}

// What most depthwise layers of networks are: small kernels of stride 1 or 2 with plain int8 out.
void check_dw_s8_usual(const KernelTable& isa, Random& random, int) {
  DwS8Args a{};
  const int32_t kernel = random.once_in(4) ? 5 : 3, stride = random.once_in(4) ? 2 : 1;
  const int32_t padding = random.once_in(6) ? static_cast<int32_t>(random.between(0, 4)) : 1;
  int64_t out_h = 0;
  do {
    a.h = random.between(1, 7);
    a.w = random.between(1, random.one_of({5, 8, 20}));
    for (int d = 0; d < 2; ++d) {
      a.kernel[d] = kernel;
      a.stride[d] = stride;
      a.dilation[d] = 1;
      a.padding[d] = padding;
    }
    out_h = a.h + 2 * padding < kernel ? 0 : (a.h + 2 * padding - kernel) / stride + 1;
    a.out_w = a.w + 2 * padding < kernel ? 0 : (a.w + 2 * padding - kernel) / stride + 1;
  } while (out_h < 1 || a.out_w < 1);
  a.channels = random.once_in(4) ? random.between(1, 40) : 8 * random.between(1, 5);
  a.x_stride = a.channels + random.one_of({0, 0, 7});
  a.oy0 = random.once_in(2) ? 0 : random.between(0, out_h - 1);
  a.oy1 = random.once_in(2) ? out_h : random.between(a.oy0 + 1, out_h);
  Epilogue e;
  Post& p = e.post;
  p.out_dtype = DType::kInt8;
  p.inv_scale = 1.0f;
  p.zero_point =
      static_cast<int32_t>(random.one_of<int64_t>({0, -128, 127, random.between(-128, 127)}));
  p.activation = p.zero_point == -128 || random.once_in(4) ? Activation::kRelu : Activation::kNone;
  p.low = static_cast<float>(-128 - p.zero_point);
  p.high = static_cast<float>(127 - p.zero_point);
  const std::vector<int8_t> table = random.integers<int8_t>(256, -128, 127);
  if (random.once_in(4)) p.table = table.data();
  e.out_stride = a.channels + random.one_of({0, 0, 1, 13});
  e.out_bytes = (out_h * a.out_w - 1) * e.out_stride + a.channels;
  // bytes of all values, and outputs that no int16 holds
  compare_dw_s8(isa, random, a, e, random.one_of({1.0f, 40.0f, 1e4f}));
}

// What dw_s8_scratch asks for does not depend on the output rows: one buffer serves every task.
void check_dw_s8_scratch(const KernelTable& isa, Random& random, int) {
  DwS8Args a{};
  random_geometry(a, random);
  const size_t size = isa.dw_s8_scratch(a);
  a.oy1 = a.oy0 + 1;
  EXPECT_EQ(isa.dw_s8_scratch(a), size) << geometry_text(a);
  EXPECT_LE(size, size_t{1} << 20) << geometry_text(a);
}

void check_dw_f32(const KernelTable& isa, Random& random, int) {
  DwF32Args a{};
  const int64_t out_h = random_geometry(a, random);
  const int64_t blocks = (a.channels + kBlock - 1) / kBlock;
  const std::vector<float> x = random.floats((a.h * a.w - 1) * a.x_stride + a.channels, 100.0f);
  const std::vector<float> weight =
      random.floats(blocks * a.kernel[0] * a.kernel[1] * kBlock, 1.0f);
  a.x = x.data();
  a.weight = weight.data();
  a.last_lanes = static_cast<int>(a.channels - (blocks - 1) * kBlock);
  const Lanes l = random_lanes(random, 1, blocks * kBlock, 100.0f);
  a.scale = l.scale.data();
  a.bias = l.bias.data();
  const Epilogue e = random_epilogue(random, out_h * a.out_w, a.channels);
  a.post = e.post;
  a.out_stride = e.out_stride;

  std::vector<uint8_t> expected = untouched(e.out_bytes), found = expected;
  a.out = expected.data();
  kernel_table_scalar()->dw_f32(a);
  a.out = found.data();
  isa.dw_f32(a);
  expect_same(expected, found, geometry_text(a));
}

void check_expand_codes(const KernelTable& isa, Random& random, int trial) {
  const int bits = trial % 7 + 1;  // 8-bit codes are stored whole
  const int64_t steps = random.between(1, 40);
  const std::vector<uint8_t> planes =
      random.integers<uint8_t>((steps + kPlaneSteps - 1) / kPlaneSteps * bits * 64, 0, 255);
  std::vector<uint8_t> expected = untouched(steps * 64), found = expected;
  kernel_table_scalar()->expand_codes(planes.data(), bits, steps, expected.data());
  isa.expand_codes(planes.data(), bits, steps, found.data());
  EXPECT_LE(*std::max_element(found.begin(), found.end()), max_code(bits));
  expect_same(expected, found, "bits=" + std::to_string(bits) + " steps=" + std::to_string(steps));
}

// Every table takes codes in one order of its own, within the run; check_product_s8 reads them.
void check_arrange_codes(const KernelTable& isa, Random& random, int trial) {
  if (isa.arrange_codes == nullptr) return;
  const int64_t steps = random.between(1, 40), length = steps * 4 - random.between(0, 3);
  std::vector<uint8_t> codes = untouched(steps * 64 + 64);
  const std::vector<uint8_t> guard(codes.end() - 64, codes.end());
  isa.arrange_codes(codes.data(), trial % 8 + 1, steps, length);
  expect_same(guard, {codes.end() - 64, codes.end()}, "steps=" + std::to_string(steps));
}

void check_codes_to_f32(const KernelTable& isa, Random& random, int) {
  const int64_t steps = random.between(1, 40);
  const std::vector<uint8_t> codes = random.integers<uint8_t>(steps * 64, 0, 255);
  const std::vector<int32_t> zero_point = random.integers<int32_t>(kBlock, -255, 255);
  std::vector<uint8_t> expected = untouched(steps * 64 * 4), found = expected;
  kernel_table_scalar()->codes_to_f32(codes.data(), steps, zero_point.data(),
                                      reinterpret_cast<float*>(expected.data()));
  isa.codes_to_f32(codes.data(), steps, zero_point.data(), reinterpret_cast<float*>(found.data()));
  expect_same(expected, found, "steps=" + std::to_string(steps));
}

void check_row_sums(const KernelTable& isa, Random& random, int) {
  const int64_t m = random.between(1, 9);
  const int taps = static_cast<int>(random.one_of({1, 1, 3, 9}));
  const int64_t length = random.between(1, random.one_of({5, 70, 700}));
  const Rows<int8_t> rows = random_rows<int8_t>(random, m, taps, length, [&](int64_t count) {
    return random.integers<int8_t>(count, -128, 127);
  });
  std::vector<uint8_t> expected = untouched(m * 4), found = expected;
  const auto run = [&](const KernelTable& table, std::vector<uint8_t>& out) {
    table.row_sums(rows.pointers.data(), m, rows.tap_offset.data(), taps, length,
                   reinterpret_cast<int32_t*>(out.data()));
  };
  run(*kernel_table_scalar(), expected);
  run(isa, found);
  expect_same(expected, found,
              "taps=" + std::to_string(taps) + " length=" + std::to_string(length));
}

void check_quantize(const KernelTable& isa, Random& random, int) {
  const int64_t count = random.between(0, 100);
  const std::vector<float> x = random.wild_floats(count);
  const Post p = random_epilogue(random, 1, 1).post;
  std::vector<uint8_t> expected = untouched(count), found = expected;
  const auto run = [&](const KernelTable& table, std::vector<uint8_t>& out) {
    table.quantize(x.data(), count, p.inv_scale, p.zero_point, p.low, p.high,
                   reinterpret_cast<int8_t*>(out.data()));
  };
  run(*kernel_table_scalar(), expected);
  run(isa, found);
  expect_same(expected, found, "count=" + std::to_string(count));
  const int low = static_cast<int>(p.low) + p.zero_point;
  const int high = static_cast<int>(p.high) + p.zero_point;
  for (const uint8_t byte : found) {
    EXPECT_GE(static_cast<int8_t>(byte), low);
    EXPECT_LE(static_cast<int8_t>(byte), high);
  }
}

void check_dequantize(const KernelTable& isa, Random& random, int) {
  const int64_t count = random.between(0, 100);
  const std::vector<int8_t> x = random.integers<int8_t>(count, -128, 127);
  const float scale = random.uniform(1e-4f, 2.0f);
  const auto zero_point = static_cast<int32_t>(random.between(-128, 127));
  std::vector<uint8_t> expected = untouched(count * 4), found = expected;
  kernel_table_scalar()->dequantize(x.data(), count, scale, zero_point,
                                    reinterpret_cast<float*>(expected.data()));
  isa.dequantize(x.data(), count, scale, zero_point, reinterpret_cast<float*>(found.data()));
  expect_same(expected, found, "count=" + std::to_string(count));
}

void check_to_f32(const KernelTable& isa, Random& random, int) {
  const int64_t count = random.between(0, 100);
  const std::vector<int8_t> x = random.integers<int8_t>(count, -128, 127);
  const auto zero_point = static_cast<int32_t>(random.between(-128, 127));
  std::vector<uint8_t> expected = untouched(count * 4), found = expected;
  kernel_table_scalar()->to_f32(x.data(), count, zero_point,
                                reinterpret_cast<float*>(expected.data()));
  isa.to_f32(x.data(), count, zero_point, reinterpret_cast<float*>(found.data()));
  expect_same(expected, found, "count=" + std::to_string(count));
}

void check_abs_max(const KernelTable& isa, Random& random, int) {
  const int64_t count = random.between(0, 100);
  const std::vector<float> x =
      random.once_in(2) ? random.wild_floats(count) : random.floats(count, 10.0f);
  const float expected = kernel_table_scalar()->abs_max(x.data(), count);
  const float found = isa.abs_max(x.data(), count);
  EXPECT_EQ(std::memcmp(&expected, &found, sizeof(float)), 0)
      << "count=" << count << ": " << found << ", scalar returns " << expected;
}

void check_shuffle(const KernelTable& isa, Random& random, int) {
  const int64_t length = random.between(1, 300), src_length = random.between(1, 300);
  const int64_t rows = random.between(1, 60);
  std::vector<int32_t> from;
  for (int64_t i = 0; i < length; ++i) {
    from.push_back(random.once_in(6) ? -1
                                     : static_cast<int32_t>(random.between(0, src_length - 1)));
  }
  if (random.once_in(2)) std::sort(from.begin(), from.end());
  const ShuffleTables tables =
      plan_shuffle(from, src_length, static_cast<uint8_t>(random.between(0, 255)));
  const ShufflePlan plan = {length,
                            src_length,
                            tables.first.data(),
                            tables.sources.data(),
                            tables.wide_first.data(),
                            tables.wide_sources.data(),
                            tables.fill.data()};
  const int64_t src_stride = src_length + random.one_of({0, 9});
  const int64_t dst_stride = length + random.one_of({0, 9});
  // A source is read 16 bytes at a time, whatever the row's length.
  const std::vector<uint8_t> src = random.integers<uint8_t>(
      (rows - 1) * src_stride + std::max<int64_t>(src_length, kBlock), 0, 255);
  std::vector<uint8_t> expected = untouched((rows - 1) * dst_stride + length), found = expected;
  kernel_table_scalar()->shuffle(plan, src.data(), src_stride, rows, expected.data(), dst_stride);
  isa.shuffle(plan, src.data(), src_stride, rows, found.data(), dst_stride);
  expect_same(expected, found,
              "length=" + std::to_string(length) + " of " + std::to_string(src_length));
}

// The three steps of Winograd's products against direct ones. Activations are as large as the tiles
// say they are, and every tile is at a corner of an image of its own.
void check_winograd(const KernelTable& isa, Random& random, int) {
  if (isa.winograd_products == nullptr) return;
  const int64_t channels = random.between(1, random.one_of({9, 40, 100}));
  const int64_t count = random.between(1, 2 * kWinogradTiles + 3);
  const int64_t pixel_stride = channels + random.one_of({0, 0, 5});
  std::vector<std::vector<int8_t>> images;
  std::vector<WinogradTile> tiles;
  int64_t rows = 0;
  for (int64_t t = 0; t < count; ++t) {
    const int lines = static_cast<int>(random.between(1, kWinogradOut));
    const int columns = static_cast<int>(random.between(1, kWinogradOut));
    // lines as far apart as the widest of them
    images.push_back(random.integers<int8_t>(
        ((lines + 1) * 6 + columns + 1) * pixel_stride + channels, -128, 127));
    tiles.push_back({images.back().data(), lines + 2, columns + 2, lines, columns, rows});
    rows += kWinogradOut * kWinogradOut;
  }
  const int64_t tap_steps = (3 * channels + 3) / 4, steps = (channels + 3) / 4;
  std::vector<uint8_t> codes = random.integers<uint8_t>(3 * tap_steps * 64, 0, 255);
  const std::vector<int32_t> zero_point = random.integers<int32_t>(kBlock, 0, 255);

  WinogradInputArgs in{};
  in.tiles = tiles.data();
  in.count = count;
  in.line_stride = 6 * pixel_stride;
  in.pixel_stride = pixel_stride;
  in.channels = channels;
  in.tile_stride = (channels + kWinogradLanes - 1) / kWinogradLanes * kWinogradLanes;
  in.position_stride = count * in.tile_stride + random.one_of({0, 32});
  AlignedBytes v(static_cast<size_t>(kWinogradPositions * in.position_stride * 2));
  in.v = reinterpret_cast<int16_t*>(v.data());
  isa.winograd_input(in);
  WinogradWeightArgs weights{};
  weights.codes = codes.data();
  weights.tap_steps = tap_steps;
  weights.channels = channels;
  weights.zero_point = zero_point.data();
  weights.position_stride = steps * 64 + random.one_of({0, 32});
  AlignedBytes u(static_cast<size_t>(kWinogradPositions * weights.position_stride * 2));
  weights.u = reinterpret_cast<int16_t*>(u.data());
  isa.winograd_weights(weights);
  WinogradProductArgs products{};
  products.v = in.v;
  products.v_tile_stride = in.tile_stride;
  products.v_position_stride = in.position_stride;
  products.u = weights.u;
  products.u_position_stride = weights.position_stride;
  products.steps = steps;
  products.tiles = tiles.data();
  products.count = count;
  AlignedBytes scratch(size_t{kWinogradPositions} * kWinogradTiles * kBlock * 4);
  products.products = reinterpret_cast<int32_t*>(scratch.data());
  products.out_stride = kBlock * random.one_of({1, 2});
  products.width = kWinogradOut;
  std::vector<uint8_t> found = untouched(rows * products.out_stride * 4), expected = found;
  products.out = reinterpret_cast<int32_t*>(found.data());
  isa.winograd_products(products);
  EXPECT_FALSE(v.overrun());
  EXPECT_FALSE(u.overrun());
  EXPECT_FALSE(scratch.overrun());

  auto* want = reinterpret_cast<int32_t*>(expected.data());
  for (const WinogradTile& tile : tiles) {
    for (int y = 0; y < tile.lines; ++y) {
      for (int x = 0; x < tile.columns; ++x) {
        for (int n = 0; n < kBlock; ++n) {
          int32_t sum = 0;
          for (int64_t k = 0; k < 9 * channels; ++k) {
            const int64_t ky = k / (3 * channels), at = k % (3 * channels), kx = at / channels;
            const int code =
                codes[static_cast<size_t>((ky * tap_steps + at / 4) * 64 + n * 4 + at % 4)];
            sum += (code - zero_point[static_cast<size_t>(n)]) *
                   tile.x[(y + ky) * in.line_stride + (x + kx) * pixel_stride + at % channels];
          }
          want[(tile.row + y * kWinogradOut + x) * products.out_stride + n] = sum;
        }
      }
    }
  }
  expect_same(expected, found,
              "channels=" + std::to_string(channels) + " tiles=" + std::to_string(count));
}

// --- every kernel of every ISA ------------------------------------------------------------------

struct Kernel {
  const char* name;
  int trials;
  void (*check)(const KernelTable& isa, Random& random, int trial);
};

constexpr Kernel kKernels[] = {
    {"gemm_s8", 1000, check_gemm_s8},
    {"gemv_s8", 800, check_gemv_s8},
    {"gemm_f32", 400, check_gemm_f32},
    {"dw_s8", 1000, check_dw_s8},
    {"dw_s8_scratch", 50, check_dw_s8_scratch},
    {"dw_f32", 100, check_dw_f32},
    {"expand_codes", 200, check_expand_codes},
    {"arrange_codes", 100, check_arrange_codes},
    {"codes_to_f32", 50, check_codes_to_f32},
    {"row_sums", 200, check_row_sums},
    {"quantize", 400, check_quantize},
    {"dequantize", 100, check_dequantize},
    {"to_f32", 100, check_to_f32},
    {"abs_max", 200, check_abs_max},
    {"shuffle", 300, check_shuffle},
};
// What some ISAs have behind the node kernels.
constexpr Kernel kMore[] = {{"gemm_f32_turned", 800, check_gemm_f32_turned},
                            {"winograd", 200, check_winograd},
                            {"dw_s8_usual", 2000, check_dw_s8_usual}};
// gemm_f32_turned and turn_pixels; winograd has three; finish_s8 is checked with gemm_s8
constexpr size_t kMoreKernels = 2 + 3 + 1;
// From lookup on, test_nodes.cpp compares them through their operators.
constexpr size_t kNodeKernels = 15;
static_assert(offsetof(KernelTable, fuses_half_inputs) ==
                  sizeof(const char*) +
                      (std::size(kKernels) + kNodeKernels + kMoreKernels) * sizeof(void (*)()),
              "every function of the kernel table is listed in kKernels with its check");

struct Isa {
  const char* name;
  const KernelTable* (*table)();
  bool supported;
};

std::vector<Isa> built_isas() {
  [[maybe_unused]] const CpuFeatures cpu = detect_cpu_features();
  std::vector<Isa> isas = {{"scalar", kernel_table_scalar, true}};
#if defined(DEFAKEQ_BUILT_AVX2)
  isas.push_back({"avx2", kernel_table_avx2, cpu.avx2});
#endif
#if defined(DEFAKEQ_BUILT_AVX512VNNI)
  isas.push_back({"avx512vnni", kernel_table_avx512vnni, cpu.avx512vnni});
#endif
#if defined(DEFAKEQ_BUILT_NEON)
  isas.push_back({"neon", kernel_table_neon, cpu.neon});
#endif
#if defined(DEFAKEQ_BUILT_NEONDOT)
  isas.push_back({"neondot", kernel_table_neondot, cpu.neondot});
#endif
#if defined(DEFAKEQ_BUILT_I8MM)
  isas.push_back({"i8mm", kernel_table_i8mm, cpu.i8mm});
#endif
  return isas;
}

class KernelTest : public testing::TestWithParam<std::tuple<Isa, Kernel>> {};

TEST_P(KernelTest, GivesTheBytesOfScalar) {
  const auto& [isa, kernel] = GetParam();
  if (!isa.supported) GTEST_SKIP() << "this processor lacks " << isa.name;
  for (int trial = 0; trial < kernel.trials; ++trial) {
    Random random(static_cast<uint32_t>(trial) * 7919u + 17u);
    kernel.check(*isa.table(), random, trial);
    if (HasFailure()) FAIL() << kernel.name << " of " << isa.name << ", trial " << trial;
  }
}

std::string name_of(const testing::TestParamInfo<std::tuple<Isa, Kernel>>& info) {
  return std::string(std::get<0>(info.param).name) + "_" + std::get<1>(info.param).name;
}

INSTANTIATE_TEST_SUITE_P(All, KernelTest,
                         testing::Combine(testing::ValuesIn(built_isas()),
                                          testing::ValuesIn(kKernels)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(More, KernelTest,
                         testing::Combine(testing::ValuesIn(built_isas()),
                                          testing::ValuesIn(kMore)),
                         name_of);

class TableTest : public testing::TestWithParam<Isa> {};

TEST_P(TableTest, IsCompleteAndNamed) {
  const KernelTable* table = GetParam().table();
  EXPECT_STREQ(table->isa, GetParam().name);
  void* entries[std::size(kKernels)];
  std::memcpy(entries, reinterpret_cast<const char*>(table) + sizeof(const char*), sizeof(entries));
  for (size_t i = 0; i < std::size(kKernels); ++i) {
    if (kKernels[i].check == check_arrange_codes) continue;  // codes may be read as they are
    EXPECT_NE(entries[i], nullptr) << kKernels[i].name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, TableTest, testing::ValuesIn(built_isas()),
                         [](const auto& info) { return std::string(info.param.name); });

// The longest int16 sums at their extremes: every code at its maximum, every activation at a bound.
TEST(ProductS8, ExtremesDoNotSaturate) {
  for (const Isa& isa : built_isas()) {
    if (!isa.supported) continue;
    for (int bits = 1; bits <= 8; ++bits) {
      for (const int x : {-128, 127}) {
        constexpr int64_t kSteps = 256;
        const auto code = static_cast<uint8_t>(max_code(bits));
        const std::vector<uint8_t> w(kSteps * 64, code), planes(kSteps / 8 * 64 * bits, 255);
        const std::vector<int8_t> row(kSteps * 4, static_cast<int8_t>(x));
        const int8_t* rows[1] = {row.data()};
        const int64_t tap_offset[1] = {0};
        const std::vector<int32_t> zeros(kBlock, 0), row_sum(1, kSteps * 4 * x);
        const std::vector<float> ones(kBlock, 1.0f), bias(kBlock, 0.0f);
        float out[kBlock];
        GemmS8Args a{};
        a.rows = rows;
        a.m = 1;
        a.tap_offset = tap_offset;
        a.taps = 1;
        a.steps = kSteps;
        a.blocks = 1;
        a.bits = bits;
        a.zero_point = a.correction = zeros.data();
        a.row_sum = row_sum.data();
        a.scale = ones.data();
        a.bias = bias.data();
        a.out = out;
        a.out_stride = kBlock;
        a.n = kBlock;
        const std::vector<uint8_t> in_order = arranged(*isa.table(), a, w, kSteps * 4);
        const bool reads_planes = isa.table()->reads_planes && bits < 8;
        for (const char* how : {"codes", "planes", "gemv"}) {
          const bool gemv = how == std::string("gemv");
          a.planes = how == std::string("planes");
          if (a.planes && !reads_planes) continue;
          a.w = gemv || a.planes ? planes.data() : in_order.data();
          (gemv ? isa.table()->gemv_s8 : isa.table()->gemm_s8)(a);
          for (const float y : out) {
            ASSERT_EQ(y, static_cast<float>(kSteps * 4 * code * x))
                << isa.name << " " << how << " " << bits << " bits, activation " << x;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace defakeq

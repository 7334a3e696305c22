// Every operator over random layers: the same bytes on every ISA and thread count, and within a
// computed bound of a float64 reference that reads the storage format itself.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "defakeq/cpu_info.h"
#include "defakeq/layer.h"
#include "defakeq/ops.h"
#include "dispatch/dispatch.h"
#include "ops/product.h"
#include "pack/packed_layer.h"

namespace defakeq {
namespace {

class Threads final : public Parallel {
 public:
  explicit Threads(int count) : count_(count) {}
  int threads() const override { return count_; }
  void run(int64_t n, Body body, void* context) override {
    std::vector<std::thread> all;
    for (int64_t i = 0; i < n; ++i) all.emplace_back([=] { body(context, i, i + 1); });
    for (std::thread& t : all) t.join();
  }

 private:
  int count_;
};

// The tiers that this build and this processor have.
std::vector<std::string> tiers() {
  const CpuInfo info = cpu_info();
  std::vector<std::string> both;
  for (const std::string& isa : info.built) {
    if (std::count(info.supported.begin(), info.supported.end(), isa) > 0) both.push_back(isa);
  }
  return both;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

double half_value(uint16_t h) {
  const double magnitude = std::ldexp(1.0 + (h & 1023) / 1024.0, ((h >> 10) & 31) - 15);
  return (h & 0x8000) != 0 ? -magnitude : magnitude;
}

struct Random {
  std::mt19937 engine;
  int in(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine); }
  bool one_in(int n) { return in(1, n) == 1; }
  uint16_t half() {
    return static_cast<uint16_t>((in(0, 1) << 15) | (in(10, 15) << 10) | in(0, 1023));
  }
};

struct Segment {
  std::vector<int32_t> out_index, zero_point;
  std::vector<uint8_t> codes;
  std::vector<uint16_t> halves;
  std::vector<float> scale;
};

// A layer, its input and everything else one call needs.
struct Case {
  LayerSpec spec;
  std::vector<Segment> segments;
  std::vector<float> bias;
  std::vector<int32_t> in_index, half_in_index;
  std::vector<uint16_t> half_in_weight;
  std::unique_ptr<void, Free> blob;
  size_t blob_bytes = 0;

  int64_t n = 1, h = 1, w = 1, out_h = 1, out_w = 1;
  bool int8_input = false;
  int residual_kind = 0;  // 1 float32, 2 int8
  std::vector<float> x, half_input, residual;
  std::vector<int8_t> x8, residual8;

  int64_t group_inputs() const {
    return spec.in_index != nullptr ? spec.in_count : spec.in_channels / spec.groups;
  }
  int64_t taps() const { return int64_t{spec.kernel[0]} * spec.kernel[1]; }
  int64_t pieces_per_tap() const {
    if (spec.group_size == 0) return 1;
    return std::max<int64_t>(1, (group_inputs() + spec.group_size - 1) / spec.group_size);
  }
  int64_t pieces() const { return spec.group_size == 0 ? 1 : taps() * pieces_per_tap(); }
  int64_t outputs() const { return n * out_h * out_w * spec.out_channels; }
  void pack() {
    blob_bytes = packed_layer_bytes(spec);
    blob.reset(std::aligned_alloc(64, blob_bytes));
    pack_layer(spec, blob.get(), blob_bytes);
  }
};

void choose_geometry(Case& c, Random& random) {
  LayerSpec& s = c.spec;
  s.in_channels = random.in(1, 70);
  s.out_channels = random.in(1, 90);
  if (random.one_in(3)) {
    s.kind = LayerKind::kLinear;
    // every other one few enough for the GEMV kernels
    c.n = random.one_in(2) ? random.in(1, 4) : random.in(5, 30);
    return;
  }
  s.kind = LayerKind::kConv2d;
  const int sizes[] = {1, 3, 5, 7};
  s.kernel[0] = sizes[random.in(0, 3)];
  s.kernel[1] = random.one_in(4) ? random.in(1, 4) : s.kernel[0];
  for (int d = 0; d < 2; ++d) {
    s.stride[d] = random.in(1, 2);
    s.padding[d] = random.in(0, 3);
    s.dilation[d] = random.one_in(4) ? 2 : 1;
  }
  const int kind = random.in(0, 3);
  if (kind == 1) {
    s.groups = static_cast<int32_t>(s.in_channels);
    s.out_channels = s.in_channels * random.in(1, 2);
  } else if (kind == 2) {
    s.groups = random.in(2, 4);
    s.in_channels = s.groups * random.in(2, 20);
    s.out_channels = s.groups * random.in(1, 20);
  }
  c.n = random.in(1, 2);
  do {
    c.h = random.in(5, 16);
    c.w = random.one_in(6) ? 16 * random.in(2, 3) : random.in(5, 16);
    c.out_h = conv_out_size(c.h, s.kernel[0], s.stride[0], s.padding[0], s.dilation[0]);
    c.out_w = conv_out_size(c.w, s.kernel[1], s.stride[1], s.padding[1], s.dilation[1]);
  } while (c.out_h < 1 || c.out_w < 1);
}

void choose_numbers(Case& c, Random& random) {
  LayerSpec& s = c.spec;
  if (s.groups == 1 && random.one_in(4)) {
    s.group_size = random.one_in(2) ? 32 : 4 * random.in(1, 16);
  }
  s.act_mode = static_cast<ActMode>(random.in(0, 3));
  s.act.scale = 0.02f;
  s.act.bits = random.in(4, 8);
  const int half = 1 << (s.act.bits - 1);
  s.act.zero_point = random.in(-half, half - 1);
  s.activation = random.one_in(3) ? Activation::kNone : static_cast<Activation>(random.in(0, 6));
  s.out_dtype = static_cast<DType>(random.in(0, 1));
  s.out = {0.05f, random.in(-8, 7), random.one_in(2) ? 8 : random.in(4, 8)};
}

void choose_inputs(Case& c, Random& random) {
  LayerSpec& s = c.spec;
  if (s.groups != 1 || s.in_channels < 4 || !random.one_in(2)) return;
  std::vector<int32_t> order(static_cast<size_t>(s.in_channels));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random.engine);
  const int halves = random.in(0, static_cast<int>(s.in_channels) / 3);
  const int kept = random.in(1, static_cast<int>(s.in_channels) - halves);
  c.half_in_index.assign(order.begin(), order.begin() + halves);
  c.in_index.assign(order.begin() + halves, order.begin() + halves + kept);
  std::sort(c.half_in_index.begin(), c.half_in_index.end());
  std::sort(c.in_index.begin(), c.in_index.end());
  s.in_index = c.in_index.data();
  s.in_count = kept;
  s.half_in_index = c.half_in_index.data();
  s.half_in_count = halves;
}

void choose_weights(Case& c, Random& random) {
  LayerSpec& s = c.spec;
  std::vector<int32_t> order(static_cast<size_t>(s.out_channels));
  std::iota(order.begin(), order.end(), 0);
  int left = static_cast<int>(s.out_channels);
  if (random.one_in(2)) {
    left = random.in(1, left);
    std::shuffle(order.begin(), order.end(), random.engine);
  }
  const bool extreme = random.one_in(2);
  // A few outputs in half precision among integer ones of one width.
  const bool mixed = random.one_in(4) && left > 4;
  const int few = mixed ? random.in(1, std::max(1, left / 12)) : 0;
  if (mixed) std::shuffle(order.begin(), order.begin() + left, random.engine);
  const int parts = mixed ? 2 : random.in(1, 3);
  const auto reduction = static_cast<size_t>(c.taps() * c.group_inputs());
  const auto pieces = static_cast<size_t>(c.pieces());
  auto next = order.begin();
  c.segments.resize(static_cast<size_t>(parts));
  size_t stored = 0;
  for (int i = 0; i < parts; ++i) {
    Segment& g = c.segments[static_cast<size_t>(i)];
    const int count = i + 1 == parts ? left : mixed ? left - few : random.in(0, left);
    left -= count;
    stored += static_cast<size_t>(count);
    const auto rows = static_cast<size_t>(count);
    g.out_index.assign(next, next + count);
    next += count;
    std::sort(g.out_index.begin(), g.out_index.end());
    SegmentSpec spec;
    spec.bits = (mixed ? i == 1 : random.one_in(5)) ? 16 : random.in(1, 8);
    spec.count = count;
    spec.out_index = g.out_index.data();
    if (spec.bits == 16) {
      g.halves.resize(rows * reduction + 1);
      for (uint16_t& v : g.halves) v = random.half();
      spec.halves = g.halves.data();
    } else {
      const size_t row_bytes = (reduction * static_cast<size_t>(spec.bits) + 7) / 8;
      g.codes.resize(rows * row_bytes + 1);
      for (uint8_t& v : g.codes) {
        v = static_cast<uint8_t>(extreme ? 255 * random.in(0, 1) : random.in(0, 255));
      }
      g.scale.resize(rows * pieces + 1);
      for (float& v : g.scale) v = static_cast<float>(random.in(1, 1000)) * 1e-5f;
      g.zero_point.resize(rows * pieces + 1);
      const int top = (1 << spec.bits) - 1;
      for (int32_t& v : g.zero_point) v = extreme ? top * random.in(0, 1) : random.in(0, top);
      spec.codes = g.codes.data();
      spec.scale = g.scale.data();
      spec.zero_point = random.one_in(3) ? nullptr : g.zero_point.data();
    }
    s.segments.push_back(spec);
  }
  c.bias.resize(stored);
  for (float& v : c.bias) v = static_cast<float>(random.in(-100, 100)) * 0.01f;
  if (!random.one_in(4)) s.bias = c.bias.data();
  if (s.half_in_count > 0) {
    c.half_in_weight.resize(stored * static_cast<size_t>(c.taps() * s.half_in_count));
    for (uint16_t& v : c.half_in_weight) v = random.half();
    s.half_in_weight = c.half_in_weight.data();
  }
}

void choose_data(Case& c, Random& random) {
  const LayerSpec& s = c.spec;
  const bool extreme = random.one_in(2);
  c.int8_input = s.act_mode == ActMode::kStatic && random.one_in(2);
  const auto pixels = static_cast<size_t>(c.n * c.h * c.w);
  const int half = 1 << (s.act.bits - 1);
  c.x.resize(pixels * static_cast<size_t>(s.in_channels));
  c.x8.resize(c.x.size());
  for (float& v : c.x) v = static_cast<float>(random.in(-3000, 3000)) * 1e-3f;
  for (int8_t& v : c.x8) {
    v = static_cast<int8_t>(extreme ? (random.one_in(2) ? -half : half - 1)
                                    : random.in(-half, half - 1));
  }
  c.half_input.resize(pixels * static_cast<size_t>(s.half_in_count) + 1);
  for (float& v : c.half_input) v = static_cast<float>(random.in(-100, 100)) * 0.01f;
  c.residual_kind = random.in(0, 2);
  c.residual.resize(static_cast<size_t>(c.outputs()));
  c.residual8.resize(c.residual.size());
  for (float& v : c.residual) v = static_cast<float>(random.in(-100, 100)) * 0.01f;
  for (int8_t& v : c.residual8) v = static_cast<int8_t>(random.in(-128, 127));
}

Case make_case(unsigned seed) {
  Random random{std::mt19937(seed)};
  Case c;
  choose_geometry(c, random);
  choose_numbers(c, random);
  choose_inputs(c, random);
  choose_weights(c, random);
  choose_data(c, random);
  c.pack();
  return c;
}

// kernels: those that a convolution takes; null: the selected ones.
std::vector<char> run(const Case& c, Parallel& parallel, const int8_t* table = nullptr,
                      const KernelTable* kernels = nullptr) {
  const auto size =
      static_cast<size_t>(c.outputs()) * (c.spec.out_dtype == DType::kFloat32 ? sizeof(float) : 1);
  constexpr size_t kGuard = 64;
  std::vector<char> out(size + kGuard, 77);
  OpArgs a;
  a.blob = c.blob.get();
  a.blob_bytes = c.blob_bytes;
  a.x = c.int8_input ? static_cast<const void*>(c.x8.data()) : c.x.data();
  a.x_dtype = c.int8_input ? DType::kInt8 : DType::kFloat32;
  a.out = out.data();
  a.table = table;
  if (c.int8_input && c.spec.half_in_count > 0) a.half_input = c.half_input.data();
  if (c.residual_kind == 1) a.residual = c.residual.data();
  if (c.residual_kind == 2) {
    a.residual = c.residual8.data();
    a.residual_dtype = DType::kInt8;
    a.residual_quantization = {0.03f, 5, 8};
  }
  GrowingScratch scratch;
  if (kernels != nullptr) {
    const Images images = {c.n, c.h, c.w, c.spec.in_channels, c.out_h, c.out_w};
    run_product(packed_layer(a.blob, a.blob_bytes), *kernels, a, images, parallel, scratch);
  } else if (c.spec.kind == LayerKind::kLinear) {
    linear(a, c.n, c.spec.in_channels, parallel, scratch);
  } else {
    conv2d(a, c.n, c.h, c.w, parallel, scratch);
  }
  for (size_t i = size; i < out.size(); ++i) EXPECT_EQ(out[i], 77) << "wrote past the output";
  out.resize(size);
  return out;
}

struct Value {
  double value = 0.0;
  double magnitude = 0.0;  // sum of the absolute terms: rounding errors are relative to it
};

double activate(Activation activation, double y) {
  switch (activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return std::max(y, 0.0);
    case Activation::kRelu6:
      return std::clamp(y, 0.0, 6.0);
    case Activation::kHardswish:
      return y * std::clamp(y + 3.0, 0.0, 6.0) / 6.0;
    case Activation::kSilu:
      return y / (1.0 + std::exp(-y));
    case Activation::kGelu:
      return 0.5 * y * (1.0 + std::erf(y / std::sqrt(2.0)));
    case Activation::kSigmoid:
      return 1.0 / (1.0 + std::exp(-y));
  }
  return y;
}

class Reference {
 public:
  explicit Reference(const Case& c) : c_(c), scale_(static_cast<size_t>(c.n), 1.0f) {
    const LayerSpec& s = c.spec;
    const size_t image = c.x.size() / static_cast<size_t>(c.n);
    const auto scale_of = [&](size_t begin, size_t end) {
      float max = 0.0f;
      for (size_t i = begin; i < end; ++i) max = std::max(max, std::fabs(c.x[i]));
      return max > 0.0f ? max / 127.0f : 1.0f;
    };
    for (size_t i = 0; i < scale_.size(); ++i) {
      if (s.act_mode == ActMode::kStatic) scale_[i] = s.act.scale;
      if (s.act_mode == ActMode::kDynamicTensor) scale_[i] = scale_of(0, c.x.size());
      if (s.act_mode == ActMode::kDynamicRow) scale_[i] = scale_of(i * image, (i + 1) * image);
    }
  }

  // Stored output `stored` = row `row` of segment g, at one position, before the activation.
  Value at(const SegmentSpec& g, int64_t row, int64_t stored, int64_t n, int64_t oy,
           int64_t ox) const {
    const LayerSpec& s = c_.spec;
    const int64_t inputs = c_.group_inputs();
    const int64_t group = g.out_index[row] / (s.out_channels / s.groups);
    Value y;
    if (s.bias != nullptr) add(y, s.bias[stored]);
    for (int64_t t = 0; t < c_.taps(); ++t) {
      const int64_t iy = oy * s.stride[0] - s.padding[0] + t / s.kernel[1] * s.dilation[0];
      const int64_t ix = ox * s.stride[1] - s.padding[1] + t % s.kernel[1] * s.dilation[1];
      if (iy < 0 || iy >= c_.h || ix < 0 || ix >= c_.w) continue;
      const int64_t pixel = (n * c_.h + iy) * c_.w + ix;
      for (int64_t h = 0; h < s.half_in_count; ++h) {
        const double x = c_.int8_input ? c_.half_input[idx(pixel * s.half_in_count + h)]
                                       : c_.x[idx(pixel * s.in_channels + s.half_in_index[h])];
        add(y, half_value(s.half_in_weight[(stored * c_.taps() + t) * s.half_in_count + h]) * x);
      }
      for (int64_t k = 0; k < inputs; ++k) {
        const int64_t channel = s.in_index != nullptr ? s.in_index[k] : group * inputs + k;
        add(y, weight(g, row, t, k) * input(n, pixel * s.in_channels + channel));
      }
    }
    return y;
  }

 private:
  static size_t idx(int64_t i) { return static_cast<size_t>(i); }
  static void add(Value& y, double term) {
    y.value += term;
    y.magnitude += std::fabs(term);
  }

  double weight(const SegmentSpec& g, int64_t row, int64_t tap, int64_t k) const {
    const int64_t reduction = c_.taps() * c_.group_inputs();
    const int64_t at = tap * c_.group_inputs() + k;
    if (g.bits == 16) return half_value(g.halves[row * reduction + at]);
    const int64_t row_bytes = (reduction * g.bits + 7) / 8;
    int code = 0;
    for (int b = 0; b < g.bits; ++b) {
      const int64_t bit = at * g.bits + b;
      code |= ((g.codes[row * row_bytes + bit / 8] >> (bit % 8)) & 1) << b;
    }
    int64_t piece = 0;
    if (c_.spec.group_size != 0) piece = tap * c_.pieces_per_tap() + k / c_.spec.group_size;
    const int64_t p = row * c_.pieces() + piece;
    const int zero = g.zero_point != nullptr ? g.zero_point[p] : 1 << (g.bits - 1);
    return double{g.scale[p]} * ((g.bits == 1 ? 2 : 1) * code - zero);
  }

  double input(int64_t image, int64_t at) const {
    const LayerSpec& s = c_.spec;
    if (s.act_mode == ActMode::kNone) return c_.x[idx(at)];
    const float scale = scale_[idx(image)];
    const bool is_static = s.act_mode == ActMode::kStatic;
    const int zero = is_static ? s.act.zero_point : 0;
    if (c_.int8_input) return double{scale} * (c_.x8[idx(at)] - zero);
    const float half = static_cast<float>(is_static ? 1 << (s.act.bits - 1) : 128);
    const float v = c_.x[idx(at)] * (1.0f / scale);
    const float clamped =
        std::clamp(v, -half - static_cast<float>(zero), half - 1.0f - static_cast<float>(zero));
    return double{scale} * std::nearbyint(clamped);
  }

  const Case& c_;
  std::vector<float> scale_;
};

void compare_with_reference(const Case& c, const std::vector<char>& out) {
  const LayerSpec& s = c.spec;
  const Reference reference(c);
  const double terms = static_cast<double>(c.taps() * (c.group_inputs() + s.half_in_count) + 16);
  std::vector<bool> present(static_cast<size_t>(s.out_channels));
  const int64_t positions = c.n * c.out_h * c.out_w;
  const auto got_at = [&](int64_t i) -> double {
    if (s.out_dtype == DType::kInt8) return static_cast<int8_t>(out[static_cast<size_t>(i)]);
    float v;
    std::memcpy(&v, out.data() + i * 4, 4);
    return v;
  };
  int64_t stored = 0;
  for (const SegmentSpec& g : s.segments) {
    for (int64_t row = 0; row < g.count; ++row, ++stored) {
      present[static_cast<size_t>(g.out_index[row])] = true;
      for (int64_t p = 0; p < positions; ++p) {
        const int64_t i = p * s.out_channels + g.out_index[row];
        Value y = reference.at(g, row, stored, p / (c.out_h * c.out_w), p / c.out_w % c.out_h,
                               p % c.out_w);
        double r = 0.0;
        if (c.residual_kind == 1) r = c.residual[static_cast<size_t>(i)];
        if (c.residual_kind == 2) {
          r = double{0.03f} * (c.residual8[static_cast<size_t>(i)] - 5);
        }
        y.value += r;
        y.magnitude += std::fabs(r);
        const double want = activate(s.activation, y.value);
        // Every activation's slope is below 1.2, hardswish's 1.5; their own error is below 4e-7
        // |y|.
        const double bound = 1.5 * terms * 0x1p-24 * y.magnitude + 4e-7 * (1.0 + y.magnitude);
        if (s.out_dtype == DType::kFloat32) {
          ASSERT_NEAR(got_at(i), want, bound) << "output " << i;
        } else {
          const double half = 1 << (s.out.bits - 1);
          const double step =
              std::clamp(want / double{s.out.scale} + s.out.zero_point, -half, half - 1.0);
          ASSERT_NEAR(got_at(i), step, 0.5 + 1e-6 + (bound + 1e-6 * std::fabs(want)) / 0.05)
              << "output " << i;
        }
      }
    }
  }
  for (int64_t i = 0; i < c.outputs(); ++i) {
    if (present[static_cast<size_t>(i % s.out_channels)]) continue;
    ASSERT_EQ(got_at(i), s.out_dtype == DType::kInt8 ? s.out.zero_point : 0) << "pruned " << i;
  }
}

std::string describe(const Case& c, unsigned seed) {
  const LayerInfo info = layer_info(c.blob.get(), c.blob_bytes);
  std::string text = "seed " + std::to_string(seed) + ", " + info.strategy + ", act mode " +
                     std::to_string(static_cast<int>(c.spec.act_mode)) + ", group size " +
                     std::to_string(c.spec.group_size) + ", bits";
  for (const SegmentSpec& g : c.spec.segments) text += " " + std::to_string(g.bits);
  return text;
}

class Ops : public ::testing::TestWithParam<unsigned> {};

// The same bytes on every instruction set with 1 to 3 threads.
void expect_everywhere(const Case& c, const std::vector<char>& want) {
  for (const std::string& isa : tiers()) {
    set_isa(isa.c_str());
    for (const int threads : {1, 2, 3}) {
      Threads parallel(threads);
      ASSERT_EQ(run(c, parallel), want) << isa << ", " << threads << " threads";
    }
  }
  set_isa(nullptr);
}

TEST_P(Ops, SameBytesEverywhereAndNearTheReference) {
  constexpr unsigned kCases = 40;
  for (unsigned i = 0; i < kCases; ++i) {
    const unsigned seed = GetParam() * kCases + i;
    const Case c = make_case(seed);
    SCOPED_TRACE(describe(c, seed));
    set_isa("scalar");
    Serial serial;
    const std::vector<char> want = run(c, serial);
    compare_with_reference(c, want);
    std::vector<int8_t> table(256);
    for (int q = 0; q < 256; ++q) table[static_cast<size_t>(q)] = static_cast<int8_t>(q * 37 + 11);
    const bool takes_table =
        c.spec.out_dtype == DType::kInt8 && c.spec.activation == Activation::kNone;
    std::vector<char> looked_up = want;
    for (char& q : looked_up)
      q = static_cast<char>(table[static_cast<uint8_t>(static_cast<uint8_t>(q) ^ 0x80)]);
    for (const std::string& isa : tiers()) {
      set_isa(isa.c_str());
      for (const int threads : {1, 2, 3}) {
        Threads parallel(threads);
        ASSERT_EQ(run(c, parallel), want) << isa << ", " << threads << " threads";
        if (!takes_table) continue;
        ASSERT_EQ(run(c, parallel, table.data()), looked_up)
            << isa << ", " << threads << " threads, table";
      }
    }
    set_isa(nullptr);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Random, Ops, ::testing::Range(0u, 10u));

// A 3x3 convolution of stride 1 that is large enough for several bands and tasks now and then.
Case make_winograd_case(unsigned seed) {
  Random random{std::mt19937(seed)};
  Case c;
  choose_geometry(c, random);
  LayerSpec& s = c.spec;
  s.kind = LayerKind::kConv2d;
  s.groups = 1;
  s.in_channels = random.in(1, random.one_in(3) ? 110 : 40);
  s.out_channels = random.in(1, 80);
  c.n = random.in(1, 3);
  const int most = random.one_in(5) ? 40 : 15;
  for (int d = 0; d < 2; ++d) {
    s.kernel[d] = 3;
    s.stride[d] = s.dilation[d] = 1;
    s.padding[d] = random.in(0, 3);
  }
  c.h = random.in(3, most);
  c.w = random.in(3, most);
  c.out_h = c.h + 2 * s.padding[0] - 2;
  c.out_w = c.w + 2 * s.padding[1] - 2;
  choose_numbers(c, random);
  s.group_size = 0;
  if (s.act_mode == ActMode::kNone) s.act_mode = ActMode::kStatic;
  choose_inputs(c, random);
  choose_weights(c, random);
  choose_data(c, random);
  c.pack();
  return c;
}

TEST(Winograd, GivesTheBytesOfDirectProducts) {
  int used = 0;
  for (unsigned seed = 0; seed < 300; ++seed) {
    const Case c = make_winograd_case(seed);
    SCOPED_TRACE(describe(c, seed));
    set_isa("scalar");
    Serial serial;
    const std::vector<char> want = run(c, serial);
    std::vector<int8_t> table(256);
    for (int q = 0; q < 256; ++q) table[static_cast<size_t>(q)] = static_cast<int8_t>(q * 37 + 11);
    const bool takes_table =
        c.spec.out_dtype == DType::kInt8 && c.spec.activation == Activation::kNone;
    const std::vector<char> looked_up = takes_table ? run(c, serial, table.data()) : want;
    for (const std::string& isa : tiers()) {
      set_isa(isa.c_str());
      if (kernels().winograd_products == nullptr) continue;
      KernelTable always = kernels();
      always.winograd = {1e-9f, 0.0f, 0.0f, 0.0f, 1.0f};
      const PackedLayer& layer = packed_layer(c.blob.get(), c.blob_bytes);
      OpArgs args;
      args.x_dtype = c.int8_input ? DType::kInt8 : DType::kFloat32;
      used +=
          uses_winograd(layer, always, args, {c.n, c.h, c.w, c.spec.in_channels, c.out_h, c.out_w});
      for (const int threads : {1, 2, 3}) {
        Threads parallel(threads);
        ASSERT_EQ(run(c, parallel, nullptr, &always), want) << isa << ", " << threads << " threads";
        if (!takes_table) continue;
        ASSERT_EQ(run(c, parallel, table.data(), &always), looked_up)
            << isa << ", " << threads << " threads, table";
      }
    }
    set_isa(nullptr);
    if (HasFatalFailure()) return;
  }
  EXPECT_TRUE(used > 200 || kernels().winograd_products == nullptr) << used;
}

// Winograd's sums are exact below 2^25: 128 * sum|code - zero_point| decides.
TEST(Winograd, IsRefusedWhereSumsMayBeTooLarge) {
  for (const auto& [channels, code, allowed] :
       {std::tuple{114, 255, true}, {115, 255, false}, {300, 255, false}, {300, 64, true}}) {
    LayerSpec spec;
    spec.kind = LayerKind::kConv2d;
    spec.in_channels = channels;
    spec.out_channels = 2;
    spec.kernel[0] = spec.kernel[1] = 3;
    const std::vector<uint8_t> codes(static_cast<size_t>(2 * 9 * channels),
                                     static_cast<uint8_t>(code));
    const std::vector<int32_t> index = {0, 1}, zero_point = {0, 0};
    const std::vector<float> scale = {1.0f, 1.0f};
    SegmentSpec segment;
    segment.bits = 8;
    segment.count = 2;
    segment.out_index = index.data();
    segment.codes = codes.data();
    segment.scale = scale.data();
    segment.zero_point = zero_point.data();
    spec.segments = {segment};
    spec.act_mode = ActMode::kStatic;
    const size_t bytes = packed_layer_bytes(spec);
    const std::unique_ptr<void, Free> blob(std::aligned_alloc(64, bytes));
    pack_layer(spec, blob.get(), bytes);
    EXPECT_EQ(packed_layer(blob.get(), bytes).winograd != 0, allowed) << channels << " " << code;
  }
}

// A convolution of few outputs, as wide as its images, whose width is one of whole joined pixels.
Case make_narrow_case(unsigned seed) {
  Random random{std::mt19937(seed)};
  Case c;
  choose_geometry(c, random);
  LayerSpec& s = c.spec;
  s.kind = LayerKind::kConv2d;
  s.groups = 1;
  s.in_channels = random.in(1, 20);
  s.out_channels = random.in(1, 8);
  c.n = random.in(1, 3);
  s.kernel[0] = random.in(1, 5);
  s.kernel[1] = 2 * random.in(0, 2) + 1;
  s.stride[0] = random.in(1, 2);
  s.stride[1] = 1;
  s.padding[0] = random.in(0, 3);
  for (int32_t& d : s.dilation) d = random.in(1, s.out_channels > 4 ? 2 : 3);
  s.padding[1] = s.dilation[1] * (s.kernel[1] - 1) / 2;
  c.w = c.out_w = 16 * random.in(1, 4);
  do {
    c.h = random.in(1, 20);
    c.out_h = conv_out_size(c.h, s.kernel[0], s.stride[0], s.padding[0], s.dilation[0]);
  } while (c.out_h < 1);
  choose_numbers(c, random);
  s.group_size = 0;
  s.act_mode = ActMode::kStatic;
  const auto reduction = static_cast<size_t>(c.taps() * s.in_channels);
  const auto outs = static_cast<size_t>(s.out_channels);
  SegmentSpec spec;
  spec.bits = random.in(2, 8);
  Segment& g = c.segments.emplace_back();
  for (size_t n = 0; n < outs; ++n) {
    g.out_index.push_back(static_cast<int32_t>(n));
    g.scale.push_back(static_cast<float>(random.in(1, 1000)) * 1e-5f);
    g.zero_point.push_back(random.in(0, (1 << spec.bits) - 1));
    c.bias.push_back(static_cast<float>(random.in(-100, 100)) * 0.01f);
  }
  g.codes.resize(outs * ((reduction * static_cast<size_t>(spec.bits) + 7) / 8));
  for (uint8_t& v : g.codes) v = static_cast<uint8_t>(random.in(0, 255));
  spec.count = s.out_channels;
  spec.out_index = g.out_index.data();
  spec.codes = g.codes.data();
  spec.scale = g.scale.data();
  if (!random.one_in(3)) spec.zero_point = g.zero_point.data();
  s.segments.push_back(spec);
  if (!random.one_in(4)) s.bias = c.bias.data();
  choose_data(c, random);
  c.pack();
  return c;
}

TEST(JoinedPixels, GiveTheBytesOfSinglePixels) {
  int used = 0;
  for (unsigned seed = 0; seed < 120; ++seed) {
    const Case c = make_narrow_case(seed);
    SCOPED_TRACE(describe(c, seed));
    OpArgs args;
    args.blob = c.blob.get();
    args.blob_bytes = c.blob_bytes;
    used += conv2d_joins_pixels(args, c.w);
    EXPECT_FALSE(conv2d_joins_pixels(args, c.w + 1));
    set_isa("scalar");
    Serial serial;
    const std::vector<char> want = run(c, serial, nullptr, &kernels());
    if (seed % 10 == 0) compare_with_reference(c, want);
    expect_everywhere(c, want);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(used, 80);
}

TEST(JoinedPixels, AreRefusedWhereNoCodeIsZero) {
  Case c = make_narrow_case(0);
  SegmentSpec& segment = c.spec.segments[0];
  ASSERT_EQ(segment.bits, 8);
  segment.bits = 4;  // reads a part of the codes
  std::vector<int32_t>& zero = c.segments[0].zero_point;
  std::fill(zero.begin(), zero.end(), 0);
  segment.zero_point = zero.data();
  c.spec.kernel[1] = 1;
  c.spec.padding[1] = 0;
  const auto joined = [&] {
    c.pack();
    return packed_layer(c.blob.get(), c.blob_bytes).joined_pixels;
  };
  EXPECT_GT(joined(), 1);
  zero[0] = -1;
  EXPECT_EQ(joined(), 1);
  zero[0] = 16;
  EXPECT_EQ(joined(), 1);
  segment.zero_point = nullptr;
  EXPECT_GT(joined(), 1);
  segment.bits = 1;
  EXPECT_EQ(joined(), 1);
}

// The epilogues of networks (int8 without or with relu, a table) over square depthwise kernels.
TEST(Ops, DepthwiseKernelsAgreeOnEveryIsa) {
  Random random{std::mt19937(7)};
  for (const int kernel : {3, 5, 7}) {
    for (const int stride : {1, 2}) {
      for (int round = 0; round < 8; ++round) {
        Case c;
        LayerSpec& s = c.spec;
        s.kind = LayerKind::kConv2d;
        s.in_channels = s.out_channels = random.in(1, 140);
        s.groups = static_cast<int32_t>(s.in_channels);
        for (int d = 0; d < 2; ++d) {
          s.kernel[d] = kernel;
          s.stride[d] = stride;
          s.padding[d] = random.in(0, kernel / 2);
        }
        c.h = random.in(kernel, 22);
        c.w = random.in(kernel, 22);
        c.out_h = conv_out_size(c.h, kernel, stride, s.padding[0], 1);
        c.out_w = conv_out_size(c.w, kernel, stride, s.padding[1], 1);
        s.act_mode = ActMode::kStatic;
        s.act = {0.02f, random.in(-128, 127), 8};
        s.activation = random.one_in(2) ? Activation::kNone : Activation::kRelu;
        s.out_dtype = DType::kInt8;
        s.out = {0.05f, random.in(-8, 7), 8};
        choose_weights(c, random);
        choose_data(c, random);
        c.residual_kind = 0;
        c.blob_bytes = packed_layer_bytes(s);
        c.blob.reset(std::aligned_alloc(64, c.blob_bytes));
        pack_layer(s, c.blob.get(), c.blob_bytes);
        SCOPED_TRACE("kernel " + std::to_string(kernel) + ", stride " + std::to_string(stride) +
                     ", " + std::to_string(s.in_channels) + " channels");
        set_isa("scalar");
        Serial serial;
        const std::vector<char> want = run(c, serial);
        compare_with_reference(c, want);
        expect_everywhere(c, want);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Ops, RefusesATableWithoutAPlainInt8Output) {
  const std::vector<int8_t> table(256);
  for (unsigned seed = 0; seed < 20; ++seed) {
    const Case c = make_case(seed);
    const bool float_out = c.spec.out_dtype == DType::kFloat32;
    if (!float_out && c.spec.activation == Activation::kNone) continue;
    Serial serial;
    try {
      run(c, serial, table.data());
      ADD_FAILURE() << "seed " << seed;
    } catch (const std::invalid_argument& e) {
      EXPECT_NE(std::string(e.what()).find(float_out ? "float32 output" : "an activation"),
                std::string::npos);
    }
  }
}

// A bias may bring infinities and NaN into the epilogue.
TEST(Ops, NotANumberComesOutLowest) {
  for (const LayerKind kind : {LayerKind::kLinear, LayerKind::kConv2d}) {
    constexpr int kOutputs = 64;
    LayerSpec s;
    s.kind = kind;
    s.in_channels = s.out_channels = kOutputs;
    if (kind == LayerKind::kConv2d) {
      s.groups = kOutputs;
      s.kernel[0] = s.kernel[1] = 3;
      s.padding[0] = s.padding[1] = 1;
    }
    s.act_mode = ActMode::kStatic;
    s.out_dtype = DType::kInt8;
    std::vector<int32_t> index(kOutputs);
    std::iota(index.begin(), index.end(), 0);
    const std::vector<uint8_t> codes(kOutputs * kOutputs, 128);
    const std::vector<float> scale(kOutputs, 1.0f);
    std::vector<float> bias(kOutputs, 3.0f);
    bias[0] = NAN;
    bias[1] = INFINITY;
    bias[2] = -INFINITY;
    s.segments = {{8, kOutputs, index.data(), codes.data(), nullptr, scale.data(), nullptr}};
    s.bias = bias.data();
    const size_t bytes = packed_layer_bytes(s);
    const std::unique_ptr<void, Free> blob(std::aligned_alloc(64, bytes));
    pack_layer(s, blob.get(), bytes);
    const std::vector<int8_t> x(16 * kOutputs, 1);
    for (const std::string& isa : tiers()) {
      set_isa(isa.c_str());
      std::vector<int8_t> out(16 * kOutputs);
      OpArgs a;
      a.blob = blob.get();
      a.blob_bytes = bytes;
      a.x = x.data();
      a.x_dtype = DType::kInt8;
      a.out = out.data();
      Serial serial;
      GrowingScratch scratch;
      if (kind == LayerKind::kLinear) {
        linear(a, 16, kOutputs, serial, scratch);
      } else {
        conv2d(a, 1, 4, 4, serial, scratch);
      }
      EXPECT_EQ(out[0], -128) << isa;
      EXPECT_EQ(out[1], 127) << isa;
      EXPECT_EQ(out[2], -128) << isa;
      EXPECT_EQ(out[3], 3) << isa;
    }
    set_isa(nullptr);
  }
}

TEST(Pack, WritesEveryByte) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    const Case c = make_case(seed);
    const auto* first = static_cast<const uint8_t*>(c.blob.get());
    const std::vector<uint8_t> want(first, first + c.blob_bytes);
    for (const int before : {0x00, 0xFF}) {
      std::memset(c.blob.get(), before, c.blob_bytes);
      pack_layer(c.spec, c.blob.get(), c.blob_bytes);
      ASSERT_EQ(std::memcmp(c.blob.get(), want.data(), want.size()), 0) << "seed " << seed;
    }
  }
}

TEST(Pack, NamesTheBadField) {
  const auto message = [](const LayerSpec& s) -> std::string {
    try {
      packed_layer_bytes(s);
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "accepted";
  };
  LayerSpec s;
  s.in_channels = 8;
  s.out_channels = 4;
  s.groups = 3;
  EXPECT_NE(message(s).find("groups"), std::string::npos);
  s.groups = 1;
  const int32_t index[] = {0, 2, 2, 3};
  const uint8_t codes[32] = {};
  const float scale[] = {1, 1, 1, NAN};
  SegmentSpec g;
  g.count = 4;
  g.out_index = index;
  g.codes = codes;
  g.scale = scale;
  s.segments = {g};
  EXPECT_NE(message(s).find("segments[0].out_index[2]"), std::string::npos);
  const int32_t increasing[] = {0, 1, 2, 3};
  s.segments[0].out_index = increasing;
  EXPECT_NE(message(s).find("segments[0].scale[3]"), std::string::npos);
  s.segments[0].bits = 9;
  EXPECT_NE(message(s).find("segments[0].bits"), std::string::npos);
  const float finite[] = {1, 1, 1, 1};
  const int32_t far[] = {0, 0, -255, 0};
  s.segments[0].bits = 8;
  s.segments[0].scale = finite;
  s.segments[0].zero_point = far;
  s.in_channels = 17000;
  EXPECT_NE(message(s).find("segments[0]: reduction length"), std::string::npos);
}

TEST(Pack, RefusesForeignBlobs) {
  alignas(64) char blob[4096] = {};
  EXPECT_THROW(layer_info(blob, sizeof(blob)), std::invalid_argument);
  EXPECT_THROW(layer_info(blob, 8), std::invalid_argument);
  EXPECT_THROW(layer_info(nullptr, 0), std::invalid_argument);
}

}  // namespace
}  // namespace defakeq

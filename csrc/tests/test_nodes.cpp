// The operators between layers against plain loops written from their definition, on every
// instruction set and with 1 to 3 threads: the same bytes everywhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "defakeq/cpu_info.h"
#include "defakeq/nodes.h"
#include "defakeq/thread_pool.h"
#include "kernels/scalar/vec.h"
#include "kernels/simd/epilogue.h"

namespace defakeq {
namespace {

using scalar::Vec;

std::vector<std::string> tiers() {
  const CpuInfo info = cpu_info();
  std::vector<std::string> both;
  for (const std::string& isa : info.built) {
    if (std::count(info.supported.begin(), info.supported.end(), isa) > 0) both.push_back(isa);
  }
  return both;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  int in(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  bool one_in(int n) { return in(1, n) == 1; }
  float real(float limit) { return std::uniform_real_distribution<float>(-limit, limit)(engine_); }

 private:
  std::mt19937 engine_;
};

// An operand that owns its elements.
struct Tensor {
  std::vector<float> f;
  std::vector<int8_t> q;
  Operand operand;

  size_t size() const { return operand.dtype == DType::kInt8 ? q.size() : f.size(); }
  int raw(int64_t i) const { return q[static_cast<size_t>(i)] - operand.quantization.zero_point; }
  float at(int64_t i) const {
    if (operand.dtype == DType::kFloat32) return f[static_cast<size_t>(i)];
    return static_cast<float>(raw(i)) * operand.quantization.scale;
  }
};

Quantization random_quantization(Random& random) {
  Quantization q;
  q.bits = random.one_in(3) ? random.in(4, 8) : 8;
  const int half = 1 << (q.bits - 1);
  q.zero_point = random.one_in(4)   ? -half
                 : random.one_in(4) ? half - 1
                                    : random.in(-half, half - 1);
  q.scale = static_cast<float>(random.in(1, 2000)) * 1e-4f;
  return q;
}

Tensor tensor(Random& random, int64_t count, DType dtype, float limit = 4.0f) {
  Tensor t;
  t.operand.dtype = dtype;
  if (dtype == DType::kInt8) {
    t.operand.quantization = random_quantization(random);
    const int half = 1 << (t.operand.quantization.bits - 1);
    const int how = random.in(0, 4);
    t.q.resize(static_cast<size_t>(count));
    for (int8_t& v : t.q) {
      v = static_cast<int8_t>(how == 0   ? -half
                              : how == 1 ? half - 1
                              : how == 2 ? (random.one_in(2) ? -half : half - 1)
                                         : random.in(-half, half - 1));
    }
    t.operand.data = t.q.data();
  } else {
    t.f.resize(static_cast<size_t>(count));
    for (float& v : t.f) v = random.one_in(10) ? 0.0f : random.real(limit);
    t.operand.data = t.f.data();
  }
  return t;
}

DType random_dtype(Random& random) { return random.one_in(2) ? DType::kInt8 : DType::kFloat32; }

Result random_result(Random& random) {
  Result r;
  r.dtype = random_dtype(random);
  if (r.dtype == DType::kInt8) r.quantization = random_quantization(random);
  return r;
}

// y as the bytes of a result.
void append(std::vector<uint8_t>& bytes, const Result& out, float y) {
  if (out.dtype == DType::kFloat32) {
    uint8_t raw[4];
    std::memcpy(raw, &y, 4);
    bytes.insert(bytes.end(), raw, raw + 4);
    return;
  }
  const int half = 1 << (out.quantization.bits - 1), zero = out.quantization.zero_point;
  const float low = static_cast<float>(-half - zero), high = static_cast<float>(half - 1 - zero);
  float v = y * (1.0f / out.quantization.scale);
  v = std::isnan(v) || v < low ? low : v > high ? high : v;
  bytes.push_back(static_cast<uint8_t>(static_cast<int>(std::nearbyint(v)) + zero));
}

std::vector<uint8_t> stored(const Result& out, const std::vector<float>& y) {
  std::vector<uint8_t> bytes;
  for (const float v : y) append(bytes, out, v);
  return bytes;
}

// Runs on all tiers and thread counts; `run` gets the place of the result.
void expect_bytes(const std::vector<uint8_t>& expected, const std::string& what,
                  const std::function<void(void*, Parallel&)>& run) {
  static ThreadPool pools[] = {ThreadPool(1), ThreadPool(2), ThreadPool(3)};
  for (const std::string& isa : tiers()) {
    set_isa(isa.c_str());
    for (ThreadPool& pool : pools) {
      std::vector<uint8_t> found(expected.size() + 64, 0xab);
      run(found.data(), pool);
      for (size_t i = 0; i < found.size(); ++i) {
        const uint8_t want = i < expected.size() ? expected[i] : 0xab;
        if (found[i] != want) {
          set_isa(nullptr);
          FAIL() << what << " on " << isa << ", " << pool.threads() << " threads: byte " << i
                 << " of " << expected.size() << " is " << int{found[i]} << ", not " << int{want};
        }
      }
    }
  }
  set_isa(nullptr);
}

float lanes(const std::vector<float>& x, const std::function<float(float, float)>& add) {
  float lane[16] = {};
  for (size_t i = 0; i < (x.size() + 15) / 16 * 16; ++i) {
    lane[i % 16] = add(lane[i % 16], i < x.size() ? x[i] : 0.0f);
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

float plus(float acc, float x) { return acc + x; }
float plus_square(float acc, float x) { return std::fma(x, x, acc); }

TEST(Nodes, Lookup) {
  Random random(1);
  for (int i = 0; i < 40; ++i) {
    const int count = i < 3 ? 100000 + i : random.in(1, 300);
    std::vector<int8_t> x(static_cast<size_t>(count)), table(256);
    for (int8_t& v : x) v = static_cast<int8_t>(random.in(-128, 127));
    for (int8_t& v : table) v = static_cast<int8_t>(random.in(-128, 127));
    std::vector<uint8_t> expected;
    for (const int8_t v : x) {
      expected.push_back(static_cast<uint8_t>(table[static_cast<size_t>(v + 128)]));
    }
    expect_bytes(expected, "lookup", [&](void* out, Parallel& parallel) {
      lookup(x.data(), count, table.data(), static_cast<int8_t*>(out), parallel);
    });
  }
}

double exact_unary(UnaryFn fn, double x) {
  switch (fn) {
    case UnaryFn::kIdentity:
      return x;
    case UnaryFn::kRelu:
      return std::max(x, 0.0);
    case UnaryFn::kRelu6:
      return std::clamp(x, 0.0, 6.0);
    case UnaryFn::kHardswish:
      return x * std::clamp(x + 3.0, 0.0, 6.0) / 6.0;
    case UnaryFn::kSilu:
      return x / (1.0 + std::exp(-x));
    case UnaryFn::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case UnaryFn::kSigmoid:
      return 1.0 / (1.0 + std::exp(-x));
    case UnaryFn::kTanh:
      return std::tanh(x);
    case UnaryFn::kHardsigmoid:
      return std::clamp(x + 3.0, 0.0, 6.0) / 6.0;
    case UnaryFn::kExp:
      return std::exp(x);
    case UnaryFn::kLog:
      return std::log(x);
    case UnaryFn::kSqrt:
      return std::sqrt(x);
    case UnaryFn::kRsqrt:
      return 1.0 / std::sqrt(x);
    case UnaryFn::kAbs:
      return std::fabs(x);
    case UnaryFn::kNeg:
      return -x;
    case UnaryFn::kSquare:
      return x * x;
    case UnaryFn::kReciprocal:
      return 1.0 / x;
  }
  return x;
}

TEST(Nodes, UnaryIsCloseAndTheSameEverywhere) {
  Random random(2);
  Serial serial;
  for (int i = 0; i < 17 * 6; ++i) {
    const auto fn = static_cast<UnaryFn>(i % 17);
    const int count = i < 17 ? 40000 : random.in(1, 100);
    Tensor x = tensor(random, count, random_dtype(random), 9.0f);
    const bool positive = fn == UnaryFn::kLog || fn == UnaryFn::kSqrt || fn == UnaryFn::kRsqrt;
    for (float& v : x.f) {
      if (positive || fn == UnaryFn::kReciprocal) v = std::fabs(v) + 1e-3f;
    }
    Result out = random_result(random);
    std::vector<float> y(static_cast<size_t>(count));
    Result plain;
    plain.data = y.data();
    set_isa("scalar");
    unary(fn, x.operand, count, plain, serial);
    set_isa(nullptr);
    for (int k = 0; k < count && x.operand.dtype == DType::kFloat32; ++k) {
      const double exact = exact_unary(fn, x.at(k));
      ASSERT_NEAR(y[static_cast<size_t>(k)], exact, 2e-6 * std::max(1.0, std::fabs(exact)))
          << static_cast<int>(fn) << " of " << x.at(k);
    }
    expect_bytes(stored(out, y), "unary " + std::to_string(i % 17),
                 [&](void* data, Parallel& parallel) {
                   Result to = out;
                   to.data = data;
                   unary(fn, x.operand, count, to, parallel);
                 });
  }
}

TEST(Nodes, Binary) {
  Random random(3);
  for (int i = 0; i < 300; ++i) {
    const auto fn = static_cast<BinaryFn>(random.in(0, 5));
    const auto shape = static_cast<Broadcast>(random.in(0, 3));
    const auto activation = static_cast<Activation>(random.one_in(2) ? 0 : random.in(0, 6));
    const int rows = random.in(1, random.one_in(4) ? 100 : 12),
              channels = i < 8 ? 5000 : random.in(1, 70);
    const Tensor a = tensor(random, rows * channels, random_dtype(random));
    const int b_count = shape == Broadcast::kNone      ? rows * channels
                        : shape == Broadcast::kChannel ? channels
                        : shape == Broadcast::kRow     ? rows
                                                       : 1;
    Tensor b = tensor(random, b_count, random_dtype(random));
    if (fn == BinaryFn::kDiv) {
      for (float& v : b.f) v = std::fabs(v) + 0.1f;
      for (int8_t& v : b.q) {
        if (v == b.operand.quantization.zero_point) v = static_cast<int8_t>(v > 0 ? v - 1 : v + 1);
      }
    }
    const Result out = random_result(random);
    std::vector<float> y;
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < channels; ++c) {
        const int k = r * channels + c;
        const float bv = b.at(shape == Broadcast::kNone      ? k
                              : shape == Broadcast::kChannel ? c
                              : shape == Broadcast::kRow     ? r
                                                             : 0);
        const float av = a.at(k);
        float v = 0.0f;
        const bool fused = a.operand.dtype == DType::kInt8;
        const float q = fused ? static_cast<float>(a.raw(k)) : 0.0f;
        const float scale = a.operand.quantization.scale;
        switch (fn) {
          case BinaryFn::kAdd:
            v = fused ? std::fma(q, scale, bv) : av + bv;
            break;
          case BinaryFn::kSub:
            v = fused ? std::fma(q, scale, -bv) : av - bv;
            break;
          case BinaryFn::kMul:
            v = av * bv;
            break;
          case BinaryFn::kDiv:
            v = av / bv;
            break;
          case BinaryFn::kMax:
            v = av > bv ? av : bv;
            break;
          case BinaryFn::kMin:
            v = av < bv ? av : bv;
            break;
        }
        y.push_back(simd::activate<Vec>(activation, v));
      }
    }
    expect_bytes(stored(out, y), "binary " + std::to_string(static_cast<int>(fn)),
                 [&](void* data, Parallel& parallel) {
                   Result to = out;
                   to.data = data;
                   binary(fn, a.operand, b.operand, shape, rows, channels, activation, to,
                          parallel);
                 });
  }
}

TEST(Nodes, LayerNorm) {
  Random random(4);
  for (int i = 0; i < 150; ++i) {
    const int in_rows = random.in(1, 20), channels = i < 4 ? 768 : random.in(1, 90);
    const int rows = random.one_in(2) ? in_rows : random.in(1, 30);
    const Tensor x = tensor(random, in_rows * channels, random_dtype(random));
    const Tensor gamma = tensor(random, channels, DType::kFloat32);
    const Tensor beta = tensor(random, channels, DType::kFloat32);
    LayerNormArgs args;
    args.x = x.operand;
    args.rows = rows;
    args.channels = channels;
    args.count = channels + (random.one_in(2) ? 0 : random.in(1, 40));
    args.eps = 1e-5f;
    if (random.one_in(2)) {
      args.gamma = gamma.f.data();
      args.beta = beta.f.data();
    }
    std::vector<int32_t> index;
    for (int r = 0; r < rows; ++r) index.push_back(random.in(-1, in_rows - 1));
    if (rows != in_rows || random.one_in(2)) args.row_index = index.data();
    const Result out = random_result(random);
    std::vector<float> y;
    for (int r = 0; r < rows; ++r) {
      const int from = args.row_index != nullptr ? index[static_cast<size_t>(r)] : r;
      if (from < 0) {
        y.insert(y.end(), static_cast<size_t>(channels), 0.0f);
        continue;
      }
      std::vector<float> v, d;
      for (int c = 0; c < channels; ++c) v.push_back(x.at(from * channels + c));
      const float inverse = 1.0f / static_cast<float>(args.count);
      const float mean = lanes(v, plus) * inverse;
      for (const float e : v) d.push_back(e - mean);
      const float absent = static_cast<float>(args.count - channels);
      const float variance = (lanes(d, plus_square) + absent * (mean * mean)) * inverse;
      const float factor = 1.0f / std::sqrt(variance + args.eps);
      for (int c = 0; c < channels; ++c) {
        const float n = d[static_cast<size_t>(c)] * factor;
        y.push_back(args.gamma != nullptr ? std::fma(n, args.gamma[c], args.beta[c]) : n);
      }
    }
    expect_bytes(stored(out, y), "layer_norm", [&](void* data, Parallel& parallel) {
      args.out = out;
      args.out.data = data;
      layer_norm(args, parallel);
    });
  }
}

TEST(Nodes, SoftmaxAndReduce) {
  Random random(5);
  for (int i = 0; i < 150; ++i) {
    const int rows = random.in(1, 20), channels = i < 4 ? 1000 : random.in(1, 90);
    const Tensor x = tensor(random, rows * channels, random_dtype(random), 30.0f);
    const Result out = random_result(random);
    std::vector<float> y, reduced[4];
    for (int r = 0; r < rows; ++r) {
      std::vector<float> v, e;
      for (int c = 0; c < channels; ++c) v.push_back(x.at(r * channels + c));
      const float top = *std::max_element(v.begin(), v.end());
      for (const float s : v) e.push_back(simd::exp<Vec>(s - top));
      const float inverse = 1.0f / lanes(e, plus);
      for (const float s : e) y.push_back(s * inverse);
      reduced[0].push_back(lanes(v, plus) * (1.0f / static_cast<float>(channels)));
      reduced[1].push_back(lanes(v, plus));
      reduced[2].push_back(top);
      reduced[3].push_back(std::sqrt(lanes(v, plus_square)));
    }
    expect_bytes(stored(out, y), "softmax", [&](void* data, Parallel& parallel) {
      Result to = out;
      to.data = data;
      softmax(x.operand, rows, channels, to, parallel);
    });
    for (int fn = 0; fn < 4; ++fn) {
      expect_bytes(stored(out, reduced[fn]), "reduce " + std::to_string(fn),
                   [&](void* data, Parallel& parallel) {
                     Result to = out;
                     to.data = data;
                     reduce(static_cast<ReduceFn>(fn), x.operand, rows, channels, to, parallel);
                   });
    }
  }
}

// Scratch of exactly the size that was asked for.
std::vector<uint8_t> scratch_of(size_t bytes) { return std::vector<uint8_t>(bytes + 64); }
void* aligned(std::vector<uint8_t>& bytes) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) / 64 * 64);
}

// softmax_codes, pack_rows and pack_columns are the kernels of these two.
TEST(Nodes, Attention) {
  Random random(6);
  for (int i = 0; i < 120; ++i) {
    AttentionArgs g;
    g.batches = random.in(1, 4);
    g.heads = random.in(1, 3);
    g.q_tokens = random.in(1, i < 8 ? 70 : 20);
    g.k_tokens = random.in(1, i < 8 ? 130 : 40);
    g.head_dim = random.one_in(3) ? 32 : random.in(1, 40);
    g.value_dim = random.one_in(3) ? 32 : random.in(1, 40);
    const int gap = random.in(0, 9);
    const auto layout = [&](int64_t tokens, int64_t dim) {
      HeadLayout l;
      l.head = dim;
      l.token = g.heads * dim + gap;
      l.batch = tokens * l.token;
      l.offset = gap;
      return l;
    };
    g.q_layout = layout(g.q_tokens, g.head_dim);
    g.k_layout = layout(g.k_tokens, g.head_dim);
    g.v_layout = layout(g.k_tokens, g.value_dim);
    const Tensor q = tensor(random, g.batches * g.q_layout.batch + gap, DType::kInt8);
    const Tensor k = tensor(random, g.batches * g.k_layout.batch + gap, DType::kInt8);
    const Tensor v = tensor(random, g.batches * g.v_layout.batch + gap, DType::kInt8);
    g.q = q.operand;
    g.k = k.operand;
    g.v = v.operand;
    g.alpha = random.real(0.01f);
    const int64_t plane = g.q_tokens * g.k_tokens;
    g.masks = g.batches % 2 == 0 && random.one_in(2) ? g.batches / 2 : g.batches;
    const Tensor bias = tensor(random, g.heads * plane, DType::kFloat32);
    Tensor mask = tensor(random, g.masks * plane, DType::kFloat32);
    for (float& e : mask.f) e = e > 0.0f ? 0.0f : -100.0f;
    if (random.one_in(2)) g.bias = bias.f.data();
    if (random.one_in(2)) g.mask = mask.f.data();
    const int64_t rows = g.batches * g.q_tokens, width = g.heads * g.value_dim;
    std::vector<int32_t> index(static_cast<size_t>(rows));
    for (size_t r = 0; r < index.size(); ++r) index[r] = static_cast<int32_t>(r);
    if (random.one_in(2)) {
      std::shuffle(index.begin(), index.end(), std::mt19937(static_cast<unsigned>(i)));
      g.row_index = index.data();
    }
    const Result out = random_result(random);
    std::vector<float> y(static_cast<size_t>(rows * width));
    for (int64_t b = 0; b < g.batches; ++b) {
      for (int64_t h = 0; h < g.heads; ++h) {
        for (int64_t t = 0; t < g.q_tokens; ++t) {
          std::vector<float> s;
          for (int64_t u = 0; u < g.k_tokens; ++u) {
            int32_t acc = 0;
            for (int64_t d = 0; d < g.head_dim; ++d) {
              acc += q.raw(g.q_layout.offset + b * g.q_layout.batch + t * g.q_layout.token +
                           h * g.q_layout.head + d) *
                     k.raw(g.k_layout.offset + b * g.k_layout.batch + u * g.k_layout.token +
                           h * g.k_layout.head + d);
            }
            float e = std::fma(static_cast<float>(acc), g.alpha,
                               g.bias != nullptr ? g.bias[h * plane + t * g.k_tokens + u] : 0.0f);
            if (g.mask != nullptr) e += g.mask[b % g.masks * plane + t * g.k_tokens + u];
            s.push_back(e);
          }
          const float top = *std::max_element(s.begin(), s.end());
          std::vector<int> p;
          int total = 0;
          for (const float e : s) {
            p.push_back(static_cast<int>(std::nearbyint(simd::exp<Vec>(e - top) * 255.0f)));
            total += p.back();
          }
          for (int64_t d = 0; d < g.value_dim; ++d) {
            int32_t acc = 0;
            for (int64_t u = 0; u < g.k_tokens; ++u) {
              acc +=
                  p[static_cast<size_t>(u)] * v.raw(g.v_layout.offset + b * g.v_layout.batch +
                                                    u * g.v_layout.token + h * g.v_layout.head + d);
            }
            const int64_t row = index[static_cast<size_t>(b * g.q_tokens + t)];
            y[static_cast<size_t>(row * width + h * g.value_dim + d)] =
                (static_cast<float>(acc) * (1.0f / static_cast<float>(total))) *
                g.v.quantization.scale;
          }
        }
      }
    }
    expect_bytes(stored(out, y), "attention", [&](void* data, Parallel& parallel) {
      g.out = out;
      g.out.data = data;
      auto scratch = scratch_of(attention_scratch_bytes(g, parallel.threads()));
      attention(g, aligned(scratch), parallel);
    });
  }
}

TEST(Nodes, Matmul) {
  Random random(7);
  for (int i = 0; i < 150; ++i) {
    MatmulArgs g;
    g.batches = random.in(1, 4);
    g.m = random.in(1, 70);
    g.n = random.in(1, 70);
    g.k = random.in(1, 70);
    const bool transposed = random.one_in(2);
    g.a_layout = {2, g.m * (g.k + 3), g.k + 3, 1};
    g.b_layout = {1, (g.n + 2) * (g.k + 2), transposed ? 1 : g.n + 2, transposed ? g.k + 2 : 1};
    const Tensor a = tensor(random, g.batches * g.a_layout.batch + 2, DType::kInt8);
    const Tensor b = tensor(random, g.batches * g.b_layout.batch + 1, DType::kInt8);
    g.a = a.operand;
    g.b = b.operand;
    g.alpha = random.real(0.01f);
    const Result out = random_result(random);
    std::vector<float> y;
    for (int64_t e = 0; e < g.batches; ++e) {
      for (int64_t m = 0; m < g.m; ++m) {
        for (int64_t n = 0; n < g.n; ++n) {
          int32_t acc = 0;
          for (int64_t k = 0; k < g.k; ++k) {
            acc += a.raw(2 + e * g.a_layout.batch + m * g.a_layout.row + k) *
                   b.raw(1 + e * g.b_layout.batch + k * g.b_layout.row + n * g.b_layout.col);
          }
          y.push_back(static_cast<float>(acc) * g.alpha);
        }
      }
    }
    expect_bytes(stored(out, y), "matmul", [&](void* data, Parallel& parallel) {
      g.out = out;
      g.out.data = data;
      auto scratch = scratch_of(matmul_scratch_bytes(g, parallel.threads()));
      matmul(g, aligned(scratch), parallel);
    });
  }
}

// The average of some pixels of x, in order.
float average(const Tensor& x, const std::vector<int64_t>& at, int64_t divisor) {
  const float inverse = 1.0f / static_cast<float>(divisor);
  if (x.operand.dtype == DType::kInt8) {
    int32_t sum = 0;
    for (const int64_t i : at) sum += x.raw(i);
    return static_cast<float>(sum) * (x.operand.quantization.scale * inverse);
  }
  float sum = 0.0f;
  for (const int64_t i : at) sum += x.at(i);
  return sum * inverse;
}

TEST(Nodes, Pool2d) {
  Random random(8);
  for (int i = 0; i < 200; ++i) {
    Pool2dArgs g;
    g.mode = random.one_in(2) ? PoolMode::kMax : PoolMode::kAvg;
    g.channels = random.one_in(3) ? 64 : random.in(1, 140);
    g.ceil_mode = random.one_in(2);
    g.count_include_pad = random.one_in(2);
    for (int d = 0; d < 2; ++d) {
      g.kernel[d] = random.in(1, 4);
      g.stride[d] = random.in(1, 3);
      g.padding[d] = random.in(0, g.kernel[d] / 2);
    }
    g.h = random.in(g.kernel[0], 12);
    g.w = random.in(g.kernel[1], 12);
    const Tensor x = tensor(random, g.h * g.w * g.channels, random_dtype(random));
    g.x = x.operand;
    Result out = random_result(random);
    if (g.mode == PoolMode::kMax && x.operand.dtype == DType::kInt8) {
      out.quantization = x.operand.quantization;
    }
    const int64_t out_h = pool_out_size(g.h, g.kernel[0], g.stride[0], g.padding[0], g.ceil_mode);
    const int64_t out_w = pool_out_size(g.w, g.kernel[1], g.stride[1], g.padding[1], g.ceil_mode);
    std::vector<float> y;
    for (int64_t oy = 0; oy < out_h; ++oy) {
      for (int64_t ox = 0; ox < out_w; ++ox) {
        for (int64_t c = 0; c < g.channels; ++c) {
          std::vector<int64_t> at;
          int64_t padded = 0;
          float best = -INFINITY;
          for (int64_t ky = 0; ky < g.kernel[0]; ++ky) {
            for (int64_t kx = 0; kx < g.kernel[1]; ++kx) {
              const int64_t iy = oy * g.stride[0] - g.padding[0] + ky;
              const int64_t ix = ox * g.stride[1] - g.padding[1] + kx;
              if (iy < g.h + g.padding[0] && ix < g.w + g.padding[1]) ++padded;
              if (iy < 0 || ix < 0 || iy >= g.h || ix >= g.w) continue;
              at.push_back((iy * g.w + ix) * g.channels + c);
              best = std::max(best, x.at(at.back()));
            }
          }
          const auto inside = static_cast<int64_t>(at.size());
          y.push_back(g.mode == PoolMode::kMax
                          ? best
                          : average(x, at, g.count_include_pad ? padded : inside));
        }
      }
    }
    expect_bytes(stored(out, y), "pool2d", [&](void* data, Parallel& parallel) {
      g.out = out;
      g.out.data = data;
      pool2d(g, parallel);
    });
  }
}

TEST(Nodes, AdaptiveAvgPool2dAndMeanRows) {
  Random random(9);
  for (int i = 0; i < 100; ++i) {
    const int h = random.in(1, 12), w = random.in(1, 12), channels = random.in(1, 140);
    const int out_h = random.in(1, 7), out_w = random.in(1, 7);
    const Tensor x = tensor(random, h * w * channels, random_dtype(random));
    const Result out = random_result(random);
    std::vector<float> y, means;
    for (int oy = 0; oy < out_h; ++oy) {
      for (int ox = 0; ox < out_w; ++ox) {
        for (int c = 0; c < channels; ++c) {
          std::vector<int64_t> at;
          for (int iy = oy * h / out_h; iy * out_h < (oy + 1) * h; ++iy) {
            for (int ix = ox * w / out_w; ix * out_w < (ox + 1) * w; ++ix) {
              at.push_back((iy * w + ix) * channels + c);
            }
          }
          y.push_back(average(x, at, static_cast<int64_t>(at.size())));
        }
      }
    }
    for (int c = 0; c < channels; ++c) {
      std::vector<int64_t> at;
      for (int p = 0; p < h * w; ++p) at.push_back(p * channels + c);
      means.push_back(average(x, at, h * w));
    }
    expect_bytes(stored(out, y), "adaptive_avg_pool2d", [&](void* data, Parallel& parallel) {
      Result to = out;
      to.data = data;
      adaptive_avg_pool2d(x.operand, h, w, channels, out_h, out_w, to, parallel);
    });
    expect_bytes(stored(out, means), "mean_rows", [&](void* data, Parallel& parallel) {
      Result to = out;
      to.data = data;
      mean_rows(x.operand, h * w, channels, to, parallel);
    });
  }
}

TEST(Nodes, Interpolate) {
  Random random(10);
  for (int i = 0; i < 120; ++i) {
    InterpolateArgs g;
    g.h = random.in(1, 9);
    g.w = random.in(1, 9);
    g.out_h = random.in(1, 15);
    g.out_w = random.in(1, 15);
    g.channels = random.in(1, 40);
    g.bilinear = random.one_in(2);
    g.align_corners = g.bilinear && random.one_in(2);
    const auto scale = [&](int64_t in, int64_t out) {
      if (!g.align_corners) return static_cast<double>(in) / static_cast<double>(out);
      return out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
    };
    g.scale[0] = scale(g.h, g.out_h);
    g.scale[1] = scale(g.w, g.out_w);
    const Tensor x = tensor(random, g.h * g.w * g.channels, random_dtype(random));
    g.x = x.operand;
    const Result out = random_result(random);
    const auto position = [&](int d, int64_t o) {
      if (!g.bilinear || g.align_corners) return static_cast<double>(o) * g.scale[d];
      return std::max((static_cast<double>(o) + 0.5) * g.scale[d] - 0.5, 0.0);
    };
    std::vector<float> y;
    for (int64_t oy = 0; oy < g.out_h; ++oy) {
      for (int64_t ox = 0; ox < g.out_w; ++ox) {
        const double py = position(0, oy), px = position(1, ox);
        const int64_t y0 = std::min(static_cast<int64_t>(py), g.h - 1);
        const int64_t x0 = std::min(static_cast<int64_t>(px), g.w - 1);
        const int64_t y1 = std::min(y0 + 1, g.h - 1), x1 = std::min(x0 + 1, g.w - 1);
        const auto ly = static_cast<float>(py - static_cast<double>(y0));
        const auto lx = static_cast<float>(px - static_cast<double>(x0));
        for (int64_t c = 0; c < g.channels; ++c) {
          const auto at = [&](int64_t r, int64_t q) {
            return x.at((r * g.w + q) * g.channels + c);
          };
          const float top = std::fma(at(y0, x1) - at(y0, x0), lx, at(y0, x0));
          const float bottom = std::fma(at(y1, x1) - at(y1, x0), lx, at(y1, x0));
          y.push_back(g.bilinear ? std::fma(bottom - top, ly, top) : at(y0, x0));
        }
      }
    }
    expect_bytes(stored(out, y), "interpolate", [&](void* data, Parallel& parallel) {
      g.out = out;
      g.out.data = data;
      interpolate(g, parallel);
    });
  }
}

TEST(Nodes, CopyChunks) {
  Random random(11);
  for (int i = 0; i < 60; ++i) {
    const int inputs = random.in(1, 3), bytes = random.in(1, 50), count = random.in(1, 2000);
    std::vector<std::vector<uint8_t>> data;
    std::vector<uint8_t> all;
    std::vector<const void*> pointers;
    std::vector<int64_t> chunks;
    for (int k = 0; k < inputs; ++k) {
      chunks.push_back(random.in(1, 30));
      data.emplace_back();
      for (int64_t e = 0; e < chunks.back() * bytes; ++e) {
        data.back().push_back(static_cast<uint8_t>(random.in(0, 255)));
      }
      all.insert(all.end(), data.back().begin(), data.back().end());
    }
    for (const auto& d : data) pointers.push_back(d.data());
    const int total = static_cast<int>(all.size()) / bytes;
    std::vector<int32_t> index;
    std::vector<uint8_t> expected;
    for (int k = 0; k < count; ++k) {
      const bool next = k > 0 && index.back() >= 0 && index.back() + 1 < total;
      index.push_back(next && !random.one_in(4) ? index.back() + 1 : random.in(-1, total - 1));
      for (int e = 0; e < bytes; ++e) {
        expected.push_back(index.back() < 0 ? 7
                                            : all[static_cast<size_t>(index.back() * bytes + e)]);
      }
    }
    CopyArgs g{pointers.data(), chunks.data(), inputs, index.data(), count, bytes, 7, nullptr};
    expect_bytes(expected, "copy_chunks", [&](void* out, Parallel& parallel) {
      g.out = out;
      copy_chunks(g, parallel);
    });
    index[0] = total;
    Serial serial;
    g.out = expected.data();
    EXPECT_THROW(copy_chunks(g, serial), std::invalid_argument);
  }
}

// The index of a copy, whole: what its repetitions add is `step`.
std::vector<int32_t> repeated(const std::vector<int32_t>& index, const std::vector<int32_t>& step,
                              int repeats) {
  std::vector<int32_t> whole;
  for (int r = 0; r < repeats; ++r) {
    for (size_t i = 0; i < index.size(); ++i) whole.push_back(index[i] + r * step[i]);
  }
  return whole;
}

struct Copy {
  std::vector<int32_t> index, step;
  int repeats;
  std::vector<int64_t> chunks;
};

// Channels of several inputs side by side, some of them absent, or the axes of an array exchanged.
Copy make_copy(Random& random) {
  Copy c{{}, {}, random.one_in(4) ? 1 : random.in(2, 70), {}};
  const int kind = random.in(0, 2);
  if (kind == 0) {
    int64_t at = 0;
    for (int k = random.in(1, 4); k > 0; --k) {
      const int channels = random.in(1, 20);
      for (int i = 0; i < channels; ++i) {
        c.index.push_back(static_cast<int32_t>(at + i));
        c.step.push_back(channels);
      }
      if (random.one_in(3)) {
        c.index.push_back(-1);
        c.step.push_back(0);
      }
      c.chunks.push_back(int64_t{channels} * c.repeats);
      at += c.chunks.back();
    }
    return c;
  }
  const int a = random.in(1, 40), b = random.in(1, 40);
  // of [repeats][a][b] or [a][b][repeats], one of them backwards now and then
  const int across = kind == 1 ? 1 : c.repeats;
  const bool back = random.one_in(3), back_step = kind == 2 && random.one_in(3);
  for (int j = 0; j < b; ++j) {
    for (int i = 0; i < a; ++i) {
      const int first = back_step ? c.repeats - 1 : 0;
      c.index.push_back((i * b + (back ? b - 1 - j : j)) * across + first);
      c.step.push_back(kind == 1 ? a * b : back_step ? -1 : 1);
    }
  }
  c.chunks.push_back(int64_t{a} * b * c.repeats);
  return c;
}

TEST(Nodes, MovesAreTheirCopy) {
  Random random(13);
  int regular = 0;
  for (int k = 0; k < 300; ++k) {
    Copy c = make_copy(random);
    if (random.one_in(8)) {
      std::shuffle(c.index.begin(), c.index.end(), std::mt19937(static_cast<unsigned>(k)));
    }
    const int bytes = random.one_in(2) ? 1 << random.in(0, 4) : random.in(1, 20);
    const int64_t total = std::accumulate(c.chunks.begin(), c.chunks.end(), int64_t{0});
    for (size_t i = 0; i < c.index.size(); ++i) {
      const int64_t last = c.index[i] + int64_t{c.repeats - 1} * c.step[i];
      if (last < -1 || last >= total) c.step[i] = 0;  // of a shuffled index
    }
    const int32_t* step = c.repeats == 1 ? nullptr : c.step.data();
    const std::vector<CopyMove> moves =
        copy_moves(c.index.data(), step, static_cast<int64_t>(c.index.size()), c.repeats, c.chunks);
    if (moves.empty()) continue;
    ++regular;
    const std::vector<int32_t> whole = repeated(c.index, c.step, c.repeats);
    std::vector<std::vector<uint8_t>> data;
    std::vector<const void*> pointers;
    for (const int64_t n : c.chunks) {
      data.emplace_back(static_cast<size_t>(n * bytes));
      for (uint8_t& v : data.back()) v = static_cast<uint8_t>(random.in(0, 255));
      pointers.push_back(data.back().data());
    }
    std::vector<uint8_t> expected(whole.size() * static_cast<size_t>(bytes));
    Serial serial;
    copy_chunks({pointers.data(), c.chunks.data(), static_cast<int64_t>(c.chunks.size()),
                 whole.data(), static_cast<int64_t>(whole.size()), bytes, 7, expected.data()},
                serial);
    expect_bytes(expected, "moves " + std::to_string(k), [&](void* out, Parallel& parallel) {
      move_chunks(
          {pointers.data(), moves.data(), static_cast<int64_t>(moves.size()), bytes, 7, out},
          parallel);
    });
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(regular, 100);
}

TEST(Nodes, MovesRefuseChunksThatAreNotThere) {
  const std::vector<int32_t> index = {0, 1}, step = {2, 2};
  EXPECT_NO_THROW(copy_moves(index.data(), step.data(), 2, 10, {20}));
  EXPECT_THROW(copy_moves(index.data(), step.data(), 2, 10, {19}), std::invalid_argument);
  EXPECT_THROW(copy_moves(index.data(), nullptr, 2, 10, {20}), std::invalid_argument);
  // the repetitions of an entry may not lie in two inputs
  EXPECT_TRUE(copy_moves(index.data(), step.data(), 2, 10, {10, 10}).empty());
}

TEST(Nodes, Nchw) {
  Random random(12);
  for (int i = 0; i < 80; ++i) {
    const int channels = random.one_in(3) ? 3 : random.in(1, 40);
    const int pixels = i < 4 ? 20000 : random.in(1, 200);
    const Tensor x = tensor(random, channels * pixels, DType::kFloat32);
    const Result out = random_result(random);
    std::vector<float> y;
    for (int p = 0; p < pixels; ++p) {
      for (int c = 0; c < channels; ++c) y.push_back(x.at(c * pixels + p));
    }
    expect_bytes(stored(out, y), "from_nchw", [&](void* data, Parallel& parallel) {
      Result to = out;
      to.data = data;
      from_nchw(x.f.data(), channels, pixels, to, parallel);
    });
    const Tensor z = tensor(random, channels * pixels, random_dtype(random));
    std::vector<float> planes;
    for (int c = 0; c < channels; ++c) {
      for (int p = 0; p < pixels; ++p) planes.push_back(z.at(p * channels + c));
    }
    expect_bytes(stored(Result{}, planes), "to_nchw", [&](void* data, Parallel& parallel) {
      to_nchw(z.operand, channels, pixels, static_cast<float*>(data), parallel);
    });
  }
}

TEST(Nodes, ErrorsNameTheField) {
  Serial serial;
  const auto message = [](const std::function<void()>& run) -> std::string {
    try {
      run();
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "accepted";
  };
  const auto names = [&](const char* field, const std::function<void()>& run) {
    const std::string text = message(run);
    EXPECT_EQ(text.find(field), 0u) << text;
    EXPECT_NE(text.find("found"), std::string::npos) << text;
  };
  float f[64] = {};
  int8_t q[64] = {};
  const Operand x{f, DType::kFloat32, {}};
  const Result out{f, DType::kFloat32, {}};
  names("count", [&] { unary(UnaryFn::kRelu, x, 0, out, serial); });
  names("x", [&] { unary(UnaryFn::kRelu, Operand{}, 4, out, serial); });
  names("out.scale",
        [&] { unary(UnaryFn::kRelu, x, 4, Result{q, DType::kInt8, {0.0f, 0, 8}}, serial); });
  names("x.zero_point",
        [&] { unary(UnaryFn::kRelu, Operand{q, DType::kInt8, {1.0f, 8, 4}}, 4, out, serial); });
  names("x.bits",
        [&] { unary(UnaryFn::kRelu, Operand{q, DType::kInt8, {1.0f, 0, 3}}, 4, out, serial); });
  AttentionArgs a;
  a.batches = a.q_tokens = a.heads = a.head_dim = a.value_dim = 1;
  a.k_tokens = 40000;
  names("k_tokens", [&] { attention_scratch_bytes(a, 1); });
  a.k_tokens = 1;
  a.q = x;
  names("q", [&] { attention(a, f, serial); });
  MatmulArgs m;
  m.batches = m.m = m.n = 1;
  m.k = 40000;
  names("k", [&] { matmul_scratch_bytes(m, 1); });
  Pool2dArgs p;
  p.x = x;
  p.out = out;
  p.h = p.w = 2;
  p.channels = 1;
  p.kernel[0] = 3;
  names("x", [&] { pool2d(p, serial); });
  p.padding[0] = 2;
  names("padding", [&] { pool2d(p, serial); });
  LayerNormArgs l;
  l.x = x;
  l.out = out;
  l.rows = 1;
  l.channels = 8;
  l.count = 4;
  names("count", [&] { layer_norm(l, serial); });
  names("rows", [&] { mean_rows(x, 0, 1, out, serial); });
}

}  // namespace
}  // namespace defakeq

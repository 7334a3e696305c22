#include "bench_nodes.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "defakeq/nodes.h"

namespace {

using namespace defakeq;
using Clock = std::chrono::steady_clock;

// Seconds a call, the best of some rounds.
double seconds(int rounds, const std::function<void()>& call) {
  call();
  double best = 1e30;
  for (int r = 0; r < rounds; ++r) {
    int calls = 0;
    double spent = 0.0;
    const auto begin = Clock::now();
    do {
      call();
      ++calls;
      spent = std::chrono::duration<double>(Clock::now() - begin).count();
    } while (spent < 2e-3);
    best = std::min(best, spent / calls);
  }
  return best;
}

class Bench {
 public:
  Bench(const std::string& work, int rounds, Parallel& parallel)
      : work_(work), rounds_(rounds), parallel_(parallel), a_(kBytes), b_(kBytes), out_(kBytes) {
    for (size_t i = 0; i < kBytes; ++i) {
      a_[i] = static_cast<int8_t>(i * 37 % 251 - 125);
      b_[i] = static_cast<int8_t>(i * 91 % 251 - 125);
    }
    for (size_t i = 0; i < kBytes / 4; ++i) floats_.push_back(static_cast<float>(i % 97) * 0.05f);
    qa_ = {a_.data(), DType::kInt8, {0.05f, 3, 8}};
    qb_ = {b_.data(), DType::kInt8, {0.04f, -2, 8}};
    f_ = {floats_.data(), DType::kFloat32, {}};
    q_out_ = {out_.data(), DType::kInt8, {0.1f, 1, 8}};
  }

  void run() {
    const int64_t pixels = 56 * 56, channels = 256, count = pixels * channels;
    std::vector<int8_t> table(256, 3);
    bytes("lookup 56x56x256", 2 * count,
          [&] { lookup(a_.data(), count, table.data(), out_.data(), parallel_); });
    bytes("unary silu 56x56x256", 2 * count,
          [&] { unary(UnaryFn::kSilu, qa_, count, q_out_, parallel_); });
    bytes("binary add 56x56x256", 3 * count, [&] {
      binary(BinaryFn::kAdd, qa_, qb_, Broadcast::kNone, pixels, channels, Activation::kNone,
             q_out_, parallel_);
    });
    bytes("binary mul by channel 56x56x256", 2 * count, [&] {
      binary(BinaryFn::kMul, qa_, qb_, Broadcast::kChannel, pixels, channels, Activation::kNone,
             q_out_, parallel_);
    });
    LayerNormArgs norm;
    norm.x = f_;
    norm.rows = 197;
    norm.channels = norm.count = 768;
    norm.gamma = norm.beta = floats_.data();
    norm.eps = 1e-6f;
    norm.out = q_out_;
    bytes("layer_norm 197x768", 197 * 768 * 5, [&] { layer_norm(norm, parallel_); });
    bytes("softmax 197x197", 197 * 197 * 5, [&] { softmax(f_, 197, 197, q_out_, parallel_); });
    bytes("reduce mean 197x768", 197 * 768 * 4,
          [&] { reduce(ReduceFn::kMean, f_, 197, 768, q_out_, parallel_); });
    attend("attention 197x12x64", 1, 197, 12, 64);
    attend("attention 64x49x4x32", 64, 49, 4, 32);
    product();
    Pool2dArgs pool;
    pool.x = qa_;
    pool.h = pool.w = 112;
    pool.channels = 64;
    for (int d = 0; d < 2; ++d) {
      pool.kernel[d] = 3;
      pool.stride[d] = 2;
      pool.padding[d] = 1;
    }
    pool.out = {out_.data(), DType::kInt8, qa_.quantization};
    bytes("pool2d max 3x3 112x112x64", 112 * 112 * 64 * 5 / 4, [&] { pool2d(pool, parallel_); });
    bytes("adaptive_avg_pool2d 7x7x2048", 49 * 2048,
          [&] { adaptive_avg_pool2d(qa_, 7, 7, 2048, 1, 1, q_out_, parallel_); });
    bytes("mean_rows 56x56x256", count,
          [&] { mean_rows(qa_, pixels, channels, q_out_, parallel_); });
    InterpolateArgs up;
    up.x = qa_;
    up.h = up.w = 28;
    up.out_h = up.out_w = 56;
    up.channels = 128;
    up.bilinear = true;
    up.scale[0] = up.scale[1] = 0.5;
    up.out = q_out_;
    bytes("interpolate 28x28x128 to 56x56", 56 * 56 * 128 * 5 / 4,
          [&] { interpolate(up, parallel_); });
    std::vector<int32_t> index(3136);
    for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i * 7 % 3136);
    const void* input = a_.data();
    const int64_t chunks = 3136;
    const CopyArgs copy{&input, &chunks, 1, index.data(), 3136, 128, 0, out_.data()};
    bytes("copy_chunks 3136x128", 2 * 3136 * 128, [&] { copy_chunks(copy, parallel_); });
    bytes("from_nchw 3x224x224", 3 * 224 * 224 * 5,
          [&] { from_nchw(floats_.data(), 3, 224 * 224, q_out_, parallel_); });
    bytes("to_nchw 64x56x56", 64 * pixels * 5,
          [&] { to_nchw(qa_, 64, pixels, reinterpret_cast<float*>(out_.data()), parallel_); });
  }

 private:
  static constexpr size_t kBytes = size_t{4} << 20;

  void bytes(const char* name, int64_t count, const std::function<void()>& call) {
    if (std::string(name).find(work_) == std::string::npos) return;
    const double s = seconds(rounds_, call);
    std::printf("%-42s %15.2f us %8.1f GB/s\n", name, s * 1e6,
                static_cast<double>(count) / s / 1e9);
  }

  void macs(const char* name, int64_t count, const std::function<void()>& call) {
    if (std::string(name).find(work_) == std::string::npos) return;
    const double s = seconds(rounds_, call);
    std::printf("%-42s %15.2f us %8.1f GMAC/s\n", name, s * 1e6,
                static_cast<double>(count) / s / 1e9);
  }

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> scratch(size_t size) {
    return std::unique_ptr<void, Free>(std::aligned_alloc(64, (size + 63) / 64 * 64));
  }

  void attend(const char* name, int64_t batches, int64_t tokens, int64_t heads, int64_t dim) {
    AttentionArgs g;
    g.q = qa_;
    g.k = qb_;
    g.v = qb_;
    g.q_layout = {0, tokens * 3 * heads * dim, 3 * heads * dim, dim};
    g.k_layout = g.v_layout = g.q_layout;
    g.k_layout.offset = heads * dim;
    g.v_layout.offset = 2 * heads * dim;
    g.batches = batches;
    g.q_tokens = g.k_tokens = tokens;
    g.heads = heads;
    g.head_dim = g.value_dim = dim;
    g.alpha = 1e-4f;
    g.out = q_out_;
    const auto memory = scratch(attention_scratch_bytes(g, parallel_.threads()));
    macs(name, 2 * batches * heads * tokens * tokens * dim,
         [&] { attention(g, memory.get(), parallel_); });
  }

  void product() {
    MatmulArgs g;
    g.a = qa_;
    g.b = qb_;
    g.a_layout = {0, 197 * 64, 64, 1};
    g.b_layout = {0, 197 * 64, 1, 64};
    g.batches = 12;
    g.m = g.n = 197;
    g.k = 64;
    g.alpha = 1e-4f;
    g.out = q_out_;
    const auto memory = scratch(matmul_scratch_bytes(g, parallel_.threads()));
    macs("matmul 12x197x197x64", 12 * 197 * 197 * 64, [&] { matmul(g, memory.get(), parallel_); });
  }

  std::string work_;
  int rounds_;
  Parallel& parallel_;
  std::vector<int8_t> a_, b_, out_;
  std::vector<float> floats_;
  Operand qa_, qb_, f_;
  Result q_out_;
};

}  // namespace

void bench_nodes(const std::string& work, int rounds, Parallel& parallel) {
  Bench(work, rounds, parallel).run();
}

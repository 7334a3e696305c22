// Attention and products of two activations. One operand is packed as gemm_s8's weights (signed
// bytes + 128 are unsigned codes), the other is read in place: the integer product is that of the
// layers, and the zero points of both sides come out through sums.
#include <cmath>
#include <cstring>

#include "defakeq/nodes.h"
#include "dispatch/dispatch.h"
#include "kernels/node_args.h"
#include "ops/arena.h"
#include "ops/node_checks.h"
#include "ops/post.h"

namespace defakeq {

namespace {

// Rows of one operand that go through both products while their scores are in cache.
constexpr int64_t kRows = 32;
constexpr int64_t kNoOffset = 0;

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }
int64_t steps_of(int64_t k) { return (k + 3) / 4; }

// A packed operand with what gemm_s8 needs beside the codes.
struct PackedOperand {
  int64_t outputs = 0, length = 0;
  uint8_t* codes = nullptr;
  int32_t* sums = nullptr;
  int32_t* zero_point = nullptr;
  int32_t* correction = nullptr;
  float* scale = nullptr;
  float* bias = nullptr;

  void place(Arena& arena, int64_t n, int64_t k) {
    outputs = n;
    length = k;
    const int64_t lanes = blocks_of(n) * kBlock;
    codes = arena.take<uint8_t>(lanes * steps_of(k) * 4);
    sums = arena.take<int32_t>(lanes);
    zero_point = arena.take<int32_t>(lanes);
    correction = arena.take<int32_t>(lanes);
    scale = arena.take<float>(lanes);
    bias = arena.take<float>(lanes);
  }

  void set_lanes(int32_t zero, float factor) {
    for (int64_t i = 0; i < blocks_of(outputs) * kBlock; ++i) {
      zero_point[i] = zero + 128;
      scale[i] = factor;
      bias[i] = -0.0f;  // fma(y, factor, -0) is the bare product
    }
  }

  // Takes out the zero point of the other operand, whose row sums are of its plain bytes.
  void correct(int32_t other_zero) {
    for (int64_t i = 0; i < blocks_of(outputs) * kBlock; ++i) {
      correction[i] = -other_zero * (sums[i] - static_cast<int32_t>(length) * zero_point[i]);
    }
  }

  void pack(const KernelTable& k, const int8_t* x, bool rows, int64_t stride) {
    const PackCodesArgs args{x, stride, outputs, length, codes, sums};
    rows ? k.pack_rows(args) : k.pack_columns(args);
    if (k.arrange_codes == nullptr) return;
    const int64_t steps = steps_of(length);
    for (int64_t b = 0; b < blocks_of(outputs); ++b) {
      k.arrange_codes(codes + b * steps * kBlock * 4, 8, steps, length);
    }
  }

  GemmS8Args product(const int8_t* const* rows, int64_t m, const int32_t* row_sum) const {
    GemmS8Args a{};
    a.rows = rows;
    a.m = m;
    a.tap_offset = &kNoOffset;
    a.taps = 1;
    a.bits = 8;
    a.steps = steps_of(length);
    a.w_stride = a.steps * kBlock * 4;
    a.row_sum = row_sum;
    return a;
  }

  // a with its outputs stored through `post` at out, kTileBlocks blocks a call.
  void run(const KernelTable& k, GemmS8Args a, void* out, int64_t out_stride,
           const Post& post) const {
    a.out_stride = out_stride;
    a.post = post;
    const int64_t blocks = blocks_of(outputs);
    for (int64_t b = 0; b < blocks; b += kTileBlocks) {
      const int64_t col = b * kBlock;
      a.blocks = static_cast<int>(std::min<int64_t>(kTileBlocks, blocks - b));
      a.w = codes + b * a.w_stride;
      a.zero_point = zero_point + col;
      a.correction = correction + col;
      a.scale = scale + col;
      a.bias = bias + col;
      a.n = static_cast<int>(std::min<int64_t>(outputs - col, kTileBlocks * kBlock));
      a.out = offset(out, col, post.out_dtype);
      k.gemm_s8(a);
    }
  }
};

// The rows of the operand that is read in place; copied when its last step would read past them.
struct RowOperand {
  const int8_t** rows = nullptr;
  int32_t* sums = nullptr;
  int8_t* copy = nullptr;

  void place(Arena& arena, int64_t length) {
    rows = arena.take<const int8_t*>(kRows);
    sums = arena.take<int32_t>(kRows);
    if (length % 4 != 0) copy = arena.take<int8_t>(kRows * steps_of(length) * 4);
  }

  void set(const KernelTable& k, const int8_t* x, int64_t stride, int64_t m, int64_t length) {
    const int64_t pitch = steps_of(length) * 4;
    for (int64_t r = 0; r < m; ++r) {
      rows[r] = x + r * stride;
      if (copy == nullptr) continue;
      std::memcpy(copy + r * pitch, rows[r], static_cast<size_t>(length));
      std::memset(copy + r * pitch + length, 0, static_cast<size_t>(pitch - length));
      rows[r] = copy + r * pitch;
    }
    k.row_sums(rows, m, &kNoOffset, 1, length, sums);
  }
};

// What one task of an attention works in.
struct Head {
  PackedOperand keys, values;
  RowOperand queries;
  float* scores = nullptr;
  int8_t* codes = nullptr;
  const int8_t** code_rows = nullptr;
  int32_t* code_sums = nullptr;
  float* inverse = nullptr;
  void* moved = nullptr;
  int64_t pitch = 0;

  Head(Arena& arena, const AttentionArgs& g) {
    pitch = blocks_of(g.k_tokens) * kBlock;
    keys.place(arena, g.k_tokens, g.head_dim);
    values.place(arena, g.value_dim, g.k_tokens);
    queries.place(arena, g.head_dim);
    scores = arena.take<float>(kRows * pitch);
    codes = arena.take<int8_t>(kRows * pitch);
    code_rows = arena.take<const int8_t*>(kRows);
    code_sums = arena.take<int32_t>(kRows);
    inverse = arena.take<float>(kRows);
    if (g.row_index != nullptr) moved = arena.take<float>(kRows * g.value_dim);
  }
};

const int8_t* head_of(const Operand& x, const HeadLayout& l, int64_t batch, int64_t head) {
  return static_cast<const int8_t*>(x.data) + l.offset + batch * l.batch + head * l.head;
}

void attend(const KernelTable& k, const AttentionArgs& g, const Post& post, Head& h, int64_t batch,
            int64_t head, int64_t begin, int64_t end) {
  h.keys.pack(k, head_of(g.k, g.k_layout, batch, head), true, g.k_layout.token);
  h.keys.correct(g.q.quantization.zero_point);
  h.values.pack(k, head_of(g.v, g.v_layout, batch, head), false, g.v_layout.token);
  // codes are p - 128
  h.values.correct(-128);
  const int8_t* q = head_of(g.q, g.q_layout, batch, head);
  const int64_t plane = g.q_tokens * g.k_tokens;
  const float* bias = g.bias != nullptr ? g.bias + head * plane : nullptr;
  const float* mask = g.mask != nullptr ? g.mask + batch % g.masks * plane : nullptr;
  const int64_t width = g.heads * g.value_dim;
  for (int64_t t = begin; t < end; t += kRows) {
    const int64_t m = std::min(kRows, end - t);
    h.queries.set(k, q + t * g.q_layout.token, g.q_layout.token, m, g.head_dim);
    h.keys.run(k, h.keys.product(h.queries.rows, m, h.queries.sums), h.scores, h.pitch, Post{});
    const int64_t at = t * g.k_tokens;
    k.softmax_codes({h.scores, m, g.k_tokens, h.pitch, g.alpha,
                     bias != nullptr ? bias + at : nullptr, mask != nullptr ? mask + at : nullptr,
                     h.codes, h.code_sums});
    for (int64_t r = 0; r < m; ++r) {
      h.inverse[r] = 1.0f / static_cast<float>(h.code_sums[r]);
      h.code_sums[r] -= 128 * static_cast<int32_t>(g.k_tokens);
    }
    GemmS8Args product = h.values.product(h.code_rows, m, h.code_sums);
    product.row_scale = h.inverse;
    const int64_t row = batch * g.q_tokens + t;
    if (g.row_index == nullptr) {
      h.values.run(k, product, offset(g.out.data, row * width + head * g.value_dim, post.out_dtype),
                   width, post);
      continue;
    }
    h.values.run(k, product, h.moved, g.value_dim, post);
    for (int64_t r = 0; r < m; ++r) {
      std::memcpy(
          offset(g.out.data, g.row_index[row + r] * width + head * g.value_dim, post.out_dtype),
          offset(h.moved, r * g.value_dim, post.out_dtype),
          static_cast<size_t>(g.value_dim * size_of(post.out_dtype)));
    }
  }
}

void check_attention(const AttentionArgs& g) {
  check_size("batches", g.batches);
  check_range("q_tokens", g.q_tokens, 1, int64_t{1} << 24);
  check_range("k_tokens", g.k_tokens, 1, kMaxProductLength);
  check_range("heads", g.heads, 1, 1 << 16);
  check_range("head_dim", g.head_dim, 1, kMaxProductLength);
  check_range("value_dim", g.value_dim, 1, 1 << 16);
}

// How often the rows of one item are cut so that every thread has some.
int64_t parts_of(int64_t items, int64_t rows, int threads) {
  const int64_t wanted = threads <= 1 || items >= threads ? 1 : (threads + items - 1) / items;
  return std::min(wanted, (rows + kRows - 1) / kRows);
}

}  // namespace

size_t attention_scratch_bytes(const AttentionArgs& args, int threads) {
  check_attention(args);
  Arena sizes;
  for (int t = 0; t < std::max(threads, 1); ++t) Head(sizes, args);
  return sizes.used();
}

void attention(const AttentionArgs& args, void* scratch, Parallel& parallel) {
  check_attention(args);
  check_int8("q", args.q);
  check_int8("k", args.k);
  check_int8("v", args.v);
  if (args.mask != nullptr) {
    check_range("masks", args.masks, 1, args.batches);
    if (args.batches % args.masks != 0) {
      refuse("masks", std::to_string(args.masks),
             "a divisor of the " + std::to_string(args.batches) + " batches");
    }
  }
  if (!std::isfinite(args.alpha)) refuse("alpha", std::to_string(args.alpha), "a finite number");
  check_pointer("scratch", scratch);
  const Post post = result_post(args.out);
  const KernelTable& k = kernels();
  const int threads = std::max(parallel.threads(), 1);
  const int64_t parts = parts_of(args.batches * args.heads, args.q_tokens, threads);
  Arena sizes;
  Head(sizes, args);
  const size_t bytes = sizes.used();
  for_tasks(parallel, args.batches * args.heads * parts,
            [&](int64_t task, int64_t begin, int64_t end) {
              Arena arena(static_cast<char*>(scratch) + static_cast<size_t>(task) * bytes);
              Head head(arena, args);
              // scores leave the product as fma(x, alpha, -0) unless a bias is to be added
              head.keys.set_lanes(args.k.quantization.zero_point,
                                  args.bias == nullptr ? args.alpha : 1.0f);
              head.values.set_lanes(args.v.quantization.zero_point, args.v.quantization.scale);
              for (int64_t r = 0; r < kRows; ++r) head.code_rows[r] = head.codes + r * head.pitch;
              for (int64_t i = begin; i < end; ++i) {
                const int64_t item = i / parts, part = i % parts;
                attend(k, args, post, head, item / args.heads, item % args.heads,
                       args.q_tokens * part / parts, args.q_tokens * (part + 1) / parts);
              }
            });
}

namespace {

struct MatmulTask {
  PackedOperand b;
  RowOperand a;

  MatmulTask(Arena& arena, const MatmulArgs& g) {
    b.place(arena, g.n, g.k);
    a.place(arena, g.k);
  }
};

void check_matmul(const MatmulArgs& g) {
  check_size("batches", g.batches);
  check_range("m", g.m, 1, int64_t{1} << 24);
  check_range("n", g.n, 1, int64_t{1} << 24);
  check_range("k", g.k, 1, kMaxProductLength);
}

}  // namespace

size_t matmul_scratch_bytes(const MatmulArgs& args, int threads) {
  check_matmul(args);
  Arena sizes;
  for (int t = 0; t < std::max(threads, 1); ++t) MatmulTask(sizes, args);
  return sizes.used();
}

void matmul(const MatmulArgs& args, void* scratch, Parallel& parallel) {
  check_matmul(args);
  check_int8("a", args.a);
  check_int8("b", args.b);
  if (args.a_layout.col != 1 && args.k > 1) {
    refuse("a_layout.col", std::to_string(args.a_layout.col), "1");
  }
  const bool rows = args.b_layout.row == 1 || args.k == 1;
  if (!rows && args.b_layout.col != 1 && args.n > 1) {
    refuse(
        "b_layout",
        "row " + std::to_string(args.b_layout.row) + ", col " + std::to_string(args.b_layout.col),
        "1 for one of the two");
  }
  if (!std::isfinite(args.alpha)) refuse("alpha", std::to_string(args.alpha), "a finite number");
  check_pointer("scratch", scratch);
  const Post post = result_post(args.out);
  const KernelTable& k = kernels();
  const int64_t parts = parts_of(args.batches, args.m, std::max(parallel.threads(), 1));
  Arena sizes;
  MatmulTask(sizes, args);
  const size_t bytes = sizes.used();
  for_tasks(parallel, args.batches * parts, [&](int64_t task, int64_t begin, int64_t end) {
    Arena arena(static_cast<char*>(scratch) + static_cast<size_t>(task) * bytes);
    MatmulTask t(arena, args);
    t.b.set_lanes(args.b.quantization.zero_point, args.alpha);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / parts, part = i % parts;
      t.b.pack(k,
               static_cast<const int8_t*>(args.b.data) + args.b_layout.offset +
                   batch * args.b_layout.batch,
               rows, rows ? args.b_layout.col : args.b_layout.row);
      t.b.correct(args.a.quantization.zero_point);
      const int8_t* a = static_cast<const int8_t*>(args.a.data) + args.a_layout.offset +
                        batch * args.a_layout.batch;
      const int64_t last = args.m * (part + 1) / parts;
      for (int64_t row = args.m * part / parts; row < last; row += kRows) {
        const int64_t m = std::min(kRows, last - row);
        t.a.set(k, a + row * args.a_layout.row, args.a_layout.row, m, args.k);
        t.b.run(k, t.b.product(t.a.rows, m, t.a.sums),
                offset(args.out.data, (batch * args.m + row) * args.n, post.out_dtype), args.n,
                post);
      }
    }
  });
}

}  // namespace defakeq

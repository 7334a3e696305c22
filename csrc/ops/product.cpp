#include "ops/product.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "ops/arena.h"
#include "ops/output_windows.h"
#include "ops/post.h"
#include "ops/product_rows.h"
#include "ops/tasks.h"

namespace defakeq {

namespace {

constexpr int64_t kChunkBytes = int64_t{64} << 20;
// What one pass over rows may touch, weights and activations each, to stay in a second-level cache.
constexpr int64_t kCacheBytes = int64_t{256} << 10;
// Fewer rows a task are not worth expanding the weights once a task.
constexpr int64_t kRowsATask = 64;

class Product {
 public:
  Product(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
          const Images& images, Parallel& parallel)
      : layer_(layer),
        kernels_(kernels),
        args_(args),
        images_(images),
        parallel_(parallel),
        gemv_(uses_gemv()),
        planes_(gemv_ || reads_planes()),
        activations_(layer, kernels, args, images, true, gemv_ ? 4 * kPlaneSteps : 4),
        rows_(layer, kernels, images, activations_) {
    tasks_ = std::max(parallel.threads(), 1);
    chunk_ = std::clamp<int64_t>(kChunkBytes / std::max<int64_t>(activations_.bytes_per_image(), 1),
                                 1, images.n);
    rows_per_image_ = images.out_h * images.out_w;
  }

  void place(Arena& arena);
  void run();

 private:
  bool uses_gemv() const {
    return layer_.taps == 1 && layer_.groups == 1 &&
           images_.n * images_.out_h * images_.out_w <= kGemvRows &&
           layer_.act_mode != ActMode::kNone &&
           (layer_.pieces == 1 || layer_.group_size % (4 * kPlaneSteps) == 0);
  }
  // Whether runs of the reduction begin at plane blocks, where the kernel may read these.
  bool reads_planes() const {
    return kernels_.reads_planes && layer_.act_mode != ActMode::kNone &&
           (layer_.taps == 1 || layer_.tap_steps % kPlaneSteps == 0) &&
           (layer_.pieces == 1 || layer_.group_size % (4 * kPlaneSteps) == 0);
  }
  bool fuses_half_inputs() const {
    return kernels_.fuses_half_inputs && !gemv_ && layer_.pieces == 1;
  }
  int64_t half_length() const {
    return layer_.half_inputs * (layer_.merged_row ? layer_.kernel[1] : 1);
  }
  bool may_window() const {
    return kernels_.writes_windows && !layer_.direct && !gemv_ &&
           layer_.out_dtype == DType::kInt8 && layer_.act_mode != ActMode::kNone &&
           layer_.int_blocks == layer_.blocks;
  }
  void run_chunk(int64_t first, int64_t count, float tensor_scale);
  void find_strips();
  int64_t rows_at_once() const;
  void run_by_rows();
  void run_by_strips();
  void gather_residual_rows(int64_t task, int64_t begin, int64_t end);
  int64_t slot_row(int64_t task, int64_t row) const;
  void scatter_out_rows(int64_t task, int64_t begin, int64_t end);
  void run_strip(int64_t task, const Strip& strip, int64_t row0, int64_t row1);
  void int_strip(int64_t task, const Strip& strip, int64_t row0, int64_t row1);
  void float_strip(int64_t task, const Strip& strip, int64_t row0, int64_t row1);
  const float* half_chain(int64_t task, const Strip& strip, int64_t row0, int64_t row1);
  const uint8_t* expanded(int64_t task, const Strip& strip, bool arranged);
  void arrange(uint8_t* codes, int bits) const;
  template <class Args>
  void set_output(Args& a, int64_t task, const Strip& strip, int64_t row0, bool raw, float* sums);

  const PackedBlock& block(int i) const { return layer_.at<PackedBlock>(layer_.block_table)[i]; }

  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const OpArgs& args_;
  const Images& images_;
  Parallel& parallel_;
  bool gemv_;
  bool planes_;  // codes are expanded by the kernel, not beforehand
  Activations activations_;
  int tasks_ = 1;
  ProductRows rows_;
  int64_t chunk_ = 1, rows_per_image_ = 1, m_ = 0;
  bool by_rows_ = true;  // how the tasks share the running chunk

  // scratch
  Strip* strips_ = nullptr;
  int64_t strip_count_ = 0;
  OutputWindow* windows_ = nullptr;
  bool windowed_ = false;     // pruned outputs are left out by the kernel itself
  uint8_t* codes_ = nullptr;  // a task: expanded codes of a strip
  float* panel_ = nullptr;    // a task: float32 weights of a strip
  float* sums_ = nullptr;     // a task: [m][32] intermediate results
  int64_t codes_bytes_ = 0, panel_floats_ = 0, sums_floats_ = 0;
  int32_t* cached_ = nullptr;  // a task: first block of the strip in codes_ / panel_, -1
  uint8_t* fill_ = nullptr;
  int64_t* first_in_hand_ = nullptr;  // a task: the first row that the slots hold
  int64_t slot_rows_ = 0;             // between the slots of two tasks
  void* slots_out_ = nullptr;
  void* slots_residual_ = nullptr;

  void* final_out_ = nullptr;  // of the running chunk
  void* out_ = nullptr;        // the same, or slots_out_
  const void* residual_ = nullptr;
  const uint8_t* used_fill_ = nullptr;
  int64_t out_stride_ = 0;
  Post post_;
};

void Product::find_strips() {
  const int limit = gemv_ ? kGemvBlocks : kTileBlocks;
  strip_count_ = 0;
  for (int b = 0; b < layer_.blocks;) {
    int count = 1;
    while (count < limit && b + count < layer_.blocks && block(b + count).bits == block(b).bits &&
           block(b + count).group == block(b).group) {
      ++count;
    }
    if (block(b).bits == 16) count = std::min(count, kTileBlocks);
    strips_[strip_count_++] = {b, count, 0, 0};
    b += count;
  }
}

void Product::place(Arena& arena) {
  const bool ints = layer_.int_blocks > 0;
  const bool weight_only = layer_.act_mode == ActMode::kNone;
  const int64_t m = chunk_ * rows_per_image_;
  activations_.place(arena, chunk_, tasks_);
  strips_ = arena.take<Strip>(layer_.blocks);
  rows_.place(arena, chunk_, tasks_);
  if (ints && !planes_) {
    codes_bytes_ = kTileBlocks * layer_.padded_steps * 64;
    codes_ = arena.take<uint8_t>(codes_bytes_ * tasks_);
  }
  if (ints && weight_only) {
    // one tap's trailing step may write past the tap
    panel_floats_ = kTileBlocks * (layer_.padded_steps * 64 + 64);
    panel_ = arena.take<float>(panel_floats_ * tasks_);
  }
  if (layer_.half_inputs > 0 || layer_.pieces > 1) {
    sums_floats_ = m * kGemvBlocks * kBlock;
    sums_ = arena.take<float>(sums_floats_ * tasks_);
  }
  cached_ = arena.take<int32_t>(tasks_ * int64_t{16});
  if (!layer_.direct) {
    fill_ = arena.take<uint8_t>(fill_bytes(layer_));
    if (may_window()) {
      windows_ = arena.take<OutputWindow>(most_windows(layer_));
    }
    // By strips all rows are there at once, by rows those that a task has in hand.
    const int64_t share = ((m + kTileRows - 1) / kTileRows + tasks_ - 1) / tasks_ * kTileRows;
    slot_rows_ = std::min(rows_at_once(), share);
    const int64_t rows = std::max(slot_rows_ * tasks_, std::min(m, kRowsATask * tasks_));
    first_in_hand_ = arena.take<int64_t>(tasks_ * int64_t{8});
    slots_out_ = arena.take<char>(rows * layer_.slots() * size_of(layer_.out_dtype));
    if (args_.residual != nullptr) {
      slots_residual_ = arena.take<char>(rows * layer_.slots() * size_of(args_.residual_dtype));
    }
  }
}

// Brings one block's codes into the kernel's order: taps, or pieces of them, are runs.
void Product::arrange(uint8_t* codes, int bits) const {
  const int64_t runs = std::max(layer_.pieces, layer_.taps), per_tap = runs / layer_.taps;
  for (int64_t p = 0; p < runs; ++p) {
    const int64_t start = p % per_tap * layer_.group_size;
    const int64_t length = layer_.pieces == 1
                               ? layer_.tap_length
                               : std::min<int64_t>(layer_.group_size, layer_.tap_length - start);
    kernels_.arrange_codes(codes + (p / per_tap * layer_.tap_steps + start / 4) * 64, bits,
                           (length + 3) / 4, length);
  }
}

// Codes of the strip, one byte each; expanded once a task and strip.
const uint8_t* Product::expanded(int64_t task, const Strip& strip, bool arranged) {
  const PackedBlock& b = block(strip.first);
  arranged = arranged && kernels_.arrange_codes != nullptr;
  if (b.bits == 8 && !arranged) return layer_.at<uint8_t>(b.weight);
  uint8_t* codes = codes_ + task * codes_bytes_;
  if (cached_[task * 16] != strip.first) {
    for (int i = 0; i < strip.count; ++i) {
      uint8_t* to = codes + i * layer_.padded_steps * 64;
      kernels_.expand_codes(layer_.at<uint8_t>(block(strip.first + i).weight), b.bits,
                            layer_.padded_steps, to);
      if (arranged) arrange(to, b.bits);
    }
    cached_[task * 16] = strip.first;
  }
  return codes;
}

template <class Args>
void Product::set_output(Args& a, int64_t task, const Strip& strip, int64_t row0, bool raw,
                         float* sums) {
  const int64_t col = int64_t{strip.first} * kBlock;
  const int lanes = strip.count * kBlock;
  a.n = lanes;
  if (raw) {
    a.out = sums;
    a.out_stride = lanes;
    a.post = raw_post();
    return;
  }
  if (layer_.direct) a.n = static_cast<int>(std::min<int64_t>(lanes, layer_.out_channels - col));
  const int64_t row = slot_row(task, row0);
  a.out = windowed_ ? offset(out_, row0 * out_stride_, layer_.out_dtype)
                    : offset(out_, row * out_stride_ + col, layer_.out_dtype);
  if constexpr (std::is_same_v<Args, GemmS8Args>) {
    a.windows = windowed_ ? windows_ + strip.window : nullptr;
    a.window_count = strip.windows;
    const auto zero = static_cast<int8_t>(layer_.out.zero_point);
    a.absent = args_.table != nullptr ? args_.table[zero + 128] : zero;
  }
  a.out_stride = out_stride_;
  a.post = post_;
  if (post_.residual != nullptr) {
    a.post.residual =
        offset(post_.residual, row * post_.residual_stride + col, post_.residual_dtype);
  }
}

// bias + the half-precision inputs' chain, or null when there are none
const float* Product::half_chain(int64_t task, const Strip& strip, int64_t row0, int64_t row1) {
  if (layer_.half_inputs == 0) return nullptr;
  float* sums = sums_ + task * sums_floats_;
  GemmF32Args a{};
  a.rows = rows_.halves + row0;
  a.m = row1 - row0;
  a.tap_offset = rows_.half_tap_offset;
  a.taps = layer_.taps;
  a.length = half_length();
  a.blocks = strip.count;
  a.w = layer_.at<float>(block(strip.first).half_in);
  a.w_stride = a.taps * a.length * kBlock;
  a.chain_from_bias = true;
  a.last_lanes = block(strip.first + strip.count - 1).lanes;
  a.bias = layer_.at<float>(layer_.bias) + int64_t{strip.first} * kBlock;
  set_output(a, task, strip, row0, true, sums);
  kernels_.gemm_f32(a);
  return sums;
}

void Product::int_strip(int64_t task, const Strip& strip, int64_t row0, int64_t row1) {
  const PackedBlock& b = block(strip.first);
  const int64_t slot = int64_t{strip.first} * kBlock, slots = layer_.slots();
  float* sums = sums_ + task * sums_floats_;
  GemmS8Args a{};
  a.rows = rows_.bytes + row0;
  a.m = row1 - row0;
  a.tap_offset = rows_.taps_of(b.group);
  a.taps = layer_.taps;
  a.steps = layer_.tap_steps;
  a.blocks = strip.count;
  a.bits = b.bits;
  a.planes = planes_ && b.bits < 8;
  a.w = planes_ ? layer_.at<uint8_t>(b.weight) : expanded(task, strip, true);
  a.w_stride = planes_ ? layer_.block_bytes(b.bits) : layer_.padded_steps * 64;
  a.bias = layer_.at<float>(layer_.bias) + slot;
  a.row_scale = rows_.scales_from(row0);
  if (layer_.half_inputs > 0 && fuses_half_inputs()) {
    a.half_rows = rows_.halves + row0;
    a.half_tap_offset = rows_.half_tap_offset;
    a.half_length = half_length();
    a.half_w = layer_.at<float>(b.half_in);
    a.half_w_stride = a.taps * a.half_length * kBlock;
  } else {
    a.row_bias = half_chain(task, strip, row0, row1);
    a.row_bias_stride = int64_t{strip.count} * kBlock;
  }
  const auto parameters = [&](int64_t piece) {
    a.zero_point = layer_.at<int32_t>(layer_.zero_point) + piece * slots + slot;
    a.correction = layer_.at<int32_t>(layer_.correction) + piece * slots + slot;
    a.scale = layer_.at<float>(layer_.scale) + piece * slots + slot;
  };
  const auto call = [&] {
    if (gemv_) {
      a.steps = (a.steps + kPlaneSteps - 1) / kPlaneSteps * kPlaneSteps;
      kernels_.gemv_s8(a);
    } else {
      kernels_.gemm_s8(a);
    }
  };
  if (layer_.pieces == 1) {
    parameters(0);
    a.row_sum = rows_.sums_of(b.group) + row0;
    set_output(a, task, strip, row0, false, nullptr);
    call();
    return;
  }
  const uint8_t* w = a.w;
  a.taps = 1;
  for (int64_t p = 0; p < layer_.pieces; ++p) {
    const int64_t tap = p / layer_.pieces_per_tap;
    const int64_t start = p % layer_.pieces_per_tap * layer_.group_size;
    const int64_t length = std::min<int64_t>(layer_.group_size, layer_.tap_length - start);
    const int64_t step = tap * layer_.tap_steps + start / 4;
    parameters(p);
    a.tap_offset = rows_.piece_offset + p;
    a.steps = (length + 3) / 4;
    a.w = w + (planes_ ? step / kPlaneSteps * b.bits * 64 : step * 64);
    a.row_sum = rows_.sums_of(p) + row0;
    set_output(a, task, strip, row0, p + 1 < layer_.pieces, sums);
    call();
    a.row_bias = sums;
  }
}

void Product::float_strip(int64_t task, const Strip& strip, int64_t row0, int64_t row1) {
  const PackedBlock& b = block(strip.first);
  const int64_t slot = int64_t{strip.first} * kBlock, slots = layer_.slots();
  const int64_t reduction = layer_.taps * layer_.tap_length;
  float* sums = sums_ + task * sums_floats_;
  GemmF32Args a{};
  if (activations_.makes_float()) {
    a.rows = rows_.floats + row0;
  } else {
    a.bytes = rows_.bytes + row0;
    a.zero_point = layer_.act.zero_point;
  }
  a.m = row1 - row0;
  a.tap_offset = rows_.taps_of(b.group);
  a.taps = layer_.taps;
  a.length = layer_.tap_length;
  a.blocks = strip.count;
  a.last_lanes = block(strip.first + strip.count - 1).lanes;
  a.bias = layer_.at<float>(layer_.bias) + slot;
  a.scale = layer_.at<float>(layer_.scale) + slot;
  a.row_scale = rows_.scales_from(row0);
  a.row_bias = half_chain(task, strip, row0, row1);
  a.row_bias_stride = int64_t{strip.count} * kBlock;
  if (b.bits == 16) {
    a.w = layer_.at<float>(b.weight);
    a.w_stride = reduction * kBlock;
    set_output(a, task, strip, row0, false, nullptr);
    kernels_.gemm_f32(a);
    return;
  }
  const uint8_t* codes = expanded(task, strip, false);
  float* panel = panel_ + task * panel_floats_;
  const auto* zero_point = layer_.at<int32_t>(layer_.zero_point) + slot;
  const int64_t code_stride = layer_.padded_steps * 64;
  if (layer_.pieces == 1) {
    a.w_stride = (reduction + 4) * kBlock;
    for (int i = 0; i < strip.count; ++i) {
      for (int64_t t = 0; t < layer_.taps; ++t) {
        kernels_.codes_to_f32(codes + i * code_stride + t * layer_.tap_steps * 64, layer_.tap_steps,
                              zero_point + i * kBlock,
                              panel + i * a.w_stride + t * layer_.tap_length * kBlock);
      }
    }
    a.w = panel;
    set_output(a, task, strip, row0, false, nullptr);
    kernels_.gemm_f32(a);
    return;
  }
  a.taps = 1;
  a.w = panel;
  a.w_stride = (layer_.group_size + 4) * kBlock;
  for (int64_t p = 0; p < layer_.pieces; ++p) {
    const int64_t tap = p / layer_.pieces_per_tap;
    const int64_t start = p % layer_.pieces_per_tap * layer_.group_size;
    a.length = std::min<int64_t>(layer_.group_size, layer_.tap_length - start);
    for (int i = 0; i < strip.count; ++i) {
      kernels_.codes_to_f32(codes + i * code_stride + (tap * layer_.tap_steps + start / 4) * 64,
                            (a.length + 3) / 4, zero_point + p * slots + i * kBlock,
                            panel + i * a.w_stride);
    }
    a.tap_offset = rows_.piece_offset + p;
    a.scale = layer_.at<float>(layer_.scale) + p * slots + slot;
    set_output(a, task, strip, row0, p + 1 < layer_.pieces, sums);
    kernels_.gemm_f32(a);
    a.row_bias = sums;
  }
}

void Product::run_strip(int64_t task, const Strip& strip, int64_t row0, int64_t row1) {
  if (block(strip.first).bits == 16 || layer_.act_mode == ActMode::kNone) {
    float_strip(task, strip, row0, row1);
  } else {
    int_strip(task, strip, row0, row1);
  }
}

// Where a row lies in the output, or in the slots of a layer that is not direct.
int64_t Product::slot_row(int64_t task, int64_t row) const {
  if (layer_.direct || !by_rows_) return row;
  return task * slot_rows_ + row - first_in_hand_[task * 8];
}

void Product::gather_residual_rows(int64_t task, int64_t begin, int64_t end) {
  if (layer_.direct || args_.residual == nullptr) return;
  gather_residual(
      layer_, kernels_, args_.residual_dtype,
      offset(residual_, begin * layer_.out_channels, args_.residual_dtype), end - begin,
      offset(slots_residual_, slot_row(task, begin) * layer_.slots(), args_.residual_dtype));
}

void Product::scatter_out_rows(int64_t task, int64_t begin, int64_t end) {
  if (layer_.direct || windowed_) return;
  scatter_rows(layer_, kernels_, used_fill_,
               offset(out_, slot_row(task, begin) * layer_.slots(), layer_.out_dtype),
               layer_.slots(), end - begin,
               offset(final_out_, begin * layer_.out_channels, layer_.out_dtype));
}

// How many rows pass through all strips before the next ones: all of them, or, when the weights are
// few, what stays in cache meanwhile.
int64_t Product::rows_at_once() const {
  const int64_t weights = layer_.blocks * layer_.padded_steps * 64;
  if (weights > kCacheBytes) return std::numeric_limits<int64_t>::max();
  int64_t row = layer_.stored_inputs + layer_.out_channels * size_of(layer_.out_dtype);
  if (args_.residual != nullptr) row += layer_.out_channels * size_of(args_.residual_dtype);
  return std::max(kCacheBytes / row, 2 * kRowsATask) / kTileRows * kTileRows;
}

// A task has rows of its own and runs all strips over them.
void Product::run_by_rows() {
  const int64_t step = layer_.direct ? rows_at_once() : slot_rows_;
  for_tasks(parallel_, (m_ + kTileRows - 1) / kTileRows,
            [&](int64_t task, int64_t first, int64_t last) {
              const int64_t end = std::min(last * kTileRows, m_);
              for (int64_t row0 = first * kTileRows; row0 < end;) {
                const int64_t row1 = row0 + std::min(step, end - row0);
                if (!layer_.direct) first_in_hand_[task * 8] = row0;
                rows_.find(row0, row1);
                rows_.sum(row0, row1);
                gather_residual_rows(task, row0, row1);
                for (int64_t s = 0; s < strip_count_; ++s) run_strip(task, strips_[s], row0, row1);
                scatter_out_rows(task, row0, row1);
                row0 = row1;
              }
            });
}

// A task has strips of its own; rows are cut only when there are too few strips.
void Product::run_by_strips() {
  rows_.find(0, m_);
  for_tasks(parallel_, m_, [&](int64_t task, int64_t begin, int64_t end) {
    rows_.sum(begin, end);
    gather_residual_rows(task, begin, end);
  });
  const int64_t parts =
      std::clamp<int64_t>((4 * tasks_ + strip_count_ - 1) / std::max<int64_t>(strip_count_, 1), 1,
                          (m_ + kTileRows - 1) / kTileRows);
  for_tasks(parallel_, strip_count_ * parts, [&](int64_t task, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      // adjacent parts of one strip run as one
      const int64_t strip = i / parts, last = std::min(end, (strip + 1) * parts);
      const int64_t from = i % parts, to = last - strip * parts;
      run_strip(task, strips_[strip], m_ * from / parts, m_ * to / parts);
      i = last;
    }
  });
  if (!layer_.direct) {
    for_tasks(parallel_, m_, [&](int64_t task, int64_t begin, int64_t end) {
      scatter_out_rows(task, begin, end);
    });
  }
}

void Product::run_chunk(int64_t first, int64_t count, float tensor_scale) {
  activations_.prepare(first, count, tensor_scale, parallel_);
  m_ = count * rows_per_image_;
  rows_.find_taps(m_);
  rows_.sum_pixels(count, parallel_);
  const int64_t row0 = first * rows_per_image_;
  final_out_ = offset(args_.out, row0 * layer_.out_channels, layer_.out_dtype);
  post_ = make_post(layer_, args_);
  if (post_.residual != nullptr) {
    residual_ = offset(post_.residual, row0 * layer_.out_channels, post_.residual_dtype);
    post_.residual = layer_.direct ? residual_ : slots_residual_;
    if (!layer_.direct) post_.residual_stride = layer_.slots();
  }
  const bool in_place = layer_.direct || windowed_;
  out_ = in_place ? final_out_ : slots_out_;
  out_stride_ = in_place ? layer_.out_channels : layer_.slots();
  if (!in_place) used_fill_ = scatter_fill(layer_, args_.table, fill_);
  for (int t = 0; t < tasks_; ++t) cached_[t * 16] = -1;
  by_rows_ = tasks_ == 1 || m_ >= kRowsATask * tasks_;
  if (by_rows_) {
    run_by_rows();
  } else {
    run_by_strips();
  }
}

void Product::run() {
  find_strips();
  windowed_ = may_window() && find_windows(layer_, strips_, strip_count_, windows_);
  float tensor_scale = 1.0f;
  if (layer_.act_mode == ActMode::kDynamicTensor) {
    tensor_scale =
        dynamic_scale(kernels_, static_cast<const float*>(args_.x),
                      images_.n * images_.h * images_.w, layer_.in_channels, images_.x_stride);
  }
  for (int64_t first = 0; first < images_.n; first += chunk_) {
    run_chunk(first, std::min(chunk_, images_.n - first), tensor_scale);
  }
}

}  // namespace

size_t product_scratch(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                       const Images& images, Parallel& parallel) {
  Product product(layer, kernels, args, images, parallel);
  Arena sizes;
  product.place(sizes);
  return sizes.used();
}

void run_product(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                 const Images& images, Parallel& parallel, Scratch& scratch) {
  Product product(layer, kernels, args, images, parallel);
  Arena sizes;
  product.place(sizes);
  Arena arena(scratch.get(sizes.used()));
  product.place(arena);
  product.run();
}

}  // namespace defakeq

#include "ops/product.h"

#include <algorithm>
#include <limits>

#include "ops/arena.h"
#include "ops/half_outputs.h"
#include "ops/post.h"
#include "ops/product_rows.h"
#include "ops/strips.h"
#include "ops/tasks.h"
#include "ops/winograd.h"

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
        activations_(layer, kernels, args, images, true, gemv_ ? 4 * kPlaneSteps : 4),
        tasks_(std::max(parallel.threads(), 1)),
        chunk_(std::clamp<int64_t>(
            kChunkBytes / std::max<int64_t>(activations_.bytes_per_image(), 1), 1, images.n)),
        winograd_(layer, kernels, images, activations_, chunk_, tasks_),
        rows_(layer, kernels, images, activations_, !winograd_.pays()),
        halves_(layer, kernels, images, activations_),
        strips_(layer, kernels, args, rows_, winograd_, gemv_, halves_.apply()),
        rows_per_image_(images_.out_h * images_.out_w) {}

  void place(Arena& arena);
  void run();
  bool uses_winograd() const { return winograd_.pays(); }

 private:
  bool uses_gemv() const {
    return layer_.taps == 1 && layer_.groups == 1 &&
           images_.n * images_.out_h * images_.out_w <= kGemvRows &&
           layer_.act_mode != ActMode::kNone &&
           (layer_.pieces == 1 || layer_.group_size % (4 * kPlaneSteps) == 0);
  }
  // Whether results and residuals may pass through slots.
  bool may_use_slots() const { return !layer_.direct && !layer_.patched; }
  int64_t half_slots() const { return int64_t{layer_.blocks - layer_.int_blocks} * kBlock; }
  void run_chunk(int64_t first, int64_t count, float tensor_scale);
  int64_t rows_at_once() const;
  // Tasks share units of rows.
  int64_t units() const;
  int64_t row_of(int64_t unit) const;
  int64_t units_at_once(int64_t units) const;
  void run_by_rows();
  void run_by_strips();
  void run_strips(int64_t first, int64_t last);
  void run_halves(int64_t count);
  void gather_residual_rows(int64_t task, int64_t begin, int64_t end);
  int64_t slot_row(int64_t task, int64_t row) const;
  RowsOut place_of(int64_t task, int64_t row) const;
  void scatter_out_rows(int64_t task, int64_t begin, int64_t end);

  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const OpArgs& args_;
  const Images& images_;
  Parallel& parallel_;
  bool gemv_;
  Activations activations_;
  int tasks_;
  int64_t chunk_;
  Winograd winograd_;
  ProductRows rows_;
  HalfOutputs halves_;
  Strips strips_;
  int64_t rows_per_image_, m_ = 0;
  bool by_rows_ = true;  // how the tasks share the running chunk

  // scratch
  uint8_t* fill_ = nullptr;
  int64_t* first_in_hand_ = nullptr;  // a task: the first row that the slots hold
  int64_t slot_rows_ = 0;             // between the slots of two tasks
  void* slots_out_ = nullptr;
  void* slots_residual_ = nullptr;
  float* half_bias_ = nullptr;  // [m][half-precision slots]

  // of the running chunk
  void* out_ = nullptr;
  const void* residual_ = nullptr;
  const uint8_t* used_fill_ = nullptr;
  Post post_;
};

void Product::place(Arena& arena) {
  const int64_t m = chunk_ * rows_per_image_;
  activations_.place(arena, chunk_, tasks_);
  rows_.place(arena, chunk_, tasks_);
  strips_.place(arena, m, tasks_);
  if (winograd_.pays()) winograd_.place(arena);
  if (halves_.apply()) {
    halves_.place(arena, chunk_, tasks_);
    if (layer_.half_inputs > 0) half_bias_ = arena.take<float>(m * half_slots());
  }
  if (may_use_slots()) {
    fill_ = arena.take<uint8_t>(fill_bytes(layer_));
    // By strips all rows are there at once, by rows those that a task has in hand.
    const int64_t share = ((m + kTileRows - 1) / kTileRows + tasks_ - 1) / tasks_ * kTileRows;
    slot_rows_ = std::min(rows_at_once(), share);
    int64_t rows = std::max(slot_rows_ * tasks_, std::min(m, kRowsATask * tasks_));
    if (winograd_.pays()) {
      slot_rows_ = winograd_.rows_at_once();
      rows = winograd_.by_rows() ? slot_rows_ * tasks_ : m;
    }
    first_in_hand_ = arena.take<int64_t>(tasks_ * int64_t{8});
    slots_out_ = arena.take<char>(rows * layer_.slots() * size_of(layer_.out_dtype));
    if (args_.residual != nullptr) {
      slots_residual_ = arena.take<char>(rows * layer_.slots() * size_of(args_.residual_dtype));
    }
  }
}

// Where a row lies in the slots.
int64_t Product::slot_row(int64_t task, int64_t row) const {
  return by_rows_ ? task * slot_rows_ + row - first_in_hand_[task * 8] : row;
}

RowsOut Product::place_of(int64_t task, int64_t row) const {
  const int64_t channels = layer_.out_channels, slots = layer_.slots();
  RowsOut to = {nullptr, channels, nullptr, channels};
  if (strips_.in_place()) {
    to.out = offset(out_, row * channels, layer_.out_dtype);
  } else {
    to.stride = slots;
    to.out = offset(slots_out_, slot_row(task, row) * slots, layer_.out_dtype);
  }
  if (residual_ == nullptr) return to;
  if (may_use_slots()) {
    to.residual_stride = slots;
    to.residual = offset(slots_residual_, slot_row(task, row) * slots, args_.residual_dtype);
  } else {
    to.residual = offset(residual_, row * channels, args_.residual_dtype);
  }
  return to;
}

void Product::gather_residual_rows(int64_t task, int64_t begin, int64_t end) {
  if (!may_use_slots() || residual_ == nullptr) return;
  gather_residual(
      layer_, kernels_, args_.residual_dtype,
      offset(residual_, begin * layer_.out_channels, args_.residual_dtype), end - begin,
      offset(slots_residual_, slot_row(task, begin) * layer_.slots(), args_.residual_dtype));
}

void Product::scatter_out_rows(int64_t task, int64_t begin, int64_t end) {
  if (strips_.in_place()) return;
  scatter_rows(layer_, kernels_, used_fill_,
               offset(slots_out_, slot_row(task, begin) * layer_.slots(), layer_.out_dtype),
               layer_.slots(), end - begin,
               offset(out_, begin * layer_.out_channels, layer_.out_dtype));
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

int64_t Product::units() const {
  return winograd_.pays() ? winograd_.lines(m_ / rows_per_image_)
                          : (m_ + kTileRows - 1) / kTileRows;
}

int64_t Product::row_of(int64_t unit) const {
  return winograd_.pays() ? winograd_.row_of(unit) : std::min(unit * kTileRows, m_);
}

// Of `units` that a task has.
int64_t Product::units_at_once(int64_t units) const {
  if (winograd_.pays()) return winograd_.lines_at_once(units);
  return (may_use_slots() ? slot_rows_ : rows_at_once()) / kTileRows;
}

// A task has rows of its own and runs all strips over them.
void Product::run_by_rows() {
  for_tasks(parallel_, units(), [&](int64_t task, int64_t first, int64_t last) {
    const int64_t step = units_at_once(last - first);
    for (int64_t begin = first; begin < last;) {
      const int64_t end = begin + std::min(step, last - begin);
      const int64_t row0 = row_of(begin), row1 = row_of(end);
      if (may_use_slots()) first_in_hand_[task * 8] = row0;
      rows_.find(row0, row1);
      rows_.sum(row0, row1);
      if (winograd_.pays()) winograd_.load(task, begin, end);
      gather_residual_rows(task, row0, row1);
      const RowsOut to = place_of(task, row0);
      for (int64_t s = 0; s < strips_.count(); ++s) strips_.run(task, s, row0, row1, to);
      scatter_out_rows(task, row0, row1);
      begin = end;
    }
  });
}

// Strips [first, last) of all rows, shared by the tasks.
void Product::run_strips(int64_t first, int64_t last) {
  const int64_t strips = last - first;
  if (strips <= 0) return;
  // Winograd's weights are transformed for every part: there are no more of them than it takes.
  const int64_t wanted = winograd_.pays() ? tasks_ : 4 * tasks_;
  const int64_t parts = std::clamp<int64_t>((wanted + strips - 1) / strips, 1, units());
  const auto cut = [&](int64_t part) {
    return winograd_.pays() ? row_of(units() * part / parts) : m_ * part / parts;
  };
  for_tasks(parallel_, strips * parts, [&](int64_t task, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      // adjacent parts of one strip run as one
      const int64_t strip = i / parts, next = std::min(end, (strip + 1) * parts);
      const int64_t row0 = cut(i % parts), row1 = cut(next - strip * parts);
      strips_.run(task, first + strip, row0, row1, place_of(task, row0));
      i = next;
    }
  });
}

// A task has strips of its own; rows are cut only when there are too few strips.
void Product::run_by_strips() {
  rows_.find(0, m_);
  if (winograd_.pays()) winograd_.load_shared(m_ / rows_per_image_, parallel_);
  for_tasks(parallel_, m_, [&](int64_t task, int64_t begin, int64_t end) {
    rows_.sum(begin, end);
    gather_residual_rows(task, begin, end);
  });
  // Half-precision outputs overwrite what integer ones leave in their channels.
  const int64_t integers = strips_.integers();
  run_strips(0, integers);
  run_strips(integers, strips_.count());
  if (!strips_.in_place()) {
    for_tasks(parallel_, m_, [&](int64_t task, int64_t begin, int64_t end) {
      scatter_out_rows(task, begin, end);
    });
  }
}

// Half-precision outputs into an output whose other channels are there.
void Product::run_halves(int64_t count) {
  if (half_bias_ != nullptr) {
    for_tasks(parallel_, m_, [&](int64_t, int64_t begin, int64_t end) {
      for (int b = layer_.int_blocks; b < layer_.blocks; b += kTileBlocks) {
        strips_.chain(b, std::min(layer_.blocks - b, kTileBlocks), begin, end,
                      half_bias_ + begin * half_slots() + (b - layer_.int_blocks) * kBlock,
                      half_slots());
      }
    });
  }
  Post post = post_;
  post.residual = residual_;
  halves_.run(count, rows_.scales_from(0), half_bias_, half_slots(), post, out_, parallel_);
}

void Product::run_chunk(int64_t first, int64_t count, float tensor_scale) {
  activations_.prepare(first, count, tensor_scale, parallel_);
  m_ = count * rows_per_image_;
  rows_.find_taps(m_);
  rows_.sum_pixels(count, parallel_);
  const int64_t row0 = first * rows_per_image_;
  out_ = offset(args_.out, row0 * layer_.out_channels, layer_.out_dtype);
  post_ = make_post(layer_, args_);
  if (post_.residual != nullptr) {
    residual_ = offset(post_.residual, row0 * layer_.out_channels, post_.residual_dtype);
  }
  if (!strips_.in_place()) used_fill_ = scatter_fill(layer_, args_.table, fill_);
  strips_.start(post_, tasks_);
  by_rows_ = tasks_ == 1 || m_ >= kRowsATask * tasks_;
  if (winograd_.pays()) {
    winograd_.start();
    by_rows_ = winograd_.by_rows();
  }
  if (by_rows_) {
    run_by_rows();
  } else {
    run_by_strips();
  }
  if (halves_.apply()) run_halves(count);
}

void Product::run() {
  strips_.find();
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

bool uses_winograd(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                   const Images& images) {
  Serial serial;
  return Product(layer, kernels, args, images, serial).uses_winograd();
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

#include "ops/winograd.h"

#include <algorithm>

#include "ops/tasks.h"

namespace defakeq {

namespace {

// What the tiles that pass through all strips together may take, to stay in a second-level cache.
constexpr int64_t kBandBytes = int64_t{448} << 10;
// Fewer tiles a task are not worth transforming the weights once a task.
constexpr int64_t kTilesATask = 24;
constexpr int64_t kRowsATile = kWinogradOut * kWinogradOut;
constexpr int64_t kProducts = int64_t{kWinogradPositions} * kWinogradTiles * kBlock;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements between positions: see line_pitch.
int64_t position_stride(int64_t elements) { return line_pitch(elements * 2) / 2; }

}  // namespace

Winograd::Winograd(const PackedLayer& layer, const KernelTable& kernels, const Images& images,
                   const Activations& activations, int64_t chunk, int tasks)
    : layer_(layer),
      kernels_(kernels),
      images_(images),
      activations_(activations),
      chunk_(chunk),
      tasks_(tasks) {
  if (fits()) choose();
}

bool Winograd::fits() const {
  return kernels_.winograd.product > 0.0f && layer_.winograd != 0 &&
         layer_.act_mode != ActMode::kNone;
}

void Winograd::choose() {
  line_tiles_ = ceil_div(images_.out_w, kWinogradOut);
  image_lines_ = ceil_div(images_.out_h, kWinogradOut);
  channels_ = ceil_div(layer_.stored_inputs, kWinogradLanes) * kWinogradLanes;
  steps_ = ceil_div(layer_.stored_inputs, 4);
  const int64_t all = lines(chunk_), tiles = all * line_tiles_;
  by_rows_ = tasks_ == 1 || tiles >= kTilesATask * tasks_;
  // transformed activations and the sums of a strip
  const int64_t line_bytes =
      line_tiles_ * (kWinogradPositions * channels_ * 2 + kRowsATile * kStripLanes * 4);
  const int64_t at_once = std::max<int64_t>(kBandBytes / line_bytes, 1);
  const int64_t share = ceil_div(all, tasks_);
  // nearly equal bands
  most_lines_ = by_rows_ ? ceil_div(share, ceil_div(share, at_once)) : all;
  held_rows_ = most_lines_ * kWinogradOut * images_.out_w;
  v_tiles_ = most_lines_ * line_tiles_;
  v_stride_ = position_stride(v_tiles_ * channels_);
  u_stride_ = position_stride(steps_ * 4 * kBlock);

  const WinogradCosts& cost = kernels_.winograd;
  const auto inputs = static_cast<float>(layer_.stored_inputs);
  const auto outputs = static_cast<float>(layer_.int_blocks * kBlock);
  float multiplied = 0.0f;  // outputs as gemm_s8 multiplies for them
  for (int b = 0; b < layer_.int_blocks; ++b) {
    const bool narrow = layer_.at<PackedBlock>(layer_.block_table)[b].bits < 8;
    multiplied += kBlock * (narrow ? cost.narrow : 1.0f);
  }
  // as if for one task: the choice does not depend on how many there are
  const auto bands = static_cast<float>(ceil_div(all, at_once));
  const float direct =
      static_cast<float>(chunk_ * images_.out_h * images_.out_w * 9) * inputs * multiplied;
  const float ours =
      static_cast<float>(tiles) * (kWinogradPositions * cost.product * inputs * outputs +
                                   cost.input * inputs + cost.output * outputs) +
      bands * cost.weights * inputs * outputs;
  pays_ = ours < direct;
}

void Winograd::place(Arena& arena) {
  const int64_t holders = by_rows_ ? tasks_ : 1;
  tiles_ = arena.take<WinogradTile>(v_tiles_ * holders);
  v_ = arena.take<int16_t>(kWinogradPositions * v_stride_ * holders);
  u_ = arena.take<int16_t>(kWinogradPositions * u_stride_ * tasks_);
  products_ = arena.take<int32_t>(kProducts * tasks_);
  sums_ = arena.take<int32_t>(held_rows_ * kStripLanes * tasks_);
  zeros_ = arena.take<int32_t>(std::max(held_rows_, kStripLanes));
  first_line_ = arena.take<int64_t>(tasks_ * int64_t{8});
}

int64_t Winograd::row_of(int64_t line) const {
  const int64_t y = std::min(line % image_lines_ * kWinogradOut, images_.out_h);
  return (line / image_lines_ * images_.out_h + y) * images_.out_w;
}

int64_t Winograd::line_of(int64_t row) const {
  const int64_t y = ceil_div(row, images_.out_w);
  return y / images_.out_h * image_lines_ + ceil_div(y % images_.out_h, kWinogradOut);
}

int64_t Winograd::lines_at_once(int64_t lines) const {
  return ceil_div(lines, ceil_div(lines, most_lines_));
}

void Winograd::start() { std::fill_n(zeros_, std::max(held_rows_, kStripLanes), 0); }

void Winograd::load(int64_t task, int64_t begin, int64_t end) {
  first_line_[task * 8] = begin;
  transform(task, begin, end);
}

void Winograd::load_shared(int64_t count, Parallel& parallel) {
  for (int t = 0; t < tasks_; ++t) first_line_[t * 8] = 0;
  for_tasks(parallel, lines(count),
            [&](int64_t, int64_t begin, int64_t end) { transform(0, begin, end); });
}

// Tiles of lines [begin, end) among those that a task holds.
void Winograd::transform(int64_t task, int64_t begin, int64_t end) {
  const int64_t height = activations_.height(), width = activations_.width();
  const int64_t pitch = activations_.pixel_pitch(), first_line = first_line_[task * 8];
  const int64_t at = (begin - first_line) * line_tiles_;
  WinogradTile* tiles = tiles_ + holder(task) * v_tiles_ + at;
  WinogradTile* tile = tiles;
  for (int64_t line = begin; line < end; ++line) {
    const int64_t y = line % image_lines_ * kWinogradOut;
    const int64_t row = row_of(line) - row_of(first_line);
    const int8_t* pixels =
        activations_.int8_base() + (line / image_lines_ * height + y) * width * pitch;
    for (int64_t x = 0; x < images_.out_w; x += kWinogradOut) {
      *tile++ = {pixels + x * pitch,
                 static_cast<int32_t>(std::min<int64_t>(kWinogradIn, height - y)),
                 static_cast<int32_t>(std::min<int64_t>(kWinogradIn, width - x)),
                 static_cast<int32_t>(std::min<int64_t>(kWinogradOut, images_.out_h - y)),
                 static_cast<int32_t>(std::min<int64_t>(kWinogradOut, images_.out_w - x)),
                 row + x};
    }
  }
  WinogradInputArgs a{};
  a.tiles = tiles;
  a.count = tile - tiles;
  a.line_stride = width * pitch;
  a.pixel_stride = pitch;
  a.channels = layer_.stored_inputs;
  a.v = v_ + holder(task) * kWinogradPositions * v_stride_ + at * channels_;
  a.tile_stride = channels_;
  a.position_stride = v_stride_;
  kernels_.winograd_input(a);
}

void Winograd::multiply(int64_t task, const uint8_t* codes, const int32_t* zero_point, int64_t row0,
                        int64_t row1, int part) const {
  WinogradWeightArgs w{};
  w.codes = codes;
  w.tap_steps = layer_.tap_steps;
  w.channels = layer_.stored_inputs;
  w.zero_point = zero_point;
  w.u = u_ + task * kWinogradPositions * u_stride_;
  w.position_stride = u_stride_;
  kernels_.winograd_weights(w);

  const int64_t begin = line_of(row0), end = line_of(row1);
  const int64_t at = (begin - first_line_[task * 8]) * line_tiles_;
  WinogradProductArgs a{};
  a.v = v_ + holder(task) * kWinogradPositions * v_stride_ + at * channels_;
  a.v_tile_stride = channels_;
  a.v_position_stride = v_stride_;
  a.u = w.u;
  a.u_position_stride = u_stride_;
  a.steps = steps_;
  a.tiles = tiles_ + holder(task) * v_tiles_ + at;
  a.count = (end - begin) * line_tiles_;
  a.products = products_ + task * kProducts;
  a.out = sums_ + task * held_rows_ * kStripLanes + part * kBlock;
  a.out_stride = kStripLanes;
  a.width = images_.out_w;
  kernels_.winograd_products(a);
}

const int32_t* Winograd::sums(int64_t task, int64_t row0) const {
  return sums_ + (task * held_rows_ + row0 - row_of(first_line_[task * 8])) * kStripLanes;
}

}  // namespace defakeq

#include "ops/half_outputs.h"

#include <algorithm>

#include "ops/tasks.h"

namespace defakeq {

namespace {

// Pixels that are rows of a product are cut into lines of at most so many; long ones into shorter
// lines, so that a line stays in cache.
constexpr int64_t kFlatLine = 64;
constexpr int64_t kLongPixel = 512;
// Kernel positions that repay pairs.
constexpr int64_t kPairTaps = 9;
// Vectors that hide a single chain's latency.
constexpr int64_t kVectors = 4;

}  // namespace

LaneGrid::LaneGrid(const PackedLayer& layer, const Images& images, int64_t height, int64_t width,
                   int64_t count, int tasks) {
  for (int d = 0; d < 2; ++d) {
    kernel_[d] = layer.kernel[d];
    stride_[d] = layer.stride[d];
    dilation_[d] = layer.dilation[d];
  }
  images_ = count;
  height_ = height;
  width_ = width;
  inputs_ = height * width;
  out_h_ = images.out_h;
  out_w_ = images.out_w;
  image_pixels_ = pixels_ = out_h_ * out_w_;
  flat_ = kernel_[0] == 1 && kernel_[1] == 1 && stride_[0] == 1 && stride_[1] == 1;
  if (flat_) {
    const int64_t longest = layer.stored_inputs > kLongPixel ? kFlatLine / 2 : kFlatLine;
    const int64_t share = (count * image_pixels_ + tasks - 1) / tasks;
    out_w_ = std::clamp((share + kLanes - 1) / kLanes * kLanes, int64_t{kLanes}, longest);
  }
  adjacent_ = kernel_[1] == 1;
  vectors_ = (out_w_ + kLanes - 1) / kLanes;
  const int64_t lanes_a_line = std::min<int64_t>(out_w_, kLanes);
  lines_a_vector_ = kLanes / lanes_a_line;
  for (int l = 0; l < kLanes; ++l) {
    part_[l] = static_cast<int8_t>(l / lanes_a_line);
    at_[l] = static_cast<int8_t>(l % lanes_a_line);
  }
  cut_lines();
}

LaneGrid LaneGrid::of(int64_t count) const {
  LaneGrid grid = *this;
  grid.images_ = count;
  grid.cut_lines();
  return grid;
}

void LaneGrid::cut_lines() {
  if (flat_) {
    inputs_ = pixels_ = images_ * image_pixels_;
    images_ = 1;
    height_ = out_h_ = (pixels_ + out_w_ - 1) / out_w_;
    width_ = out_w_;
  }
  lines_ = (out_h_ + lines_a_vector_ - 1) / lines_a_vector_;
  columns_ = column(vectors_ - 1, kernel_[1] - 1) + 1;
  at_once_ = std::min((kVectors + vectors_ - 1) / vectors_, lines_);
  span_ = last_input(at_once_ - 1) + 1;
  const int64_t lanes_a_line = std::min<int64_t>(out_w_, kLanes);
  whole_ = lines_a_vector_ * lanes_a_line == kLanes && vectors_ * lanes_a_line == out_w_ &&
           lines_ * lines_a_vector_ == out_h_ && out_h_ * out_w_ == pixels_;
  whole_lines_ = whole_ ? lines_ : 0;
  // of pixels in a row, only the last line may lack some
  if (flat_ && lines_a_vector_ == 1 && vectors_ * kLanes == out_w_ && !whole_) {
    whole_lines_ = lines_ - 1;
  }
  for (int l = 0; l < kLanes; ++l) {
    first_pixel_[l] = pixel(0, 0, l);
    first_output_[l] = static_cast<int32_t>(output(0, 0, l));
  }
}

int64_t LaneGrid::pixel(int64_t input, int64_t column, int lane) const {
  const int64_t part = std::min<int64_t>(part_[lane], lines_a_vector_ - 1);
  const int64_t y = input + part * lines_ * stride_[0];
  const int64_t x = adjacent_ ? (column * kLanes + at_[lane]) * stride_[1]
                              : column + at_[lane] * vectors_ * stride_[1];
  return std::min(std::min(y, height_ - 1) * width_ + std::min(x, width_ - 1), inputs_ - 1);
}

void LaneGrid::pixels(int64_t input, int64_t column, int64_t* pixel_of) const {
  if (whole_ || input < whole_lines_) {
    const int64_t at = input * width_ + (adjacent_ ? column * kLanes * stride_[1] : column);
    for (int l = 0; l < kLanes; ++l) pixel_of[l] = first_pixel_[l] + at;
    return;
  }
  for (int l = 0; l < kLanes; ++l) pixel_of[l] = pixel(input, column, l);
}

void LaneGrid::outputs(int64_t line, int64_t vector, int64_t first, int32_t* pixel_of) const {
  if (line < whole_lines_) {
    const auto at =
        static_cast<int32_t>(first + line * out_w_ + (adjacent_ ? vector * kLanes : vector));
    for (int l = 0; l < kLanes; ++l) pixel_of[l] = first_output_[l] + at;
    return;
  }
  for (int l = 0; l < kLanes; ++l) {
    const int64_t found = output(line, vector, l);
    pixel_of[l] = static_cast<int32_t>(found < 0 ? -1 : first + found);
  }
}

int64_t LaneGrid::output(int64_t line, int64_t vector, int lane) const {
  const int64_t y = line + part_[lane] * lines_;
  const int64_t x = adjacent_ ? vector * kLanes + at_[lane] : vector + at_[lane] * vectors_;
  if (part_[lane] >= lines_a_vector_ || y >= out_h_ || x >= out_w_) return -1;
  const int64_t pixel = y * out_w_ + x;
  return pixel < pixels_ ? pixel : -1;
}

struct HalfOutputs::Task {
  uint8_t* ring;
  const uint8_t** x;
  int32_t* row;
};

bool HalfOutputs::apply() const {
  return kernels_.gemm_f32_turned != nullptr && layer_.blocks > layer_.int_blocks &&
         layer_.act_mode != ActMode::kNone && layer_.groups == 1;
}

void HalfOutputs::place(Arena& arena, int64_t chunk, int tasks) {
  grid_ = LaneGrid(layer_, images_, activations_.height(), activations_.width(), chunk, tasks);
  const int64_t taps = int64_t{layer_.kernel[0]} * layer_.kernel[1];
  const PackedBlock& block = layer_.at<PackedBlock>(layer_.block_table)[layer_.int_blocks];
  pairs_ = layer_.blocks == layer_.int_blocks + 1 && block.lanes == 1 && taps >= kPairTaps;
  turned_bytes_ = turned_bytes(layer_.stored_inputs, pairs_);
  ring_bytes_ = grid_.span() * grid_.columns() * turned_bytes_;
  ring_ = arena.take<uint8_t>(ring_bytes_ * tasks);
  x_ = arena.take<const uint8_t*>(vectors() * taps * tasks);
  row_ = arena.take<int32_t>(vectors() * kLanes * tasks);
}

// Lines [begin, end) of one image.
void HalfOutputs::run_lines(const LaneGrid& grid, const Task& task, int64_t begin, int64_t end,
                            const TurnedF32Args& args) const {
  const int64_t image = begin / grid.lines_an_image();
  const int64_t pitch = activations_.pixel_pitch();
  const int8_t* base =
      activations_.int8_base() + image * activations_.height() * activations_.width() * pitch;
  const int64_t first_row = image * images_.out_h * images_.out_w;
  const int64_t in_image = image * grid.lines_an_image();
  const auto slot = [&](int64_t input) {
    return task.ring + input % grid.span() * grid.columns() * turned_bytes_;
  };
  int64_t ready = 0;  // lines of the input before this one are turned
  for (int64_t line = begin - in_image; line < end - in_image; line += grid.lines_at_once()) {
    const int64_t lines = std::min(grid.lines_at_once(), end - in_image - line);
    ready = std::max(ready, grid.first_input(line));
    for (; ready <= grid.last_input(line + lines - 1); ++ready) {
      if (!grid.reads(ready)) continue;
      uint8_t* to = slot(ready);
      for (int64_t c = 0; c < grid.columns(); ++c, to += turned_bytes_) {
        int64_t at[kLanes];
        const int8_t* pixels[kLanes];
        grid.pixels(ready, c, at);
        for (int l = 0; l < kLanes; ++l) pixels[l] = base + at[l] * pitch;
        kernels_.turn_pixels(pixels, layer_.stored_inputs, pairs_, args.zero_point, to);
      }
    }
    const uint8_t** x = task.x;
    int32_t* row = task.row;
    for (int64_t y = line; y < line + lines; ++y, x += grid.vectors_a_line() * args.taps) {
      for (int ky = 0; ky < layer_.kernel[0]; ++ky) {
        const uint8_t* from = slot(grid.first_input(y) + int64_t{ky} * layer_.dilation[0]);
        const uint8_t** to = x + int64_t{ky} * layer_.kernel[1];
        for (int64_t v = 0; v < grid.vectors_a_line(); ++v, to += args.taps) {
          for (int kx = 0; kx < layer_.kernel[1]; ++kx) {
            to[kx] = from + grid.column(v, kx) * turned_bytes_;
          }
        }
      }
      for (int64_t v = 0; v < grid.vectors_a_line(); ++v, row += kLanes) {
        grid.outputs(y, v, first_row, row);
      }
    }
    TurnedF32Args a = args;
    a.x = task.x;
    a.row = task.row;
    a.vectors = lines * grid.vectors_a_line();
    for (int b = layer_.int_blocks; b < layer_.blocks; ++b) {
      const PackedBlock& block = layer_.at<PackedBlock>(layer_.block_table)[b];
      const int64_t at = int64_t{b} * kBlock;
      a.outputs = block.lanes;
      a.w = layer_.at<float>(block.weight);
      a.scale = layer_.at<float>(layer_.scale) + at;
      a.bias = layer_.at<float>(layer_.bias) + at;
      a.column = layer_.at<int32_t>(layer_.slot_channel) + at;
      if (args.row_bias != nullptr) a.row_bias = args.row_bias + at - layer_.int_blocks * kBlock;
      kernels_.gemm_f32_turned(a);
    }
  }
}

void HalfOutputs::run(int64_t count, const float* row_scale, const float* row_bias,
                      int64_t row_bias_stride, const Post& post, void* out,
                      Parallel& parallel) const {
  TurnedF32Args args{};
  args.taps = layer_.kernel[0] * layer_.kernel[1];
  args.channels = layer_.stored_inputs;
  args.pairs = pairs_;
  args.zero_point = layer_.act.zero_point;
  args.row_scale = row_scale;
  args.row_bias = row_bias;
  args.row_bias_stride = row_bias_stride;
  args.out = out;
  args.out_stride = layer_.out_channels;
  args.post = post;
  const LaneGrid grid = grid_.of(count);
  for_tasks(parallel, grid.lines(), [&](int64_t task, int64_t begin, int64_t end) {
    const Task own = {ring_ + task * ring_bytes_, x_ + task * vectors() * args.taps,
                      row_ + task * vectors() * kLanes};
    while (begin < end) {
      const int64_t last =
          std::min(end, (begin / grid.lines_an_image() + 1) * grid.lines_an_image());
      run_lines(grid, own, begin, last, args);
      begin = last;
    }
  });
}

}  // namespace defakeq

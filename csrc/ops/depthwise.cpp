#include <algorithm>

#include "ops/arena.h"
#include "ops/half_channels.h"
#include "ops/post.h"
#include "ops/product.h"
#include "ops/tasks.h"

namespace defakeq {

namespace {

// Channels that a task takes at least: the widest kernel's.
constexpr int64_t kStrip = 64;

class Depthwise {
 public:
  Depthwise(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
            const Images& images, Parallel& parallel)
      : layer_(layer),
        kernels_(kernels),
        args_(args),
        images_(images),
        parallel_(parallel),
        activations_(layer, kernels, args, images, false, 1),
        halves_(layer, kernels, images, activations_),
        tasks_(std::max(parallel.threads(), 1)) {}

  void place(Arena& arena);
  void run();

 private:
  void run_image(int64_t image, float tensor_scale);
  void run_rows(int64_t task, int64_t oy0, int64_t oy1);
  void run_channels(int64_t task, int64_t begin, int64_t end);
  DwS8Args int_args(int64_t task) const;
  // Whether results lie at once where they belong.
  bool in_place() const { return layer_.direct || layer_.patched; }
  bool only_integers() const { return layer_.patched || layer_.blocks == layer_.int_blocks; }

  const PackedLayer& layer_;
  const KernelTable& kernels_;
  const OpArgs& args_;
  const Images& images_;
  Parallel& parallel_;
  Activations activations_;
  HalfChannels halves_;
  int tasks_;
  char* kernel_scratch_ = nullptr;
  int64_t kernel_scratch_bytes_ = 0;
  uint8_t* fill_ = nullptr;
  void* slots_out_ = nullptr;
  int64_t slots_pitch_ = 0;
  void* slots_residual_ = nullptr;
  void* out_ = nullptr;
  int64_t out_stride_ = 0;
  Post post_;
};

DwS8Args Depthwise::int_args(int64_t task) const {
  DwS8Args a{};
  a.x = activations_.int8_base();
  a.h = images_.h;
  a.w = images_.w;
  a.x_stride = activations_.pixel_pitch();
  a.out_w = images_.out_w;
  for (int d = 0; d < 2; ++d) {
    a.kernel[d] = layer_.kernel[d];
    a.stride[d] = layer_.stride[d];
    a.padding[d] = layer_.padding[d];
    a.dilation[d] = layer_.dilation[d];
  }
  a.pad_value = static_cast<int8_t>(layer_.act.zero_point);
  a.channels = int64_t{layer_.int_blocks} * kBlock;
  if (in_place()) a.channels = std::min(a.channels, layer_.out_channels);
  a.weight = layer_.at<int8_t>(layer_.dw_weight);
  a.correction = layer_.at<int32_t>(layer_.correction);
  a.window_factor = layer_.dw_window ? layer_.at<int32_t>(layer_.zero_point) : nullptr;
  a.scale = layer_.at<float>(layer_.scale);
  a.bias = layer_.at<float>(layer_.bias);
  a.has_row_scale = activations_.image_scale() != nullptr;
  a.row_scale = a.has_row_scale ? activations_.image_scale()[0] : 1.0f;
  a.out = out_;
  a.out_stride = out_stride_;
  a.post = post_;
  a.scratch = kernel_scratch_ + task * kernel_scratch_bytes_;
  return a;
}

void Depthwise::place(Arena& arena) {
  activations_.place(arena, 1, tasks_);
  if (layer_.int_blocks > 0) {
    kernel_scratch_bytes_ =
        static_cast<int64_t>((kernels_.dw_s8_scratch(int_args(0)) + 63) / 64 * 64);
    kernel_scratch_ = arena.take<char>(kernel_scratch_bytes_ * tasks_);
  }
  if (halves_.apply()) halves_.place(arena, tasks_, args_.residual_dtype);
  if (!in_place()) {
    const int64_t pixels = images_.out_h * images_.out_w;
    const int64_t values = pixels * layer_.slots();
    fill_ = arena.take<uint8_t>(fill_bytes(layer_));
    slots_pitch_ = line_pitch(layer_.slots());
    slots_out_ = arena.take<char>(pixels * slots_pitch_ * size_of(layer_.out_dtype));
    if (args_.residual != nullptr) {
      slots_residual_ = arena.take<char>(values * size_of(args_.residual_dtype));
    }
  }
}

void Depthwise::run_rows(int64_t task, int64_t oy0, int64_t oy1) {
  if (layer_.int_blocks > 0) {
    DwS8Args a = int_args(task);
    a.oy0 = oy0;
    a.oy1 = oy1;
    kernels_.dw_s8(a);
  }
  if (only_integers()) return;
  const int64_t slot = int64_t{layer_.int_blocks} * kBlock;
  DwF32Args a{};
  a.x = activations_.float_base();
  a.h = images_.h;
  a.w = images_.w;
  a.x_stride = activations_.float_pitch();
  a.out_w = images_.out_w;
  a.oy0 = oy0;
  a.oy1 = oy1;
  for (int d = 0; d < 2; ++d) {
    a.kernel[d] = layer_.kernel[d];
    a.stride[d] = layer_.stride[d];
    a.padding[d] = layer_.padding[d];
    a.dilation[d] = layer_.dilation[d];
  }
  a.channels = (int64_t{layer_.blocks} - layer_.int_blocks) * kBlock;
  if (layer_.direct) a.channels = std::min(a.channels, layer_.out_channels - slot);
  const auto* block = layer_.at<PackedBlock>(layer_.block_table);
  a.last_lanes = block[layer_.blocks - 1].lanes;
  a.weight = layer_.at<float>(block[layer_.int_blocks].weight);
  a.scale = layer_.at<float>(layer_.scale) + slot;
  a.bias = layer_.at<float>(layer_.bias) + slot;
  a.has_row_scale = activations_.image_scale() != nullptr;
  a.row_scale = a.has_row_scale ? activations_.image_scale()[0] : 1.0f;
  a.out = offset(out_, slot, layer_.out_dtype);
  a.out_stride = out_stride_;
  a.post = post_;
  if (post_.residual != nullptr) {
    a.post.residual = offset(post_.residual, slot, post_.residual_dtype);
  }
  kernels_.dw_f32(a);
}

// All output rows of the channels [begin, end); begin is a multiple of 16.
void Depthwise::run_channels(int64_t task, int64_t begin, int64_t end) {
  DwS8Args a = int_args(task);
  a.oy1 = images_.out_h;
  a.x += begin;
  a.channels = std::min(end, a.channels) - begin;
  const int64_t row_groups = (layer_.kernel[0] + 3) / 4;
  a.weight += begin * row_groups * layer_.kernel[1] * 4;
  a.correction += begin;
  if (a.window_factor != nullptr) a.window_factor += begin;
  a.scale += begin;
  a.bias += begin;
  a.out = offset(a.out, begin, layer_.out_dtype);
  if (a.post.residual != nullptr) {
    a.post.residual = offset(a.post.residual, begin, a.post.residual_dtype);
  }
  kernels_.dw_s8(a);
}

void Depthwise::run_image(int64_t image, float tensor_scale) {
  activations_.prepare(image, 1, tensor_scale, parallel_);
  const int64_t pixels = images_.out_h * images_.out_w;
  const int64_t row0 = image * pixels;
  void* final_out = offset(args_.out, row0 * layer_.out_channels, layer_.out_dtype);
  post_ = make_post(layer_, args_);
  if (post_.residual != nullptr) {
    post_.residual = offset(post_.residual, row0 * layer_.out_channels, post_.residual_dtype);
  }
  out_ = final_out;
  out_stride_ = layer_.out_channels;
  if (!in_place()) {
    out_ = slots_out_;
    out_stride_ = slots_pitch_;
    if (post_.residual != nullptr) {
      gather_residual(layer_, kernels_, post_.residual_dtype, post_.residual, pixels,
                      slots_residual_);
      post_.residual = slots_residual_;
      post_.residual_stride = layer_.slots();
    }
  }
  const int64_t strips = (int64_t{layer_.int_blocks} * kBlock + kStrip - 1) / kStrip;
  if (only_integers() && strips >= 2 * tasks_) {
    for_tasks(parallel_, strips, [&](int64_t task, int64_t begin, int64_t end) {
      run_channels(task, begin * kStrip, end * kStrip);
    });
  } else {
    // Pairs of output rows share their input rows: do not part them.
    for_tasks(parallel_, (images_.out_h + 1) / 2, [&](int64_t task, int64_t begin, int64_t end) {
      run_rows(task, 2 * begin, std::min(2 * end, images_.out_h));
    });
  }
  // Half-precision outputs overwrite what integer ones leave in their channels.
  if (halves_.apply()) halves_.run(post_, final_out, parallel_);
  if (!in_place()) {
    const uint8_t* fill = scatter_fill(layer_, args_.table, fill_);
    for_tasks(parallel_, pixels, [&](int64_t, int64_t begin, int64_t end) {
      scatter_rows(layer_, kernels_, fill, offset(out_, begin * out_stride_, layer_.out_dtype),
                   out_stride_, end - begin,
                   offset(final_out, begin * layer_.out_channels, layer_.out_dtype));
    });
  }
}

void Depthwise::run() {
  float tensor_scale = 1.0f;
  if (layer_.act_mode == ActMode::kDynamicTensor) {
    tensor_scale =
        dynamic_scale(kernels_, static_cast<const float*>(args_.x),
                      images_.n * images_.h * images_.w, layer_.in_channels, images_.x_stride);
  }
  for (int64_t n = 0; n < images_.n; ++n) run_image(n, tensor_scale);
}

}  // namespace

size_t depthwise_scratch(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                         const Images& images, Parallel& parallel) {
  Depthwise depthwise(layer, kernels, args, images, parallel);
  Arena sizes;
  depthwise.place(sizes);
  return sizes.used();
}

void run_depthwise(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                   const Images& images, Parallel& parallel, Scratch& scratch) {
  Depthwise depthwise(layer, kernels, args, images, parallel);
  Arena sizes;
  depthwise.place(sizes);
  Arena arena(scratch.get(sizes.used()));
  depthwise.place(arena);
  depthwise.run();
}

}  // namespace defakeq

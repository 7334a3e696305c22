// What the benchmarks call: the probe of the processor, and a native loop over a layer.
#include "bindings/python_bench.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "defakeq/layer_shape.h"
#include "defakeq/ops.h"
#include "defakeq/peak.h"
#include "defakeq/thread_pool.h"

namespace py = pybind11;

namespace {

using namespace defakeq;

constexpr size_t kFlushBytes = size_t{96} << 20;  // more than the last-level cache holds

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;

Buffer aligned(size_t bytes) {
  Buffer buffer(std::aligned_alloc(64, (bytes / 64 + 1) * 64));
  if (buffer == nullptr) throw std::bad_alloc();
  return buffer;
}

DType dtype_of(const py::array& array, const char* name) {
  if (py::dtype::of<float>().equal(array.dtype())) return DType::kFloat32;
  if (py::dtype::of<int8_t>().equal(array.dtype())) return DType::kInt8;
  throw std::invalid_argument(std::string(name) + ": found " + std::string(py::str(array.dtype())) +
                              ", accepted: float32 or int8");
}

void expect(bool good, const char* name, const std::string& accepted) {
  if (!good) throw std::invalid_argument(std::string(name) + ": accepted: " + accepted);
}

size_t width(DType type) { return type == DType::kInt8 ? 1 : 4; }

// One layer in several copies, the buffers it works on, and the threads that do it.
class LayerRun {
 public:
  LayerRun(const std::vector<py::array>& blobs, const py::array& x,
           const std::optional<py::array>& half_input, int threads)
      : pool_(threads) {
    expect(!blobs.empty(), "blobs", "at least one layer");
    for (const py::array& blob : blobs) {
      expect(py::dtype::of<uint8_t>().equal(blob.dtype()) && blob.ndim() == 1, "blobs",
             "uint8 arrays made by pack_layer");
      OpArgs args;
      args.blob = blob.data();
      args.blob_bytes = static_cast<size_t>(blob.size());
      calls_.push_back(args);
    }
    const LayerShape layer = layer_shape(calls_[0].blob, calls_[0].blob_bytes);
    conv_ = layer.kind == LayerKind::kConv2d;
    in_channels_ = layer.in_channels;
    expect(x.ndim() == (conv_ ? 4 : 2) && x.shape(x.ndim() - 1) == layer.in_channels &&
               (x.flags() & py::array::c_style) != 0,
           "x",
           std::string(conv_ ? "a contiguous [n, h, w, " : "a contiguous [rows, ") +
               std::to_string(layer.in_channels) + "]");
    int64_t out_count = layer.out_channels, half_count = layer.half_inputs;
    for (int d = 0; d < (conv_ ? 3 : 1); ++d) {
      size_[d] = x.shape(d);
      half_count *= size_[d];
      int64_t size = size_[d];
      if (d > 0) {
        size = conv_out_size(size, layer.kernel[d - 1], layer.stride[d - 1], layer.padding[d - 1],
                             layer.dilation[d - 1]);
      }
      expect(size > 0, "x", "at least one row, and an image that the kernel fits into");
      out_count *= size;
    }
    if (half_input) {
      expect(dtype_of(*half_input, "half_input") == DType::kFloat32 &&
                 half_input->size() == half_count &&
                 (half_input->flags() & py::array::c_style) != 0,
             "half_input", "contiguous float32, the half-precision inputs of every row");
    }
    const DType x_dtype = dtype_of(x, "x");
    const size_t out_bytes = static_cast<size_t>(out_count) * width(layer.out_dtype);
    // As in a network, a convolution that keeps the shape reads what the one before it wrote.
    const bool chain = conv_ && x_dtype == layer.out_dtype && x.size() == out_count;
    for (size_t i = 0; i < (chain ? 2 : calls_.size()); ++i) outs_.push_back(aligned(out_bytes));
    for (size_t i = 0; i < calls_.size(); ++i) {
      OpArgs& args = calls_[i];
      const LayerShape other = layer_shape(args.blob, args.blob_bytes);
      expect(other.kind == layer.kind && other.in_channels == layer.in_channels &&
                 other.out_channels == layer.out_channels && other.out_dtype == layer.out_dtype &&
                 other.half_inputs == layer.half_inputs,
             "blobs", "copies of one layer");
      args.x = chain && i > 0 ? outs_[(i - 1) % 2].get() : x.data();
      args.x_dtype = x_dtype;
      args.out = outs_[i % outs_.size()].get();
      args.half_input = half_input ? static_cast<const float*>(half_input->data()) : nullptr;
    }
  }

  void call(size_t i) {
    const OpArgs& args = calls_[i % calls_.size()];
    if (conv_) {
      defakeq::conv2d(args, size_[0], size_[1], size_[2], pool_, scratch_);
    } else {
      defakeq::linear(args, size_[0], in_channels_, pool_, scratch_);
    }
  }

  size_t copies() const { return calls_.size(); }

 private:
  std::vector<OpArgs> calls_;
  std::vector<Buffer> outs_;
  ThreadPool pool_;
  GrowingScratch scratch_;
  bool conv_ = false;
  int64_t in_channels_ = 0;
  int64_t size_[3] = {1, 1, 1};
};

void flush_caches(char* data) {
  for (size_t i = 0; i < kFlushBytes; i += 64) data[i] = static_cast<char>(data[i] + 1);
  __asm__ volatile("" : : "r"(data) : "memory");
}

std::vector<double> time_layer(const std::vector<py::array>& blobs, const py::array& x, int repeats,
                               int inner, int threads, bool flush,
                               const std::optional<py::array>& half_input, bool processor_time) {
  expect(repeats >= 1, "repeats", "1 or more");
  expect(inner >= 1, "inner", "1 or more");
  LayerRun run(blobs, x, half_input, threads);
  const py::gil_scoped_release release;
  const auto now = [processor_time] {
    if (processor_time) return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double>(time).count();
  };
  for (size_t i = 0; i < run.copies(); ++i) run.call(i);
  Buffer junk;
  if (flush) {
    junk = aligned(kFlushBytes);
    std::fill_n(static_cast<char*>(junk.get()), kFlushBytes, '\0');
  }
  std::vector<double> seconds(static_cast<size_t>(repeats));
  size_t next = 0;
  for (double& value : seconds) {
    if (flush) {
      double spent = 0;
      for (int i = 0; i < inner; ++i) {
        flush_caches(static_cast<char*>(junk.get()));
        const double begin = now();
        run.call(next++);
        spent += now() - begin;
      }
      value = spent / inner;
      continue;
    }
    const double begin = now();
    for (int i = 0; i < inner; ++i) run.call(next++);
    value = (now() - begin) / inner;
  }
  return seconds;
}

py::dict peak_dict(const std::optional<std::string>& isa) {
  Peak peak;
  {
    const py::gil_scoped_release release;
    peak = probe_peak(isa ? isa->c_str() : nullptr);
  }
  py::dict d;
  d["int8_gmacs"] = peak.int8_gmacs;
  d["fp32_gmacs"] = peak.fp32_gmacs;
  d["l2_gbs"] = peak.l2_gbs;
  d["dram_gbs"] = peak.dram_gbs;
  return d;
}

double int8_peak(const std::optional<std::string>& isa) {
  const py::gil_scoped_release release;
  return int8_peak_gmacs(isa ? isa->c_str() : nullptr);
}

}  // namespace

void bind_bench(py::module_& m) {
  m.def("probe_peak", &peak_dict, py::arg("isa") = py::none(),
        "What one core can do: {int8_gmacs, fp32_gmacs, l2_gbs, dram_gbs}, 10^9 a second.");
  m.def("int8_peak_gmacs", &int8_peak, py::arg("isa") = py::none(),
        "The first number of probe_peak alone, in a few milliseconds.");
  m.def("time_layer", &time_layer, py::arg("blobs"), py::arg("x"), py::arg("repeats"),
        py::arg("inner"), py::arg("threads") = 1, py::arg("flush") = false,
        py::arg("half_input") = py::none(), py::arg("processor_time") = false,
        "Seconds a call of a layer, `repeats` means over `inner` calls that take the copies in "
        "`blobs` in turn. flush: the caches are emptied before each call; processor_time: "
        "seconds of the process instead of the clock on the wall.");
}

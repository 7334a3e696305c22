// The kernels on the sizes they are judged by, without Python: for boards.
//
//   defakeq_bench [--threads N] [--bits 8,4,2] [--work PART] [--rounds N] [--json FILE]
//   defakeq_bench --calls N --work NAME [--bits 8]   (N calls of one layer, nothing else: to be
//   counted)
//
// DEFAKEQ_ISA chooses the kernels. The families: dq_gemm (products and dense convolutions), dq_gemv
// (one row), dq_dwconv (depthwise), dq_rows (element-wise passes over rows), dq_lookup and the
// other operators between layers (bench_nodes.cpp).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bench_nodes.h"
#include "defakeq/defakeq.h"
#include "defakeq/peak.h"
#include "defakeq/thread_pool.h"
#include "dispatch/dispatch.h"

namespace {

using namespace defakeq;
using Clock = std::chrono::steady_clock;

constexpr double kChunkSeconds = 2e-3;
constexpr size_t kCopyBytes = size_t{8} << 20;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<void, Free>;

Buffer aligned(size_t bytes) {
  Buffer buffer(std::aligned_alloc(64, (bytes / 64 + 1) * 64));
  if (buffer == nullptr) throw std::bad_alloc();
  std::memset(buffer.get(), 0, bytes);
  return buffer;
}

struct Options {
  int threads = 1;
  int rounds = 15;
  std::vector<int> bits = {8, 4, 2};
  std::string work;
  std::string json;
  int calls = 0;  // > 0: that many calls of the layer `work`, untimed
};

struct Work {
  const char* base;
  const char* family;
  LayerKind kind;
  int64_t rows, outputs, inputs;  // rows of a product
  int32_t kernel, size;           // of a convolution, square
  int32_t groups;
};

constexpr LayerKind kL = LayerKind::kLinear, kC = LayerKind::kConv2d;
constexpr Work kWorks[] = {
    {"gemm 196x768x768", "dq_gemm", kL, 196, 768, 768, 1, 1, 1},
    {"gemm 196x3072x768", "dq_gemm", kL, 196, 3072, 768, 1, 1, 1},
    {"gemm 49x1024x1024", "dq_gemm", kL, 49, 1024, 1024, 1, 1, 1},
    {"gemm 1024x728x728", "dq_gemm", kL, 1024, 728, 728, 1, 1, 1},
    {"gemm 4096x128x128", "dq_gemm", kL, 4096, 128, 128, 1, 1, 1},
    {"conv 3x3 64@56x56", "dq_gemm", kC, 1, 64, 64, 3, 56, 1},
    {"conv 3x3 64@64x64", "dq_gemm", kC, 1, 64, 64, 3, 64, 1},
    {"conv 3x3 128@32x32", "dq_gemm", kC, 1, 128, 128, 3, 32, 1},
    {"conv 3x3 256@16x16", "dq_gemm", kC, 1, 256, 256, 3, 16, 1},
    {"conv 1x1 728@16x16", "dq_gemm", kC, 1, 728, 728, 1, 16, 1},
    {"dwconv 3x3 728@16x16", "dq_dwconv", kC, 1, 728, 728, 3, 16, 728},
    {"gemv 1x1024x4096", "dq_gemv", kL, 1, 1024, 4096, 1, 1, 1},
};

// Every `step`th channel is kept; every `half_step`th is in half precision (0: none).
struct Variant {
  const char* name;
  int out_step, in_step, half_out_step, half_in_step;
  bool symmetric = false;  // without zero points, as other engines' weights are
};
constexpr Variant kVariants[] = {
    {"", 1, 1, 0, 0},
    {"half-out", 2, 1, 0, 0},
    {"half-in-out", 2, 2, 0, 0},
    {"half-precision-5", 1, 1, 20, 0},
    {"half-precision-in-2", 1, 1, 0, 50},
    {"symmetric", 1, 1, 0, 0, true},
};

struct Row {
  std::string work;
  int bits;
  double us, gmacs, of_peak, peak;
};

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// Median seconds of one call of fn(i), and the median peak between the rounds.
std::pair<double, double> measure(const std::function<void(size_t)>& fn, size_t copies,
                                  int rounds) {
  size_t inner = copies;
  for (size_t i = 0; i < copies; ++i) fn(i);
  for (;;) {
    const auto begin = Clock::now();
    for (size_t i = 0; i < inner; ++i) fn(i);
    if (seconds_since(begin) >= kChunkSeconds || inner > (size_t{1} << 22)) break;
    inner *= 2;
  }
  std::vector<double> times, peaks;
  for (int r = 0; r < rounds; ++r) {
    peaks.push_back(int8_peak_gmacs(nullptr));
    const auto begin = Clock::now();
    for (size_t i = 0; i < inner; ++i) fn(i);
    times.push_back(seconds_since(begin) / static_cast<double>(inner));
  }
  return {median(times), median(peaks)};
}

Row measure_layer(const Work& work, const Variant& variant, int bits, ThreadPool& pool,
                  const Options& options) {
  std::mt19937 random(1);
  const bool depthwise = work.groups > 1;
  const int64_t taps = int64_t{work.kernel} * work.kernel;
  std::vector<int32_t> integer_out, half_out, inputs, half_in;
  for (int32_t n = 0; n < work.outputs; n += variant.out_step) {
    const bool half = variant.half_out_step != 0 && n % variant.half_out_step == 0;
    (half ? half_out : integer_out).push_back(n);
  }
  for (int32_t k = 0; k < work.inputs; k += variant.in_step) {
    const bool half = variant.half_in_step != 0 && k % variant.half_in_step == 0;
    (half ? half_in : inputs).push_back(k);
  }
  const int64_t per_tap = depthwise ? 1 : static_cast<int64_t>(inputs.size());
  const int64_t reduction = taps * per_tap;
  const size_t count = integer_out.size(), stored = count + half_out.size();
  const size_t row_bytes = static_cast<size_t>((reduction * bits + 7) / 8);
  std::vector<uint8_t> codes(count * row_bytes);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
  if (reduction * bits % 8 != 0) {  // the padding bits of a row are zero
    const uint8_t mask = static_cast<uint8_t>((1 << (reduction * bits % 8)) - 1);
    for (size_t n = 1; n <= count; ++n) codes[n * row_bytes - 1] &= mask;
  }
  const std::vector<uint16_t> halves(half_out.size() * static_cast<size_t>(reduction), 0x2e66);
  const std::vector<uint16_t> half_columns(stored * half_in.size() * static_cast<size_t>(taps),
                                           0x2e66);
  const std::vector<float> scale(count, 2e-3f), bias(stored, 0.125f);
  const std::vector<int32_t> zero_point(count, bits == 1 ? 1 : (1 << (bits - 1)) - 1);

  LayerSpec spec;
  spec.kind = work.kind;
  spec.out_channels = work.outputs;
  spec.in_channels = work.inputs;
  for (int d = 0; d < 2; ++d) {
    spec.kernel[d] = work.kernel;
    spec.padding[d] = work.kernel / 2;
  }
  spec.groups = work.groups;
  SegmentSpec segment;
  segment.bits = bits;
  segment.count = static_cast<int64_t>(count);
  segment.out_index = integer_out.data();
  segment.codes = codes.data();
  segment.scale = scale.data();
  if (!variant.symmetric) segment.zero_point = zero_point.data();
  spec.segments.push_back(segment);
  if (!half_out.empty()) {
    SegmentSpec half;
    half.bits = 16;
    half.count = static_cast<int64_t>(half_out.size());
    half.out_index = half_out.data();
    half.halves = halves.data();
    spec.segments.push_back(half);
  }
  spec.in_count = per_tap;
  if (!depthwise && inputs.size() != static_cast<size_t>(work.inputs)) {
    spec.in_index = inputs.data();
  }
  if (!half_in.empty()) {
    spec.half_in_index = half_in.data();
    spec.half_in_count = static_cast<int64_t>(half_in.size());
    spec.half_in_weight = half_columns.data();
  }
  spec.bias = bias.data();
  const bool conv = work.kind == LayerKind::kConv2d;
  spec.act_mode = ActMode::kStatic;
  spec.act = {0.03f, conv ? -128 : 3, 8};
  spec.activation = conv ? Activation::kRelu : Activation::kNone;
  spec.out_dtype = DType::kInt8;
  spec.out = {0.03f, conv ? -128 : 3, 8};

  const size_t bytes = packed_layer_bytes(spec);
  const size_t copies = std::clamp<size_t>(kCopyBytes / bytes, 2, 8);
  const int64_t pixels = work.rows * work.size * work.size;
  std::vector<Buffer> blobs;
  for (size_t i = 0; i < copies; ++i) {
    blobs.push_back(aligned(bytes));
    pack_layer(spec, blobs.back().get(), bytes);
  }
  const Buffer x = aligned(static_cast<size_t>(pixels * work.inputs));
  const Buffer out = aligned(static_cast<size_t>(pixels * work.outputs));
  for (int64_t i = 0; i < pixels * work.inputs; ++i) {
    static_cast<int8_t*>(x.get())[i] = static_cast<int8_t>(random());
  }
  const std::vector<float> half_input(static_cast<size_t>(pixels) * half_in.size(), 0.5f);
  GrowingScratch scratch;
  const auto call = [&](size_t i) {
    OpArgs args;
    args.blob = blobs[i % copies].get();
    args.blob_bytes = bytes;
    args.x = x.get();
    args.x_dtype = DType::kInt8;
    args.out = out.get();
    args.half_input = half_input.empty() ? nullptr : half_input.data();
    if (conv) {
      conv2d(args, 1, work.size, work.size, pool, scratch);
    } else {
      linear(args, work.rows, work.inputs, pool, scratch);
    }
  };
  for (int i = 0; i < options.calls; ++i) call(0);
  if (options.calls > 0) return {};
  const auto [seconds, peak] = measure(call, copies, options.rounds);
  const double channels = depthwise ? 1.0 : static_cast<double>(inputs.size() + half_in.size());
  const double macs = static_cast<double>(pixels) * static_cast<double>(stored) *
                      static_cast<double>(taps) * channels;
  std::string name = work.base;
  if (*variant.name != '\0') name += std::string(" ") + variant.name;
  const double gmacs = macs / seconds * 1e-9;
  return {name, bits, seconds * 1e6, gmacs, gmacs / (peak * options.threads), peak};
}

// Element-wise passes, dq_rows: microseconds and the bytes they read and write.
void measure_rows(const Options& options) {
  constexpr int64_t kCount = 196 * 768;
  const Buffer x = aligned(kCount * sizeof(float)), q = aligned(kCount);
  const auto floats = static_cast<float*>(x.get());
  const auto bytes = static_cast<int8_t*>(q.get());
  for (int64_t i = 0; i < kCount; ++i) floats[i] = static_cast<float>(i % 255) * 0.03f - 3.8f;
  std::vector<const int8_t*> rows(196);
  for (size_t r = 0; r < rows.size(); ++r) rows[r] = bytes + r * 768;
  std::vector<int32_t> sums(rows.size());
  const int64_t offset = 0;
  const KernelTable& table = kernels();
  volatile float sink = 0;
  const struct {
    const char* name;
    std::function<void(size_t)> fn;
    double bytes;
  } passes[] = {
      {"dq_rows quantize 196x768",
       [&](size_t) { table.quantize(floats, kCount, 33.3f, 3, -131.0f, 124.0f, bytes); }, 5.0},
      {"dq_rows dequantize 196x768",
       [&](size_t) { table.dequantize(bytes, kCount, 0.03f, 3, floats); }, 5.0},
      {"dq_rows abs_max 196x768", [&](size_t) { sink = table.abs_max(floats, kCount); }, 4.0},
      {"dq_rows row_sums 196x768",
       [&](size_t) { table.row_sums(rows.data(), 196, &offset, 1, 768, sums.data()); }, 1.0},
  };
  for (const auto& pass : passes) {
    if (std::string(pass.name).find(options.work) == std::string::npos) continue;
    const double seconds = measure(pass.fn, 1, options.rounds).first;
    std::printf("%-42s %4s %10.2f us %8.1f GB/s\n", pass.name, "", seconds * 1e6,
                pass.bytes * kCount / seconds * 1e-9);
  }
}

int positive(const std::string& name, const char* text) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (end == text || *end != '\0' || value < 1 || value > 1024) {
    throw std::invalid_argument(name + ": found '" + text + "', accepted: 1 to 1024");
  }
  return static_cast<int>(value);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name != "--threads" && name != "--rounds" && name != "--bits" && name != "--work" &&
        name != "--json" && name != "--calls") {
      throw std::invalid_argument("argument: found '" + name +
                                  "', accepted: --threads N, --bits 8,4,2, --work PART, "
                                  "--rounds N, --json FILE, --calls N");
    }
    if (i + 1 == argc) throw std::invalid_argument(name + ": found nothing, accepted: a value");
    const char* value = argv[++i];
    if (name == "--threads") options.threads = positive(name, value);
    if (name == "--rounds") options.rounds = positive(name, value);
    if (name == "--calls") options.calls = positive(name, value);
    if (name == "--work") options.work = value;
    if (name == "--json") options.json = value;
    if (name == "--bits") {
      options.bits.clear();
      std::string list = value;
      for (size_t at = 0; at <= list.size();) {
        const size_t comma = std::min(list.find(',', at), list.size());
        const int width = positive(name, list.substr(at, comma - at).c_str());
        if (width > 8) throw std::invalid_argument(name + ": found " + list + ", accepted: 1 to 8");
        options.bits.push_back(width);
        at = comma + 1;
      }
    }
  }
  return options;
}

void write_json(const Options& options, const CpuInfo& info, const Peak& peak,
                const std::vector<Row>& rows) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(options.json.c_str(), "w"),
                                                   &std::fclose);
  if (file == nullptr) throw std::runtime_error("--json: cannot write '" + options.json + "'");
  std::string cpu;
  for (const char c : info.cpu) {
    if (c == '"' || c == '\\') cpu += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) cpu += c;
  }
  std::fprintf(file.get(),
               "{\"machine\": {\"cpu\": \"%s\", \"isa\": \"%s\", \"threads\": %d, "
               "\"int8_peak_gmacs\": %.2f, \"fp32_peak_gmacs\": %.2f, \"l2_gbs\": %.1f, "
               "\"dram_gbs\": %.1f},\n \"rows\": [",
               cpu.c_str(), info.selected.c_str(), options.threads, peak.int8_gmacs,
               peak.fp32_gmacs, peak.l2_gbs, peak.dram_gbs);
  for (size_t i = 0; i < rows.size(); ++i) {
    const Row& r = rows[i];
    std::fprintf(file.get(),
                 "%s\n  {\"work\": \"%s\", \"bits\": %d, \"engine\": \"defakeq\", \"us\": %.3f, "
                 "\"gmacs\": %.2f, \"of_peak\": %.4f, \"peak_gmacs\": %.2f}",
                 i == 0 ? "" : ",", r.work.c_str(), r.bits, r.us, r.gmacs, r.of_peak, r.peak);
  }
  std::fprintf(file.get(), "]}\n");
}

std::string name_of(const Work& work, const Variant& variant) {
  return *variant.name == '\0' ? work.base : std::string(work.base) + " " + variant.name;
}

int run_calls(const Options& options) {
  ThreadPool pool(options.threads);
  for (const Work& work : kWorks) {
    for (const Variant& variant : kVariants) {
      if (name_of(work, variant) != options.work) continue;
      measure_layer(work, variant, options.bits.front(), pool, options);
      return 0;
    }
  }
  throw std::invalid_argument("--work: found '" + options.work +
                              "', accepted: a layer's full name");
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  if (options.calls > 0) return run_calls(options);
  const CpuInfo info = cpu_info();
  const Peak peak = probe_peak(nullptr);
  std::printf(
      "%s, %s, %d thread(s); one core: int8 %.1f GMAC/s, fp32 %.1f GMAC/s, L2 %.0f GB/s, "
      "DRAM %.1f GB/s\n\n",
      info.cpu.c_str(), info.selected.c_str(), options.threads, peak.int8_gmacs, peak.fp32_gmacs,
      peak.l2_gbs, peak.dram_gbs);
  ThreadPool pool(options.threads);
  std::vector<Row> rows;
  for (const Work& work : kWorks) {
    for (const Variant& variant : kVariants) {
      const std::string name = std::string(work.base) + " " + variant.name;
      const bool other = work.groups > 1
                             ? variant.in_step > 1 || variant.half_in_step > 0
                             : variant.symmetric;  // a zero point costs depthwise layers
      if (other || (name + work.family).find(options.work) == std::string::npos) continue;
      for (const int bits : options.bits) {
        const Row row = measure_layer(work, variant, bits, pool, options);
        std::printf("%-42s %4d %10.2f us %8.1f GMAC/s %6.3f of peak  %s\n", row.work.c_str(),
                    row.bits, row.us, row.gmacs, row.of_peak, work.family);
        std::fflush(stdout);
        rows.push_back(row);
      }
    }
  }
  measure_rows(options);
  bench_nodes(options.work, options.rounds, pool);
  if (!options.json.empty()) write_json(options, info, peak, rows);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "defakeq_bench: %s\n", error.what());
    return 2;
  }
}

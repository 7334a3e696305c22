// Runs a .dfq program on a .npy array, without Python.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__linux__)
#include <unistd.h>
#endif

#include "defakeq/program.h"

static_assert(std::endian::native == std::endian::little, "arrays are read in place");

namespace {

using defakeq::NodeInfo;
using defakeq::Program;
using Clock = std::chrono::steady_clock;

constexpr char kUsage[] =
    "usage: dq_run model.dfq input.npy ... [--threads N] [--repeat N] [--bench] [--profile]\n"
    "              [--output out.npy ...]\n"
    "input.npy: float32, C order, [batch, ...]; one for each input of the program, in its order\n"
    "--output: where an output is written; the first is that of the first output, and so on\n"
    "prints a table of the nodes and the outputs; with --bench the row of `defakeq bench model`\n"
    "instead of the table, which --profile adds\n";

struct Options {
  std::string model;
  std::vector<std::string> inputs, outputs;
  int threads = 1, repeat = 1;
  bool bench = false, profile = false;
};

struct Array {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

[[noreturn]] void bad(const std::string& field, const std::string& found,
                      const std::string& accepted) {
  throw std::runtime_error(field + ": found " + found + "; accepted is " + accepted);
}

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "[";
  for (const int64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + "]";
}

int count_of(const std::string& option, const std::string& value) {
  char* end = nullptr;
  const long count = std::strtol(value.c_str(), &end, 10);
  if (value.empty() || *end != '\0' || count < 1 || count > 1000000) {
    bad(option, "'" + value + "'", "1 to 1000000");
  }
  return static_cast<int>(count);
}

Options parse(int argc, char** argv) {
  Options o;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) bad(option, "nothing", "a value");
      return argv[++i];
    };
    if (option == "--threads") {
      o.threads = count_of(option, value());
    } else if (option == "--repeat") {
      o.repeat = count_of(option, value());
    } else if (option == "--bench") {
      o.bench = true;
    } else if (option == "--profile") {
      o.profile = true;
    } else if (option == "--output") {
      o.outputs.push_back(value());
    } else if (option.rfind("--", 0) == 0) {
      bad("option", option, "--threads, --repeat, --bench, --profile, --output");
    } else {
      files.push_back(option);
    }
  }
  o.profile = o.profile || !o.bench;  // reading the clock between the nodes would be measured
  if (files.empty()) bad("arguments", "no file", "a program and its inputs");
  o.model = files[0];
  o.inputs.assign(files.begin() + 1, files.end());
  return o;
}

// The value after 'key': in the header of a .npy file.
std::string entry(const std::string& path, const std::string& header, const std::string& key) {
  const size_t at = header.find("'" + key + "':");
  if (at == std::string::npos) bad(path, "no " + key, "a .npy file");
  const size_t begin = header.find_first_not_of(' ', at + key.size() + 3);
  if (begin == std::string::npos) bad(path, "no " + key, "a .npy file");
  const size_t end = header[begin] == '(' ? header.find(')', begin) : header.find(',', begin);
  return header.substr(begin, end == std::string::npos ? end : end - begin);
}

Array read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) bad(path, "no readable file", "a .npy file");
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.size() < 12 || bytes.compare(0, 6, "\x93NUMPY") != 0) {
    bad(path, "another format", "a .npy file");
  }
  const int version = static_cast<uint8_t>(bytes[6]);
  size_t length = 0;
  const size_t length_bytes = version == 1 ? 2 : 4;
  std::memcpy(&length, bytes.data() + 8, length_bytes);
  const size_t start = 8 + length_bytes;
  if (version > 3 || length > bytes.size() - start) bad(path, "a broken header", "a .npy file");
  const std::string header = bytes.substr(start, length);
  const std::string type = entry(path, header, "descr");
  if (type != "'<f4'") bad(path, "type " + type, "'<f4', little-endian float32");
  if (entry(path, header, "fortran_order") != "False") bad(path, "Fortran order", "C order");
  Array array;
  const std::string shape = entry(path, header, "shape");
  const size_t payload = bytes.size() - start - length;
  size_t count = 1;
  for (size_t at = 1; at < shape.size();) {
    char* end = nullptr;
    const long long size = std::strtoll(shape.c_str() + at, &end, 10);
    if (end == shape.c_str() + at) break;
    if (size < 0 || (size > 0 && count > payload / static_cast<size_t>(size))) {
      bad(path, "shape " + shape, "a shape that the file holds");
    }
    array.shape.push_back(size);
    count *= static_cast<size_t>(size);
    at = static_cast<size_t>(end - shape.c_str());
    while (at < shape.size() && (shape[at] == ',' || shape[at] == ' ')) ++at;
  }
  if (payload != count * sizeof(float)) {
    bad(path, std::to_string(payload) + " bytes", std::to_string(count) + " values of 4 bytes");
  }
  array.data.resize(count);
  if (count > 0) std::memcpy(array.data.data(), bytes.data() + start + length, payload);
  return array;
}

// Appears as a whole or not at all.
void write_npy(const std::string& path, const Array& array) {
  std::string shape = "(";
  for (const int64_t size : array.shape) shape += std::to_string(size) + ", ";
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "), }";
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 11, ' ');
  header += '\n';
  const auto length = static_cast<uint16_t>(header.size());
  const std::string part = path + ".part";
  std::ofstream file(part, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  file.write(reinterpret_cast<const char*>(&length), 2);
  file << header;
  file.write(reinterpret_cast<const char*>(array.data.data()),
             static_cast<std::streamsize>(array.data.size() * sizeof(float)));
  file.close();
  if (!file || std::rename(part.c_str(), path.c_str()) != 0) {
    std::remove(part.c_str());
    bad(path, "a file that cannot be written", "a writable path");
  }
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void print_profile(const Program& program, const std::vector<double>& seconds, double images) {
  double total = 0;
  for (const double s : seconds) total += s;
  std::printf("%-32s %-20s %-18s %10s %7s %9s\n", "node", "op", "shape", "us", "share", "GMAC/s");
  for (size_t i = 0; i < seconds.size(); ++i) {
    const NodeInfo& node = program.nodes()[i];
    const double each = seconds[i] / images;
    std::printf("%-32s %-20s %-18s %10.2f %6.1f%% %9.1f\n", node.name.c_str(), node.op.c_str(),
                text(node.shape).c_str(), each * 1e6, total > 0 ? 100 * seconds[i] / total : 0.0,
                each > 0 ? static_cast<double>(node.macs) / each * 1e-9 : 0.0);
  }
}

// Resident memory in bytes, 0 where the system does not say.
double resident_bytes() {
#if defined(__linux__)
  std::ifstream file("/proc/self/statm");
  double all = 0, resident = 0;
  if (file >> all >> resident) return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
#endif
  return 0;
}

// What the first run of a process takes.
struct First {
  double seconds = 0, resident = 0;
};

// The columns of `defakeq bench model`, for an image.
void print_bench(const Options& o, const Program& program, const First& first, double seconds) {
  const auto& info = program.info();
  int64_t macs = 0;
  for (const NodeInfo& node : program.nodes()) macs += node.macs;
  const std::filesystem::path file = o.model;
  std::printf("%-24s %-8s %-20s %7s %10s %9s %8s %9s %8s\n", "network", "plan", "engine", "threads",
              "ms", "size_mb", "rss_mb", "first_ms", "gmacs");
  std::printf("%-24s %-8s %-20s %7d %10.4f %9.3f %8.1f %9.2f %8.2f\n", file.stem().c_str(), "file",
              "defakeq", program.threads(), seconds * 1e3,
              static_cast<double>(std::filesystem::file_size(file)) * 1e-6, first.resident * 1e-6,
              (info.load_seconds + first.seconds) * 1e3,
              static_cast<double>(macs) / seconds * 1e-9);
  std::printf(
      "loaded in %.1f ms: read %.1f, packed %.1f on %d threads; weights %.2f MB, arena %.2f MB\n",
      info.load_seconds * 1e3, info.read_seconds * 1e3, info.pack_seconds * 1e3, program.threads(),
      static_cast<double>(info.packed_bytes) * 1e-6, static_cast<double>(info.arena_bytes) * 1e-6);
}

void run(const Options& o) {
  Program program = Program::load(o.model, o.threads);
  const auto& ports = program.inputs();
  if (o.inputs.size() != ports.size()) {
    bad("arguments", std::to_string(o.inputs.size()) + " inputs",
        std::to_string(ports.size()) + " for " + o.model);
  }
  if (o.outputs.size() > program.outputs().size()) {
    bad("--output", std::to_string(o.outputs.size()) + " of them",
        "at most " + std::to_string(program.outputs().size()) + " for " + o.model);
  }
  std::vector<Array> arrays;
  int64_t batch = 1;
  for (size_t i = 0; i < ports.size(); ++i) {
    arrays.push_back(read_npy(o.inputs[i]));
    const std::vector<int64_t>& found = arrays[i].shape;
    const std::vector<int64_t>& accepted = ports[i].shape;
    if (i == 0 && !found.empty()) batch = found[0];
    if (found.size() != accepted.size() + 1 || found[0] != batch ||
        !std::equal(accepted.begin(), accepted.end(), found.begin() + 1)) {
      std::string wanted = "[batch";
      for (const int64_t size : accepted) wanted += ", " + std::to_string(size);
      bad(o.inputs[i], "shape " + text(found),
          wanted + "] of input '" + ports[i].name + "', one batch for all inputs");
    }
  }
  std::vector<Array> results;
  for (const auto& port : program.outputs()) {
    Array y;
    y.shape = port.shape;
    y.shape.insert(y.shape.begin(), batch);
    size_t count = 1;
    for (const int64_t size : y.shape) count *= static_cast<size_t>(size);
    y.data.resize(count);
    results.push_back(std::move(y));
  }
  std::vector<float*> out;
  for (Array& y : results) out.push_back(y.data.data());
  std::vector<const float*> in;
  for (const Array& x : arrays) in.push_back(x.data.data());
  std::vector<double> seconds(program.nodes().size()), times;
  First first;
  if (o.bench) {
    const Clock::time_point start = Clock::now();
    program.run(in.data(), out.data(), batch);
    first.seconds = std::chrono::duration<double>(Clock::now() - start).count();
    first.resident = resident_bytes();
  }
  for (int i = 0; i < o.repeat; ++i) {
    const Clock::time_point start = Clock::now();
    program.run(in.data(), out.data(), batch, o.profile ? seconds.data() : nullptr);
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  if (o.profile)
    print_profile(program, seconds, static_cast<double>(std::max<int64_t>(batch, 1)) * o.repeat);
  if (o.bench) {
    print_bench(o, program, first,
                median(times) / static_cast<double>(std::max<int64_t>(batch, 1)));
  }
  constexpr size_t kShown = 16;
  for (size_t i = 0; i < results.size(); ++i) {
    const Array& y = results[i];
    std::printf("%s %s:", program.outputs()[i].name.c_str(), text(y.shape).c_str());
    for (size_t k = 0; k < std::min(kShown, y.data.size()); ++k) std::printf(" %.9g", y.data[k]);
    std::printf(y.data.size() > kShown ? " ...\n" : "\n");
  }
  for (size_t i = 0; i < o.outputs.size(); ++i) write_npy(o.outputs[i], results[i]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || std::string(argv[1]) == "--help") {
    std::fputs(kUsage, argc < 2 ? stderr : stdout);
    return argc < 2 ? 2 : 0;
  }
  try {
    run(parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dq_run: %s\n", error.what());
    return 1;
  }
  return 0;
}

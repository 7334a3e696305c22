#include "defakeq_aot.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

namespace defakeq_aot {

namespace {

constexpr int kVersion = 1;
constexpr int kDefaultShared = 48 * 1024;

[[noreturn]] void fail(const std::string& text) {
  throw std::runtime_error("defakeq_aot: " + text);
}

void check(CUresult code, const char* what) {
  if (code == CUDA_SUCCESS) return;
  const char* text = nullptr;
  cuGetErrorString(code, &text);
  fail(std::string(what) + ": " + (text != nullptr ? text : "unknown error"));
}

std::vector<char> contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace

enum class Kind { kX, kOut, kResidual, kHalf, kScratch, kConstant, kNull, kInt, kFloat };

struct Network::Argument {
  Kind kind = Kind::kNull;
  uint64_t value = 0;  // offset, or the bits of a number
  size_t index = 0;    // of scratch
};

struct Network::Launch {
  CUfunction function = nullptr;
  unsigned grid[3] = {1, 1, 1};
  unsigned threads = 0, shared = 0;
  std::vector<Argument> arguments;
};

struct Network::Layer {
  std::string name;
  std::vector<TensorInfo> tensors;
  int fill = -1;
  std::vector<size_t> scratch;
  std::vector<Launch> launches;

  bool has(const std::string& tensor) const {
    return std::any_of(tensors.begin(), tensors.end(),
                       [&](const TensorInfo& t) { return t.name == tensor; });
  }
};

struct Network::Reader {
  Network& network;
  const std::string folder;
  size_t constants;
  int number = 0;

  [[noreturn]] void bad(const std::string& line) const {
    fail(folder + "/manifest.txt, line " + std::to_string(number) + ": found '" + line + "'");
  }

  CUfunction function(const std::string& file, const std::string& name, unsigned shared) {
    auto found = network.modules_.find(file);
    if (found == network.modules_.end()) {
      const std::vector<char> image = contents(folder + "/" + file);
      CUmodule module = nullptr;
      check(cuModuleLoadData(&module, image.data()), file.c_str());
      found = network.modules_.emplace(file, module).first;
    }
    CUfunction result = nullptr;
    check(cuModuleGetFunction(&result, found->second, name.c_str()), name.c_str());
    if (shared > kDefaultShared) {
      check(cuFuncSetAttribute(result, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                               static_cast<int>(shared)),
            "shared memory");
    }
    return result;
  }

  Argument argument(std::istringstream& words, const Layer& layer, const std::string& line) {
    Argument a;
    std::string kind;
    words >> kind;
    if (kind == "null") return a;
    if (kind == "i32") {
      int64_t value = 0;
      words >> value;
      a.kind = Kind::kInt;
      a.value = static_cast<uint32_t>(value);
    } else if (kind == "f32") {
      words >> std::hex >> a.value;
      a.kind = Kind::kFloat;
    } else if (kind == "constant") {
      words >> a.value;
      a.kind = Kind::kConstant;
      if (a.value >= constants) bad(line);
    } else if (kind == "scratch") {
      words >> a.index >> a.value;
      a.kind = Kind::kScratch;
      if (a.index >= layer.scratch.size() || a.value >= layer.scratch[a.index]) bad(line);
    } else {
      const std::pair<const char*, Kind> names[] = {{"x", Kind::kX},
                                                    {"out", Kind::kOut},
                                                    {"residual", Kind::kResidual},
                                                    {"half", Kind::kHalf}};
      const auto* found = std::find_if(std::begin(names), std::end(names),
                                       [&](const auto& n) { return kind == n.first; });
      if (found == std::end(names) || !layer.has(kind)) bad(line);
      words >> a.value;
      a.kind = found->second;
    }
    if (!words) bad(line);
    return a;
  }

  void read() {
    std::ifstream file(folder + "/manifest.txt");
    if (!file) fail(folder + "/manifest.txt cannot be read");
    std::string line;
    bool ended = false;
    size_t left = 0;  // arguments of the last launch that are still to come
    while (!ended && std::getline(file, line)) {
      ++number;
      std::istringstream words(line);
      std::string word;
      words >> word;
      if (number == 1) {
        int version = 0;
        words >> version;
        if (word != "defakeq-aot" || version != kVersion) bad(line);
        continue;
      }
      if ((word == "arg") != (left > 0)) bad(line);
      if (word == "arch") continue;
      if (word == "end") {
        ended = true;
        continue;
      }
      if (word == "layer") {
        network.layers_.push_back(std::make_unique<Layer>());
        words >> network.layers_.back()->name;
        if (!words) bad(line);
        continue;
      }
      if (network.layers_.empty()) bad(line);
      Layer& layer = *network.layers_.back();
      if (word == "tensor") {
        TensorInfo info;
        words >> info.name >> info.dtype;
        if (!words) bad(line);
        for (int64_t size = 0; words >> size;) info.shape.push_back(size);
        layer.tensors.push_back(info);
      } else if (word == "fill") {
        words >> layer.fill;
        if (!words) bad(line);
      } else if (word == "scratch") {
        size_t size = 0;
        words >> size;
        if (!words) bad(line);
        layer.scratch.push_back(size);
      } else if (word == "launch") {
        Launch launch;
        std::string cubin, name;
        words >> cubin >> name >> launch.grid[0] >> launch.grid[1] >> launch.grid[2] >>
            launch.threads >> launch.shared >> left;
        if (!words) bad(line);
        launch.function = function(cubin, name, launch.shared);
        layer.launches.push_back(launch);
      } else if (word == "arg") {
        layer.launches.back().arguments.push_back(argument(words, layer, line));
        --left;
      } else {
        bad(line);
      }
    }
    if (!ended) fail(folder + "/manifest.txt ends early");
  }
};

Network::Network(const std::string& folder) {
  try {
    const std::vector<char> data = contents(folder + "/constants.bin");
    Reader{*this, folder, data.size()}.read();
    if (!data.empty()) {
      check(cuMemAlloc(&constants_, data.size()), "memory for the constants");
      check(cuMemcpyHtoD(constants_, data.data(), data.size()), "copy of the constants");
    }
    std::vector<size_t> sizes;
    for (const auto& layer : layers_) {
      sizes.resize(std::max(sizes.size(), layer->scratch.size()), 0);
      for (size_t i = 0; i < layer->scratch.size(); ++i) {
        sizes[i] = std::max(sizes[i], layer->scratch[i]);
      }
    }
    for (const size_t size : sizes) {
      CUdeviceptr memory = 0;
      check(cuMemAlloc(&memory, size), "scratch memory");
      scratch_.push_back(memory);
    }
  } catch (...) {
    release();
    throw;
  }
}

Network::~Network() { release(); }

void Network::release() {
  for (const auto& entry : modules_) cuModuleUnload(entry.second);
  for (const CUdeviceptr memory : scratch_) cuMemFree(memory);
  if (constants_ != 0) cuMemFree(constants_);
}

std::vector<std::string> Network::layers() const {
  std::vector<std::string> names;
  for (const auto& layer : layers_) names.push_back(layer->name);
  return names;
}

const Network::Layer& Network::find(const std::string& name) const {
  for (const auto& layer : layers_) {
    if (layer->name == name) return *layer;
  }
  fail("found no layer '" + name + "'");
}

const std::vector<TensorInfo>& Network::tensors(const std::string& layer) const {
  return find(layer).tensors;
}

CUdeviceptr Network::address(const Argument& a, const Operands& operands) const {
  switch (a.kind) {
    case Kind::kX:
      return operands.x + a.value;
    case Kind::kOut:
      return operands.out + a.value;
    case Kind::kResidual:
      return operands.residual + a.value;
    case Kind::kHalf:
      return operands.half + a.value;
    case Kind::kScratch:
      return scratch_[a.index] + a.value;
    case Kind::kConstant:
      return constants_ + a.value;
    default:
      return 0;
  }
}

void Network::run(const std::string& name, const Operands& operands, CUstream stream) {
  const Layer& layer = find(name);
  const std::pair<const char*, CUdeviceptr> given[] = {{"x", operands.x},
                                                       {"out", operands.out},
                                                       {"residual", operands.residual},
                                                       {"half", operands.half}};
  for (const auto& [tensor, memory] : given) {
    if ((memory != 0) != layer.has(tensor)) {
      fail(name + ", " + tensor + ": found " + (memory != 0 ? "memory" : "none") +
           ", accepted is " + (memory != 0 ? "none" : "memory"));
    }
    if (memory % 16 != 0) fail(name + ", " + tensor + ": found memory that is not aligned to 16");
  }
  if (layer.fill >= 0) {
    for (const TensorInfo& t : layer.tensors) {
      if (t.name != "out") continue;
      size_t size = t.dtype == "int8" ? 1 : 4;
      for (const int64_t extent : t.shape) size *= static_cast<size_t>(extent);
      check(cuMemsetD8Async(operands.out, static_cast<unsigned char>(layer.fill), size, stream),
            "fill");
    }
  }
  for (const Launch& launch : layer.launches) {
    std::vector<uint64_t> values;
    std::vector<void*> pointers;
    values.reserve(launch.arguments.size());
    for (const Argument& a : launch.arguments) {
      const bool number = a.kind == Kind::kInt || a.kind == Kind::kFloat;
      values.push_back(number ? a.value : address(a, operands));
      pointers.push_back(&values.back());
    }
    check(cuLaunchKernel(launch.function, launch.grid[0], launch.grid[1], launch.grid[2],
                         launch.threads, 1, 1, launch.shared, stream, pointers.data(), nullptr),
          name.c_str());
  }
}

}  // namespace defakeq_aot

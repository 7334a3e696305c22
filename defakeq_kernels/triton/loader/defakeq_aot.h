// Runs the layers that `defakeq aot` compiled, through the CUDA driver API alone.
//
//   CUDA must be initialized and a context current. Pointers are device memory.
//
//   defakeq_aot::Network net("folder");
//   net.run("conv1/features.0", {.x = x, .out = y}, stream);
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace defakeq_aot {

// A tensor of the caller: "int8" or "float32", images as [N, H, W, C].
struct TensorInfo {
  std::string name, dtype;
  std::vector<int64_t> shape;
};

// Device addresses; 0 where a layer has no such operand. Aligned to 16 bytes.
struct Operands {
  CUdeviceptr x = 0, out = 0, residual = 0, half = 0;
};

// All layers of a folder. Errors are std::runtime_error and name the file or the driver's code.
// One call at a time: layers share scratch memory.
class Network {
 public:
  explicit Network(const std::string& folder);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  std::vector<std::string> layers() const;  // in order of execution
  const std::vector<TensorInfo>& tensors(const std::string& layer) const;
  void run(const std::string& layer, const Operands& operands, CUstream stream);

 private:
  struct Argument;
  struct Launch;
  struct Layer;
  struct Reader;

  const Layer& find(const std::string& layer) const;
  CUdeviceptr address(const Argument& argument, const Operands& operands) const;
  void release();

  std::vector<std::unique_ptr<Layer>> layers_;
  std::map<std::string, CUmodule> modules_;
  std::vector<CUdeviceptr> scratch_;
  CUdeviceptr constants_ = 0;
};

}  // namespace defakeq_aot

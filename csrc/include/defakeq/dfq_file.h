#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "defakeq/export.h"
#include "defakeq/layer.h"

namespace defakeq {

enum class TensorType : int32_t {
  kBool,
  kUint8,
  kInt8,
  kInt16,
  kUint16,
  kFloat16,
  kInt32,
  kUint32,
  kFloat32,
  kInt64,
  kUint64,
  kFloat64,
};

// A tensor of a file: row-major, little-endian, aligned to its element.
struct TensorView {
  TensorType dtype = TensorType::kUint8;
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;
  size_t nbytes = 0;
};

struct DfqLayer {
  std::string name;
  LayerSpec spec;  // validated; its pointers are into the file and into `derived`
  std::vector<std::shared_ptr<const std::vector<int32_t>>> derived;
};

// A file that has passed every check. Copies share the memory that the pointers are into.
struct DfqFile {
  std::map<std::string, std::string> metadata;       // "network" has the network's JSON
  std::map<std::string, TensorView> tensors;         // all of them, those of the layers too
  std::vector<DfqLayer> layers;                      // in the order of the file
  std::shared_ptr<const void> storage;               // null when the caller owns the bytes
  std::vector<std::shared_ptr<const void>> widened;  // tensors that the file has in fewer bits

  DEFAKEQ_API const DfqLayer* find_layer(const std::string& name) const;
};

// Maps the file into memory. Throws std::runtime_error that names the wrong field, what was found
// and what is accepted.
DEFAKEQ_API DfqFile read_dfq(const std::string& path);

// The same for bytes that outlive the result. Throws std::invalid_argument unless `data` is aligned
// to 8 bytes.
DEFAKEQ_API DfqFile parse_dfq(const void* data, size_t bytes);

}  // namespace defakeq

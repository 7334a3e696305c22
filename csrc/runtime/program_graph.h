// The program of a file after every check: values, nodes in execution order, ports.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "defakeq/dfq_file.h"
#include "defakeq/nodes.h"

namespace defakeq {

enum class Op : int32_t {
  kConv2d,
  kLinear,
  kSqueezeExcite,
  kLookup,
  kConvert,
  kUnary,
  kBinary,
  kLayerNorm,
  kSoftmax,
  kAttention,
  kMatmul,
  kPool2d,
  kAdaptiveAvgPool2d,
  kMeanRows,
  kReduce,
  kInterpolate,
  kCopy,
};

const char* op_name(Op op);

struct Value {
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  Quantization quantization;
  int64_t count = 0;                   // elements
  const TensorView* tensor = nullptr;  // of a constant
  const TensorView* index = nullptr;   // the tensor's columns that a constant is made of
  int base = -1;                       // of a view
  int64_t offset = 0;                  // of a view, in elements
  bool is_input = false;

  int64_t channels() const { return shape.back(); }
  int64_t rows() const { return count / shape.back(); }
  int64_t element_bytes() const { return dtype == DType::kFloat32 ? 4 : 1; }
  int64_t bytes() const { return count * element_bytes(); }
};

struct Port {
  std::string name;
  int value = -1;
  bool nchw = false;
};

// The members that a kind of node does not use keep their defaults.
struct Node {
  Op op = Op::kConv2d;
  std::string name;
  std::vector<int> in;  // -1: absent
  int out = -1;

  const DfqLayer* layer = nullptr;   // conv2d, linear, fc1 of squeeze_excite
  const DfqLayer* layer2 = nullptr;  // fc2
  int64_t hidden_channels = 0;       // between the two
  const TensorView* table = nullptr;
  const TensorView* table2 = nullptr;
  Quantization pool, hidden, gate;
  UnaryFn unary = UnaryFn::kIdentity;
  BinaryFn binary = BinaryFn::kAdd;
  Broadcast broadcast = Broadcast::kNone;
  Activation activation = Activation::kNone;
  ReduceFn reduce = ReduceFn::kMean;
  const TensorView* gamma = nullptr;
  const TensorView* beta = nullptr;
  const TensorView* rows = nullptr;
  const TensorView* index = nullptr;
  const TensorView* step = nullptr;  // of copy: what each repetition adds to the index
  int64_t repeats = 1;
  float eps = 0.0f;
  int64_t norm_count = 0;
  // Their operands and pointers are filled in when the node runs.
  AttentionArgs attention;
  MatmulArgs matmul;
  Pool2dArgs pool2d;
  InterpolateArgs interpolate;
  int64_t chunk = 0;
};

struct Graph {
  std::vector<Value> values;
  std::vector<Node> nodes;
  std::vector<Port> inputs, outputs;

  // The value that owns the memory of `value`, and the first element of `value` in it.
  int root(int value) const {
    const int base = values[static_cast<size_t>(value)].base;
    return base < 0 ? value : base;
  }
};

// Reads and checks the program of `file`, whose tensors and layers the result points to. Throws
// std::runtime_error naming the field or node.
Graph read_graph(const DfqFile& file);

// Refuses a graph in which a value is read before all of it was written, or written twice.
void check_flow(const Graph& graph);

}  // namespace defakeq

#include "runtime/program_steps.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "defakeq/layer.h"

namespace defakeq {

namespace {

constexpr size_t kAlign = 64;

size_t padded(int64_t bytes) { return (static_cast<size_t>(bytes) + kAlign - 1) / kAlign * kAlign; }

// The bytes that were planned for an operator.
class PlannedScratch final : public Scratch {
 public:
  PlannedScratch(char* data, size_t bytes) : data_(data), bytes_(bytes) {}
  void* get(size_t bytes) override {
    if (bytes > bytes_) {
      throw std::logic_error("scratch: found " + std::to_string(bytes) + " bytes; planned are " +
                             std::to_string(bytes_));
    }
    return data_;
  }

 private:
  char* data_;
  size_t bytes_;
};

class Caller {
 public:
  Caller(const Graph& graph, const Step& step, char* const* at)
      : graph_(graph), step_(step), node_(*step.node), at_(at) {}

  const Value& value(int v) const { return graph_.values[static_cast<size_t>(v)]; }
  const Value& x() const { return value(node_.in[0]); }
  const Value& y() const { return value(node_.out); }
  bool has(size_t i) const { return i < node_.in.size() && node_.in[i] >= 0; }

  Operand operand(size_t i) const {
    const Value& v = value(node_.in[i]);
    return {data(node_.in[i]), v.dtype, v.quantization};
  }
  Result result() const { return {data(node_.out), y().dtype, y().quantization}; }
  const float* floats(size_t i) const {
    return has(i) ? static_cast<const float*>(data(node_.in[i])) : nullptr;
  }

  OpArgs product() const {
    OpArgs args;
    args.blob = step_.blob.data;
    args.blob_bytes = step_.blob.bytes;
    args.x = data(node_.in[0]);
    args.x_dtype = x().dtype;
    args.out = data(node_.out);
    if (has(1)) {
      const Operand residual = operand(1);
      args.residual = residual.data;
      args.residual_dtype = residual.dtype;
      args.residual_quantization = residual.quantization;
    }
    args.half_input = floats(2);
    args.table = step_.table;
    return args;
  }

  OpArgs linear_part(const Blob& blob, const void* in, void* out) const {
    OpArgs args;
    args.blob = blob.data;
    args.blob_bytes = blob.bytes;
    args.x = in;
    args.x_dtype = DType::kInt8;
    args.out = out;
    return args;
  }

  LayerNormArgs layer_norm() const {
    LayerNormArgs args;
    args.x = operand(0);
    args.rows = y().rows();
    args.channels = x().channels();
    args.count = node_.norm_count;
    args.gamma = step_.gamma;
    args.beta = step_.beta;
    args.eps = node_.eps;
    args.row_index = step_.index;
    args.out = result();
    return args;
  }

  AttentionArgs attention() const {
    AttentionArgs args = node_.attention;
    args.q = operand(0);
    args.k = operand(1);
    args.v = operand(2);
    args.bias = floats(3);
    args.mask = floats(4);
    args.row_index = step_.index;
    args.out = result();
    return args;
  }

  MatmulArgs matmul() const {
    MatmulArgs args = node_.matmul;
    args.a = operand(0);
    args.b = operand(1);
    args.out = result();
    return args;
  }

 private:
  // No pointers are needed to plan.
  void* data(int v) const { return at_ == nullptr ? nullptr : at_[v]; }

  const Graph& graph_;
  const Step& step_;
  const Node& node_;
  char* const* at_;
};

void run_squeeze_excite(const Caller& call, const Step& step, Parallel& parallel) {
  const Node& node = *step.node;
  const Value& x = call.x();
  auto* pool = reinterpret_cast<int8_t*>(step.scratch);
  auto* hidden = reinterpret_cast<int8_t*>(step.scratch + step.hidden_at);
  auto* gate = reinterpret_cast<int8_t*>(step.scratch + step.gate_at);
  PlannedScratch scratch(step.scratch + step.inner_at, step.scratch_bytes - step.inner_at);
  mean_rows(call.operand(0), x.rows(), x.channels(), {pool, DType::kInt8, node.pool}, parallel);
  linear(call.linear_part(step.blob, pool, hidden), 1, x.channels(), parallel, scratch);
  const int64_t width = node.hidden_channels;
  if (step.table != nullptr) lookup(hidden, width, step.table, hidden, parallel);
  linear(call.linear_part(step.blob2, hidden, gate), 1, width, parallel, scratch);
  if (step.table2 != nullptr) lookup(gate, x.channels(), step.table2, gate, parallel);
  binary(BinaryFn::kMul, call.operand(0), {gate, DType::kInt8, node.gate}, Broadcast::kChannel,
         x.rows(), x.channels(), Activation::kNone, call.result(), parallel);
}

}  // namespace

std::string strategy_of(const Graph& graph, const Step& step) {
  const Caller call(graph, step, nullptr);
  const Value& x = call.x();
  if (step.node->op == Op::kConv2d &&
      conv2d_uses_winograd(call.product(), 1, x.shape[0], x.shape[1])) {
    return "winograd";
  }
  if (step.node->op == Op::kConv2d && conv2d_joins_pixels(call.product(), x.shape[1])) {
    return "joined-pixels";
  }
  return layer_info(step.blob.data, step.blob.bytes).strategy;
}

void plan_scratch(const Graph& graph, int threads, Step* step) {
  const Node& node = *step->node;
  const Caller call(graph, *step, nullptr);
  const Value& x = call.x();
  switch (node.op) {
    case Op::kConv2d: {
      OpArgs args = call.product();
      // only whether there is one matters
      if (call.has(1)) args.residual = step->blob.data;
      step->scratch_bytes = conv2d_scratch_bytes(args, 1, x.shape[0], x.shape[1], threads);
      break;
    }
    case Op::kLinear: {
      OpArgs args = call.product();
      if (call.has(1)) args.residual = step->blob.data;
      step->scratch_bytes = linear_scratch_bytes(args, x.rows(), x.channels(), threads);
      break;
    }
    case Op::kSqueezeExcite: {
      const int64_t width = node.hidden_channels;
      // linear reads whole steps past a vector's end
      step->hidden_at = padded(x.channels()) + kAlign;
      step->gate_at = step->hidden_at + padded(width) + kAlign;
      step->inner_at = step->gate_at + padded(x.channels()) + kAlign;
      const size_t first = linear_scratch_bytes(call.linear_part(step->blob, nullptr, nullptr), 1,
                                                x.channels(), threads);
      const size_t second =
          linear_scratch_bytes(call.linear_part(step->blob2, nullptr, nullptr), 1, width, threads);
      step->scratch_bytes = step->inner_at + std::max(first, second);
      break;
    }
    case Op::kAttention:
      step->scratch_bytes = attention_scratch_bytes(call.attention(), threads);
      break;
    case Op::kMatmul:
      step->scratch_bytes = matmul_scratch_bytes(call.matmul(), threads);
      break;
    default:
      step->scratch_bytes = 0;
  }
}

void run_step(const Graph& graph, const Step& step, char* const* at, Parallel& parallel) {
  const Node& node = *step.node;
  const Caller call(graph, step, at);
  const Value& x = call.x();
  PlannedScratch scratch(step.scratch, step.scratch_bytes);
  switch (node.op) {
    case Op::kConv2d:
      return conv2d(call.product(), 1, x.shape[0], x.shape[1], parallel, scratch);
    case Op::kLinear:
      return linear(call.product(), x.rows(), x.channels(), parallel, scratch);
    case Op::kSqueezeExcite:
      return run_squeeze_excite(call, step, parallel);
    case Op::kLookup:
      return lookup(static_cast<const int8_t*>(call.operand(0).data), x.count, step.table,
                    static_cast<int8_t*>(call.result().data), parallel);
    case Op::kConvert:
      return unary(UnaryFn::kIdentity, call.operand(0), x.count, call.result(), parallel);
    case Op::kUnary:
      return unary(node.unary, call.operand(0), x.count, call.result(), parallel);
    case Op::kBinary:
      return binary(node.binary, call.operand(0), call.operand(1), node.broadcast, x.rows(),
                    x.channels(), node.activation, call.result(), parallel);
    case Op::kLayerNorm:
      return layer_norm(call.layer_norm(), parallel);
    case Op::kSoftmax:
      return softmax(call.operand(0), x.rows(), x.channels(), call.result(), parallel);
    case Op::kAttention:
      return attention(call.attention(), step.scratch, parallel);
    case Op::kMatmul:
      return matmul(call.matmul(), step.scratch, parallel);
    case Op::kPool2d: {
      Pool2dArgs args = node.pool2d;
      args.x = call.operand(0);
      args.out = call.result();
      return pool2d(args, parallel);
    }
    case Op::kAdaptiveAvgPool2d:
      return adaptive_avg_pool2d(call.operand(0), x.shape[0], x.shape[1], x.channels(),
                                 call.y().shape[0], call.y().shape[1], call.result(), parallel);
    case Op::kMeanRows:
      return mean_rows(call.operand(0), x.rows(), x.channels(), call.result(), parallel);
    case Op::kReduce:
      return reduce(node.reduce, call.operand(0), x.rows(), x.channels(), call.result(), parallel);
    case Op::kInterpolate: {
      InterpolateArgs args = node.interpolate;
      args.x = call.operand(0);
      args.out = call.result();
      return interpolate(args, parallel);
    }
    case Op::kCopy: {
      for (size_t i = 0; i < node.in.size(); ++i) step.inputs[i] = call.operand(i).data;
      const int64_t chunk_bytes = node.chunk * x.element_bytes();
      const uint8_t fill =
          x.dtype == DType::kInt8 ? static_cast<uint8_t>(x.quantization.zero_point) : 0;
      void* out = call.result().data;
      if (!step.moves.empty()) {
        return move_chunks({step.inputs.data(), step.moves.data(),
                            static_cast<int64_t>(step.moves.size()), chunk_bytes, fill, out},
                           parallel);
      }
      CopyArgs args;
      args.inputs = step.inputs.data();
      args.input_chunks = step.input_chunks.data();
      args.input_count = static_cast<int64_t>(step.inputs.size());
      args.index = step.index;
      args.count = step.index_count;
      args.chunk_bytes = chunk_bytes;
      args.fill = fill;
      args.out = out;
      return copy_chunks(args, parallel);
    }
  }
}

int64_t macs_of(const Graph& graph, const Step& step, int64_t* skipped) {
  const Node& node = *step.node;
  const Value& out = graph.values[static_cast<size_t>(node.out)];
  int64_t done = 0;
  const auto add = [&](const Blob& blob, int64_t positions) {
    const LayerInfo info = layer_info(blob.data, blob.bytes);
    done += info.macs_done_per_position * positions;
    *skipped += info.macs_skipped_per_position * positions;
  };
  switch (node.op) {
    case Op::kConv2d:
    case Op::kLinear:
      add(step.blob, out.rows());
      break;
    case Op::kSqueezeExcite:
      add(step.blob, 1);
      add(step.blob2, 1);
      break;
    case Op::kAttention: {
      const AttentionArgs& a = node.attention;
      done = a.batches * a.heads * a.q_tokens * (a.head_dim + a.value_dim) * a.k_tokens;
      break;
    }
    case Op::kMatmul:
      done = node.matmul.batches * node.matmul.m * node.matmul.n * node.matmul.k;
      break;
    default:
      break;
  }
  return done;
}

}  // namespace defakeq

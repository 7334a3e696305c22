#include "runtime/node_reader.h"

#include <algorithm>
#include <utility>

#include "defakeq/ops.h"
#include "runtime/node_fields.h"
#include "runtime/tensor_type.h"

namespace defakeq {

namespace {

using fields::bad;
using fields::integer;
using fields::shown;

constexpr int64_t kMaxInt32 = INT32_MAX;
constexpr int64_t kMaxKernel = 4096;

constexpr const char* kUnaries[] = {
    "identity", "relu", "relu6", "hardswish", "silu", "gelu", "sigmoid", "tanh",      "hardsigmoid",
    "exp",      "log",  "sqrt",  "rsqrt",     "abs",  "neg",  "square",  "reciprocal"};
constexpr const char* kBinaries[] = {"add", "sub", "mul", "div", "max", "min"};
constexpr const char* kActivations[] = {"none", "relu", "relu6",  "hardswish",
                                        "silu", "gelu", "sigmoid"};
constexpr const char* kReduces[] = {"mean", "sum", "max", "l2"};
constexpr const char* kPoolModes[] = {"max", "avg"};
constexpr const char* kInterpolations[] = {"nearest", "bilinear"};

class NodeReader : NodeFields {
 public:
  NodeReader(const DfqFile& file, const std::vector<Value>& values, const Json& json, size_t index)
      : NodeFields(file, values, json, index) {}

  Node read() {
    read_kind();
    return std::move(node_);
  }

 private:
  void read_kind() {
    switch (node_.op) {
      case Op::kConv2d:
      case Op::kLinear:
        return read_product();
      case Op::kSqueezeExcite:
        return read_squeeze_excite();
      case Op::kLookup:
        expect_inputs(1, 1);
        expect_dtype("in", in(0), DType::kInt8);
        expect_dtype("out", out(), DType::kInt8);
        expect_count("out", out(), in(0).count);
        node_.table = table("table", true);
        return check_table("table", node_.table, out().quantization);
      case Op::kConvert:
        expect_inputs(1, 1);
        return expect_count("out", out(), in(0).count);
      case Op::kUnary:
        expect_inputs(1, 1);
        node_.unary = fields::one_of<UnaryFn>(field("fn"), find("fn"), kUnaries);
        return expect_count("out", out(), in(0).count);
      case Op::kBinary:
        return read_binary();
      case Op::kLayerNorm:
        return read_layer_norm();
      case Op::kSoftmax:
        expect_inputs(1, 1);
        return expect_matrix("out", out(), in(0).rows(), in(0).channels());
      case Op::kAttention:
        return read_attention();
      case Op::kMatmul:
        return read_matmul();
      case Op::kPool2d:
        return read_pool2d();
      case Op::kAdaptiveAvgPool2d:
        return read_adaptive();
      case Op::kMeanRows:
        expect_inputs(1, 1);
        if (in(0).dtype == DType::kInt8) expect_sum("in", in(0).rows(), reach(in(0).quantization));
        return expect_matrix("out", out(), 1, in(0).channels());
      case Op::kReduce:
        expect_inputs(1, 1);
        node_.reduce = fields::one_of<ReduceFn>(field("fn"), find("fn"), kReduces);
        return expect_count("out", out(), in(0).rows());
      case Op::kInterpolate:
        return read_interpolate();
      case Op::kCopy:
        return read_copy();
    }
  }

  void check_act(const char* what, const LayerSpec& spec, const Value& x) const {
    if (x.dtype != DType::kInt8) return;
    if (spec.act_mode != ActMode::kStatic) {
      bad(field(what), described(x), "float32 (the layer is not statically quantized)");
    }
    expect_quantization(what, x, spec.act);
  }

  // What the layer's own output must be for `out`, which a table may have remapped.
  void check_result(const char* what, const LayerSpec& spec, const TensorView* remap,
                    const Quantization* out_q) const {
    if (remap == nullptr) {
      if (spec.out_dtype == DType::kInt8 ? out_q == nullptr || !same(*out_q, spec.out)
                                         : out_q != nullptr) {
        bad(field(what), out_q == nullptr ? "float32" : shown(*out_q),
            spec.out_dtype == DType::kInt8 ? shown(spec.out) : "float32, as the layer's output");
      }
      return;
    }
    if (spec.out_dtype != DType::kInt8 || spec.activation != Activation::kNone ||
        out_q == nullptr) {
      bad(field("table"), "a table after a float output or an activation",
          "a table after an int8 output without activation");
    }
    check_table("table", remap, *out_q);
  }

  void read_product() {
    expect_inputs(1, 3);
    const bool conv = node_.op == Op::kConv2d;
    node_.layer = layer("layer", conv ? LayerKind::kConv2d : LayerKind::kLinear);
    const LayerSpec& spec = node_.layer->spec;
    const Value& x = in(0);
    if (conv) expect_image("in", x);
    expect_matrix("in", x, x.rows(), spec.in_channels);
    check_act("in", spec, x);
    node_.table = table("table", false);
    check_result("out", spec, node_.table,
                 out().dtype == DType::kInt8 ? &out().quantization : nullptr);
    if (conv) {
      int64_t size[2];
      for (int d = 0; d < 2; ++d) {
        size[d] = conv_out_size(x.shape[static_cast<size_t>(d)], spec.kernel[d], spec.stride[d],
                                spec.padding[d], spec.dilation[d]);
        if (size[d] < 1) bad(field("in"), described(x), "an image that the kernel fits into");
      }
      expect_shape("out", out(), {size[0], size[1], spec.out_channels});
    } else {
      expect_matrix("out", out(), x.rows(), spec.out_channels);
    }
    if (has(1)) expect_matrix("residual", in(1), out().rows(), out().channels());
    if (has(2)) {
      expect_dtype("half", in(2), DType::kFloat32);
      if (spec.half_in_count == 0) {
        bad(field("half"), described(in(2)), "none (the layer has no half-precision inputs)");
      }
      expect_matrix("half", in(2), x.rows(), spec.half_in_count);
    } else if (spec.half_in_count > 0 && x.dtype == DType::kInt8) {
      bad(field("half"), "nothing",
          "the float32 values of the layer's " + std::to_string(spec.half_in_count) +
              " half-precision inputs, since x is int8");
    }
  }

  void read_squeeze_excite() {
    expect_inputs(1, 1);
    const Value& x = in(0);
    expect_dtype("in", x, DType::kInt8);
    expect_dtype("out", out(), DType::kInt8);
    expect_matrix("out", out(), x.rows(), x.channels());
    expect_sum("in", x.rows(), reach(x.quantization));
    const auto stage = [&](const char* key) {
      const Json* json = find(key);
      fields::object(field(key), json);
      return fields::quantization(field(key), *json);
    };
    node_.pool = stage("pool");
    node_.hidden = stage("hidden");
    node_.gate = stage("gate");
    node_.layer = layer("fc1", LayerKind::kLinear);
    node_.layer2 = layer("fc2", LayerKind::kLinear);
    node_.hidden_channels = node_.layer->spec.out_channels;
    node_.table = table("table1", false);
    node_.table2 = table("table2", false);
    const auto check = [&](const char* key, const LayerSpec& spec, int64_t inputs,
                           const Quantization& act) {
      if (spec.in_channels != inputs || spec.half_in_count != 0 ||
          spec.act_mode != ActMode::kStatic || !same(spec.act, act)) {
        bad(field(key), "a layer of other inputs",
            std::to_string(inputs) + " static inputs, " + shown(act) + ", none in half precision");
      }
    };
    check("fc1", node_.layer->spec, x.channels(), node_.pool);
    check("fc2", node_.layer2->spec, node_.layer->spec.out_channels, node_.hidden);
    if (node_.layer2->spec.out_channels != x.channels()) {
      bad(field("fc2"), std::to_string(node_.layer2->spec.out_channels) + " outputs",
          std::to_string(x.channels()) + " outputs");
    }
    check_result("hidden", node_.layer->spec, node_.table, &node_.hidden);
    check_result("gate", node_.layer2->spec, node_.table2, &node_.gate);
  }

  void read_binary() {
    expect_inputs(2, 2);
    node_.binary = fields::one_of<BinaryFn>(field("fn"), find("fn"), kBinaries);
    if (find("activation") != nullptr) {
      node_.activation =
          fields::one_of<Activation>(field("activation"), find("activation"), kActivations);
    }
    const Value &a = in(0), &b = in(1);
    expect_matrix("out", out(), a.rows(), a.channels());
    std::vector<int64_t> row = a.shape;
    row.back() = 1;
    if (b.shape == a.shape) {
      node_.broadcast = Broadcast::kNone;
    } else if (b.count == 1) {
      node_.broadcast = Broadcast::kScalar;
    } else if (b.count == a.channels() && b.channels() == a.channels()) {
      node_.broadcast = Broadcast::kChannel;
    } else if (b.shape == row) {
      node_.broadcast = Broadcast::kRow;
    } else {
      bad(field("in"), fields::shown(b.shape) + " beside " + fields::shown(a.shape),
          "a second operand of the first's shape, [channels], [1], or with a last dimension of 1");
    }
  }

  void read_layer_norm() {
    expect_inputs(1, 1);
    const Value& x = in(0);
    const int64_t channels = x.channels();
    node_.gamma = floats("gamma", channels);
    node_.beta = floats("beta", channels);
    node_.eps = fields::number(field("eps"), find("eps"));
    if (!(node_.eps >= 0.0f)) bad(field("eps"), shown(find("eps")), "0 or more");
    node_.norm_count =
        find("count") == nullptr ? channels : integer_of("count", channels, kMaxElements);
    if (find("rows") != nullptr) node_.rows = indices("rows", -1, x.rows() - 1);
    expect_matrix("out", out(), node_.rows != nullptr ? node_.rows->shape[0] : x.rows(), channels);
  }

  // Refuses strides with which [0, sizes) leaves the value.
  void expect_within(const char* what, const Value& v, int64_t offset, const int64_t* strides,
                     const int64_t* sizes, int dims) const {
    // Strides are at most 2^31 and sizes 2^24.
    int64_t last = offset;
    for (int d = 0; d < dims; ++d) last += strides[d] * (sizes[d] - 1);
    if (last >= v.count) {
      bad(field(what), "strides up to element " + std::to_string(last),
          "elements of the value, 0 to " + std::to_string(v.count - 1));
    }
  }

  int64_t stride(const char* what, const Json& json, const char* key) const {
    return integer(field(what) + "." + key, json.find(key), 0, kMaxElements);
  }

  HeadLayout head_layout(const char* what, const Value& v, int64_t tokens, int64_t dim) const {
    const Json* json = find(what);
    fields::object(field(what), json);
    const HeadLayout layout{stride(what, *json, "offset"), stride(what, *json, "batch"),
                            stride(what, *json, "token"), stride(what, *json, "head")};
    const int64_t strides[] = {layout.batch, layout.token, layout.head, 1};
    const int64_t sizes[] = {node_.attention.batches, tokens, node_.attention.heads, dim};
    expect_within(what, v, layout.offset, strides, sizes, 4);
    return layout;
  }

  void read_attention() {
    expect_inputs(3, 5);
    AttentionArgs& a = node_.attention;
    a.batches = integer_of("batches", 1, kMaxSize);
    a.q_tokens = integer_of("q_tokens", 1, kMaxSize);
    a.k_tokens = integer_of("k_tokens", 1, kMaxSize);
    a.heads = integer_of("heads", 1, kMaxSize);
    a.head_dim = integer_of("head_dim", 1, kMaxSize);
    a.value_dim = find("value_dim") == nullptr ? a.head_dim : integer_of("value_dim", 1, kMaxSize);
    a.alpha = fields::number(field("alpha"), find("alpha"));
    for (size_t i = 0; i < 3; ++i) expect_dtype("in", in(i), DType::kInt8);
    a.q_layout = head_layout("q", in(0), a.q_tokens, a.head_dim);
    a.k_layout = head_layout("k", in(1), a.k_tokens, a.head_dim);
    a.v_layout = head_layout("v", in(2), a.k_tokens, a.value_dim);
    expect_sum("head_dim", a.head_dim, reach(in(0).quantization) * reach(in(1).quantization));
    expect_sum("k_tokens", a.k_tokens, 255 * reach(in(2).quantization));
    // One of the three is at most 2^31, so their product with a size of 2^24 fits.
    if (a.batches * a.q_tokens > kMaxElements) {
      bad(field("batches"), std::to_string(a.batches), "at most 2^31 rows");
    }
    expect_matrix("out", out(), a.batches * a.q_tokens, a.heads * a.value_dim);
    if (has(3)) {
      expect_dtype("bias", in(3), DType::kFloat32);
      expect_shape("bias", in(3), {a.heads, a.q_tokens, a.k_tokens});
    }
    if (has(4)) {
      expect_dtype("mask", in(4), DType::kFloat32);
      a.masks = in(4).shape[0];
      expect_shape("mask", in(4), {a.masks, a.q_tokens, a.k_tokens});
      if (a.batches % a.masks != 0) {
        bad(field("mask"), std::to_string(a.masks) + " masks",
            "a divisor of the " + std::to_string(a.batches) + " batches");
      }
    }
    if (find("rows") != nullptr) {
      const int64_t rows = a.batches * a.q_tokens;
      node_.rows = indices("rows", 0, rows - 1);
      std::vector<bool> seen(static_cast<size_t>(rows));
      const auto* row = reinterpret_cast<const int32_t*>(node_.rows->data);
      bool all = node_.rows->shape[0] == rows;
      for (int64_t i = 0; all && i < rows; ++i) {
        all = !seen[static_cast<size_t>(row[i])];
        seen[static_cast<size_t>(row[i])] = true;
      }
      if (!all) bad(field("rows"), "rows that are missing or written twice", "every row once");
    }
  }

  MatrixLayout matrix_layout(const char* what, const Value& v, int64_t rows, int64_t cols) const {
    const Json* json = find(what);
    fields::object(field(what), json);
    MatrixLayout layout{stride(what, *json, "offset"), stride(what, *json, "batch"),
                        stride(what, *json, "row"), 1};
    if (json->find("col") != nullptr) layout.col = stride(what, *json, "col");
    const int64_t strides[] = {layout.batch, layout.row, layout.col};
    const int64_t sizes[] = {node_.matmul.batches, rows, cols};
    expect_within(what, v, layout.offset, strides, sizes, 3);
    return layout;
  }

  void read_matmul() {
    expect_inputs(2, 2);
    MatmulArgs& a = node_.matmul;
    a.batches = integer_of("batches", 1, kMaxSize);
    a.m = integer_of("m", 1, kMaxSize);
    a.n = integer_of("n", 1, kMaxSize);
    a.k = integer_of("k", 1, kMaxSize);
    a.alpha = fields::number(field("alpha"), find("alpha"));
    expect_dtype("in", in(0), DType::kInt8);
    expect_dtype("in", in(1), DType::kInt8);
    a.a_layout = matrix_layout("a", in(0), a.m, a.k);
    a.b_layout = matrix_layout("b", in(1), a.k, a.n);
    if (a.a_layout.col != 1) {
      bad(field("a.col"), std::to_string(a.a_layout.col), "1");
    }
    if (a.b_layout.row != 1 && a.b_layout.col != 1) {
      bad(field("b"),
          "strides " + std::to_string(a.b_layout.row) + " and " + std::to_string(a.b_layout.col),
          "a row or column stride of 1");
    }
    expect_sum("k", a.k, reach(in(0).quantization) * reach(in(1).quantization));
    if (a.batches * a.m > kMaxElements) {
      bad(field("batches"), std::to_string(a.batches), "at most 2^31 rows");
    }
    expect_matrix("out", out(), a.batches * a.m, a.n);
  }

  void read_pool2d() {
    expect_inputs(1, 1);
    const Value& x = in(0);
    expect_image("in", x);
    Pool2dArgs& a = node_.pool2d;
    a.mode = fields::one_of<PoolMode>(field("mode"), find("mode"), kPoolModes);
    pair("kernel", 1, kMaxKernel, a.kernel);
    pair("stride", 1, kMaxKernel, a.stride);
    if (find("padding") != nullptr) pair("padding", 0, kMaxKernel, a.padding);
    a.ceil_mode = flag("ceil_mode", false);
    a.count_include_pad = flag("count_include_pad", true);
    a.h = x.shape[0];
    a.w = x.shape[1];
    a.channels = x.channels();
    int64_t size[2];
    for (int d = 0; d < 2; ++d) {
      if (a.padding[d] > a.kernel[d] / 2) {
        bad(field("padding"), std::to_string(a.padding[d]), "at most half of the kernel");
      }
      size[d] = x.shape[static_cast<size_t>(d)] + 2 * a.padding[d] < a.kernel[d]
                    ? 0
                    : pool_out_size(x.shape[static_cast<size_t>(d)], a.kernel[d], a.stride[d],
                                    a.padding[d], a.ceil_mode);
      if (size[d] < 1) bad(field("in"), described(x), "an image that the kernel fits into");
    }
    expect_shape("out", out(), {size[0], size[1], a.channels});
    if (a.mode == PoolMode::kAvg) {
      if (x.dtype == DType::kInt8) {
        expect_sum("kernel", int64_t{a.kernel[0]} * a.kernel[1], reach(x.quantization));
      }
    } else if (x.dtype == DType::kInt8) {
      expect_quantization("out", out(), x.quantization);
    } else {
      expect_dtype("out", out(), DType::kFloat32);
    }
  }

  void read_adaptive() {
    expect_inputs(1, 1);
    const Value& x = in(0);
    expect_image("in", x);
    int64_t size[2];
    read_size(size);
    expect_shape("out", out(), {size[0], size[1], x.channels()});
    if (x.dtype == DType::kInt8) {
      expect_sum("in", x.shape[0] * x.shape[1], reach(x.quantization));
    }
  }

  void read_interpolate() {
    expect_inputs(1, 1);
    const Value& x = in(0);
    expect_image("in", x);
    InterpolateArgs& a = node_.interpolate;
    a.h = x.shape[0];
    a.w = x.shape[1];
    a.channels = x.channels();
    int64_t size[2];
    read_size(size);
    a.out_h = size[0];
    a.out_w = size[1];
    a.bilinear = fields::name_of(field("mode"), find("mode"), kInterpolations, 2) == 1;
    a.align_corners = flag("align_corners", false);
    const Json::Array& scale = fields::list(field("scale"), find("scale"), 2, 2);
    for (size_t d = 0; d < 2; ++d) {
      double value = 0;
      // torch's ratio is 0 when corners are aligned and there is one pixel
      if (!scale[d].number(&value) || !(value >= 0 && value <= static_cast<double>(kMaxSize))) {
        bad(field("scale"), scale[d].shown(), "0 to 2^24");
      }
      a.scale[d] = value;
    }
    expect_shape("out", out(), {a.out_h, a.out_w, a.channels});
  }

  void read_copy() {
    expect_inputs(node_.in.size(), kMaxInputs);
    node_.chunk = integer_of("chunk", 1, kMaxElements);
    int64_t chunks = 0;
    for (size_t i = 0; i < node_.in.size(); ++i) {
      const Value& x = in(i);
      if (x.count % node_.chunk != 0) {
        bad(field("chunk"), std::to_string(node_.chunk),
            "a divisor of the " + std::to_string(x.count) + " elements of each input");
      }
      chunks += x.count / node_.chunk;
      expect_dtype("in", x, out().dtype);
      if (x.dtype == DType::kInt8) expect_quantization("in", x, out().quantization);
    }
    if (chunks > kMaxInt32) bad(field("chunk"), std::to_string(node_.chunk), "a larger chunk");
    node_.index = indices("index", -1, chunks - 1);
    const int64_t period = node_.index->shape[0];
    if (find("step") != nullptr) {
      node_.repeats = integer_of("repeats", 1, kMaxElements);
      read_step(chunks - 1);
    }
    if (period > kMaxElements / node_.chunk ||
        node_.repeats > kMaxElements / node_.chunk / period) {
      bad(field("index"), shown(*node_.index), "at most 2^31 elements");
    }
    expect_count("out", out(), period * node_.repeats * node_.chunk);
  }

  // Between the first repetition and the last an index moves evenly: those two are checked.
  void read_step(int64_t high) {
    node_.step = indices("step", INT32_MIN, INT32_MAX);
    if (node_.step->shape != node_.index->shape) {
      bad(field("step"), shown(*node_.step), "I32 with the shape of index");
    }
    const auto* index = reinterpret_cast<const int32_t*>(node_.index->data);
    const auto* step = reinterpret_cast<const int32_t*>(node_.step->data);
    for (int64_t i = 0; i < node_.index->shape[0]; ++i) {
      const int64_t last = index[i] + (node_.repeats - 1) * step[i];
      if (last < -1 || last > high) {
        bad(field("step"), std::to_string(last) + " at the last repetition",
            "indices from -1 to " + std::to_string(high));
      }
    }
  }
};

}  // namespace

Node read_node(const DfqFile& file, const std::vector<Value>& values, const Json& json,
               size_t index) {
  return NodeReader(file, values, json, index).read();
}

}  // namespace defakeq

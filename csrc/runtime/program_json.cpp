#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

#include "defakeq/ops.h"
#include "runtime/fields.h"
#include "runtime/program_graph.h"

namespace defakeq {

namespace {

using fields::bad;
using fields::integer;
using fields::shown;

constexpr int64_t kMaxCount = 32768;  // values, nodes
constexpr int64_t kMaxElements = int64_t{1} << 31;
constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr int64_t kMaxInt32 = INT32_MAX;
constexpr size_t kMaxPorts = 256;
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxInputs = 1024;
constexpr int64_t kMaxKernel = 4096;

constexpr const char* kOps[] = {
    "conv2d",      "linear", "squeeze_excite",      "lookup",    "convert",
    "unary",       "binary", "layer_norm",          "softmax",   "attention",
    "matmul",      "pool2d", "adaptive_avg_pool2d", "mean_rows", "reduce",
    "interpolate", "copy"};
constexpr const char* kDTypes[] = {"float32", "int8"};
constexpr const char* kLayouts[] = {"plain", "nchw"};
constexpr const char* kUnaries[] = {
    "identity", "relu", "relu6", "hardswish", "silu", "gelu", "sigmoid", "tanh",      "hardsigmoid",
    "exp",      "log",  "sqrt",  "rsqrt",     "abs",  "neg",  "square",  "reciprocal"};
constexpr const char* kBinaries[] = {"add", "sub", "mul", "div", "max", "min"};
constexpr const char* kActivations[] = {"none", "relu", "relu6",  "hardswish",
                                        "silu", "gelu", "sigmoid"};
constexpr const char* kReduces[] = {"mean", "sum", "max", "l2"};
constexpr const char* kPoolModes[] = {"max", "avg"};
constexpr const char* kInterpolations[] = {"nearest", "bilinear"};

bool same(const Quantization& a, const Quantization& b) {
  return a.scale == b.scale && a.zero_point == b.zero_point && a.bits == b.bits;
}

std::string shown(const Quantization& q) {
  return "int8 of scale " + std::to_string(q.scale) + ", zero point " +
         std::to_string(q.zero_point) + ", " + std::to_string(q.bits) + " bits";
}

// The largest |q - zero_point|.
int64_t reach(const Quantization& q) {
  const int64_t half = int64_t{1} << (q.bits - 1);
  return std::max<int64_t>(half - 1 - q.zero_point, half + q.zero_point);
}

const char* type_name(TensorType type) {
  static constexpr const char* kNames[] = {"BOOL", "U8",  "I8",  "I16", "U16", "F16",
                                           "I32",  "U32", "F32", "I64", "U64", "F64"};
  return kNames[static_cast<size_t>(type)];
}

std::string shown(const TensorView& view) {
  return std::string(type_name(view.dtype)) + " with shape " + fields::shown(view.shape);
}

const TensorView* find_tensor(const DfqFile& file, const std::string& field, const Json* json,
                              TensorType type, const std::string& accepted) {
  const auto it = file.tensors.find(fields::text(field, json));
  if (it == file.tensors.end()) bad(field, "no tensor " + shown(json), "the name of a tensor");
  if (it->second.dtype != type) bad(field, shown(it->second), accepted);
  return &it->second;
}

void require_finite(const std::string& field, const TensorView& view) {
  const auto* values = reinterpret_cast<const float*>(view.data);
  if (!std::all_of(values, values + view.nbytes / 4, [](float v) { return std::isfinite(v); })) {
    bad(field, "a value that is not finite", "finite values");
  }
}

std::vector<int64_t> read_shape(const std::string& field, const Json* json) {
  std::vector<int64_t> shape;
  int64_t count = 1;
  for (const Json& size : fields::list(field, json, 1, kMaxRank)) {
    shape.push_back(integer(field, &size, 1, kMaxElements));
    if (shape.back() > kMaxElements / count) {
      bad(field, shown(json), "at most 2^31 elements");
    }
    count *= shape.back();
  }
  return shape;
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

Value read_value(const DfqFile& file, const std::string& at, const Json& json, int64_t values) {
  fields::object(at, &json);
  Value value;
  value.dtype = fields::one_of<DType>(at + ".dtype", json.find("dtype"), kDTypes);
  value.shape = read_shape(at + ".shape", json.find("shape"));
  value.count = product(value.shape);
  if (value.dtype == DType::kInt8) value.quantization = fields::quantization(at, json);
  if (const Json* base = json.find("base")) {
    value.base = static_cast<int>(integer(at + ".base", base, 0, values - 1));
    value.offset = integer(at + ".offset", json.find("offset"), 0, kMaxElements);
  }
  if (const Json* name = json.find("tensor")) {
    const std::string field = at + ".tensor";
    if (value.base >= 0) bad(field, name->shown(), "no tensor for a view");
    const bool is_float = value.dtype == DType::kFloat32;
    const std::string accepted =
        (is_float ? "F32 with shape " : "I8 with shape ") + fields::shown(value.shape);
    value.tensor = find_tensor(file, field, name,
                               is_float ? TensorType::kFloat32 : TensorType::kInt8, accepted);
    if (value.tensor->shape != value.shape) bad(field, shown(*value.tensor), accepted);
    if (is_float) require_finite(field, *value.tensor);
  }
  return value;
}

void check_view(const std::string& at, const std::vector<Value>& values, const Value& view) {
  const Value& base = values[static_cast<size_t>(view.base)];
  if (base.base >= 0 || base.tensor != nullptr) {
    bad(at + ".base", std::to_string(view.base), "a value that is no view and no constant");
  }
  if (base.dtype != view.dtype ||
      (view.dtype == DType::kInt8 && !same(base.quantization, view.quantization))) {
    bad(at + ".base", "another type or quantization", "those of the view");
  }
  if (view.offset > base.count - view.count) {
    bad(at + ".offset", std::to_string(view.offset),
        "an offset that leaves " + std::to_string(view.count) + " of the base's " +
            std::to_string(base.count) + " elements");
  }
}

// One node --------------------------------------------------------------------------------------

class NodeReader {
 public:
  NodeReader(const DfqFile& file, const std::vector<Value>& values, const Json& json, size_t index)
      : file_(file), values_(values), json_(json), at_("nodes[" + std::to_string(index) + "]") {}

  Node read() {
    fields::object(at_, &json_);
    node_.name = fields::text(at_ + ".name", json_.find("name"));
    at_ = "node " + shown_string(node_.name);
    node_.op = fields::one_of<Op>(field("op"), json_.find("op"), kOps);
    at_ += std::string(" (") + op_name(node_.op) + ")";
    const auto last = static_cast<int64_t>(values_.size()) - 1;
    for (const Json& v : fields::list(field("in"), json_.find("in"), 1, kMaxInputs)) {
      node_.in.push_back(static_cast<int>(integer(field("in"), &v, -1, last)));
    }
    const Json& out = fields::list(field("out"), json_.find("out"), 1, 1)[0];
    node_.out = static_cast<int>(integer(field("out"), &out, 0, last));
    if (this->out().tensor != nullptr) {
      bad(field("out"), "a constant", "a value that is computed");
    }
    read_kind();
    return std::move(node_);
  }

 private:
  std::string field(const char* key) const { return at_ + " " + key; }
  const Json* find(const char* key) const { return json_.find(key); }
  int64_t integer_of(const char* key, int64_t low, int64_t high) const {
    return integer(field(key), find(key), low, high);
  }

  const Value& value(int v) const { return values_[static_cast<size_t>(v)]; }
  const Value& out() const { return value(node_.out); }
  bool has(size_t i) const { return i < node_.in.size() && node_.in[i] >= 0; }
  const Value& in(size_t i) const { return value(node_.in[i]); }

  // At most `most` inputs, of which the first `least` are there.
  void expect_inputs(size_t least, size_t most) const {
    bool all = node_.in.size() <= most;
    for (size_t i = 0; i < least; ++i) all = all && has(i);
    if (!all) {
      bad(field("in"), shown(find("in")),
          std::to_string(least) + " values" +
              (most > least ? ", up to " + std::to_string(most) + " with optional ones" : ""));
    }
  }

  static std::string described(const Value& v) {
    return (v.dtype == DType::kInt8 ? shown(v.quantization) : std::string("float32")) +
           " with shape " + fields::shown(v.shape);
  }

  void expect_dtype(const char* what, const Value& v, DType dtype) const {
    if (v.dtype != dtype) {
      bad(field(what), described(v),
          std::string("a value of type ") + kDTypes[static_cast<int>(dtype)]);
    }
  }

  void expect_quantization(const char* what, const Value& v, const Quantization& q) const {
    if (v.dtype != DType::kInt8 || !same(v.quantization, q)) {
      bad(field(what), described(v), shown(q));
    }
  }

  void expect_matrix(const char* what, const Value& v, int64_t rows, int64_t channels) const {
    if (v.channels() != channels || v.rows() != rows) {
      bad(field(what), described(v),
          std::to_string(rows) + " rows of " + std::to_string(channels) + " channels");
    }
  }

  void expect_shape(const char* what, const Value& v, const std::vector<int64_t>& shape) const {
    if (v.shape != shape) bad(field(what), described(v), "shape " + fields::shown(shape));
  }

  void expect_count(const char* what, const Value& v, int64_t count) const {
    if (v.count != count) {
      bad(field(what), described(v), std::to_string(count) + " elements");
    }
  }

  void expect_image(const char* what, const Value& v) const {
    if (v.shape.size() != 3) bad(field(what), described(v), "shape [h, w, channels]");
  }

  void expect_sum(const char* what, int64_t terms, int64_t largest) const {
    if (terms > kMaxInt32 / std::max<int64_t>(largest, 1)) {
      bad(field(what), "a sum of " + std::to_string(terms) + " terms",
          "at most " + std::to_string(kMaxInt32 / largest) + " for int32");
    }
  }

  const TensorView* table(const char* key, bool required) const {
    if (find(key) == nullptr && !required) return nullptr;
    const TensorView* view =
        find_tensor(file_, field(key), find(key), TensorType::kInt8, "I8 with shape [256]");
    if (view->shape != std::vector<int64_t>{256}) {
      bad(field(key), shown(*view), "I8 with shape [256]");
    }
    return view;
  }

  // Table entries have to be levels of what they make.
  void check_table(const char* key, const TensorView* view, const Quantization& q) const {
    if (view == nullptr) return;
    const int half = 1 << (q.bits - 1);
    const auto* entries = reinterpret_cast<const int8_t*>(view->data);
    for (int i = 0; i < 256; ++i) {
      if (entries[i] < -half || entries[i] >= half) {
        bad(field(key), std::to_string(entries[i]),
            "levels of " + std::to_string(q.bits) + " bits");
      }
    }
  }

  const TensorView* floats(const char* key, int64_t count) const {
    if (find(key) == nullptr) return nullptr;
    const std::string accepted = "F32 with shape [" + std::to_string(count) + "]";
    const TensorView* view =
        find_tensor(file_, field(key), find(key), TensorType::kFloat32, accepted);
    if (view->shape != std::vector<int64_t>{count}) bad(field(key), shown(*view), accepted);
    require_finite(field(key), *view);
    return view;
  }

  // An int32 tensor with entries from `low` to `high`.
  const TensorView* indices(const char* key, int64_t low, int64_t high) const {
    const TensorView* view = find_tensor(file_, field(key), find(key), TensorType::kInt32, "I32");
    if (view->shape.size() != 1 || view->shape[0] < 1) {
      bad(field(key), shown(*view), "I32 with shape [count]");
    }
    const auto* index = reinterpret_cast<const int32_t*>(view->data);
    for (int64_t i = 0; i < view->shape[0]; ++i) {
      if (index[i] < low || index[i] > high) {
        bad(field(key), std::to_string(index[i]),
            "indices from " + std::to_string(low) + " to " + std::to_string(high));
      }
    }
    return view;
  }

  const DfqLayer* layer(const char* key, LayerKind kind) const {
    const std::string& name = fields::text(field(key), find(key));
    const DfqLayer* found = file_.find_layer(name);
    if (found == nullptr) bad(field(key), "no layer " + shown_string(name), "the name of a layer");
    if (found->spec.kind != kind) {
      bad(field(key), "a layer of another kind",
          kind == LayerKind::kLinear ? "a linear layer" : "a conv2d layer");
    }
    return found;
  }

  void pair(const char* key, int64_t low, int64_t high, int32_t (&to)[2]) const {
    const Json* json = find(key);
    if (json != nullptr && json->integer() != nullptr) {
      to[0] = to[1] = static_cast<int32_t>(integer(field(key), json, low, high));
      return;
    }
    const Json::Array& items = fields::list(field(key), json, 2, 2);
    for (size_t d = 0; d < 2; ++d) {
      to[d] = static_cast<int32_t>(integer(field(key), &items[d], low, high));
    }
  }

  bool flag(const char* key, bool fallback) const {
    return find(key) == nullptr ? fallback : fields::boolean(field(key), find(key));
  }

  // The sizes of `out`, [h, w].
  void read_size(int64_t (&to)[2]) const {
    const Json::Array& size = fields::list(field("size"), find("size"), 2, 2);
    for (size_t d = 0; d < 2; ++d) to[d] = integer(field("size"), &size[d], 1, kMaxSize);
  }

  // Kinds ---------------------------------------------------------------------------------------

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
    if ((node_.gamma == nullptr) != (node_.beta == nullptr)) {
      bad(field("gamma"), "one of gamma and beta", "both or none");
    }
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
    if (node_.index->shape[0] > kMaxElements / node_.chunk) {
      bad(field("index"), shown(*node_.index), "at most 2^31 elements");
    }
    expect_count("out", out(), node_.index->shape[0] * node_.chunk);
  }

  const DfqFile& file_;
  const std::vector<Value>& values_;
  const Json& json_;
  std::string at_;
  Node node_;
};

std::vector<Port> read_ports(const char* key, const Json& program, bool inputs, size_t least,
                             std::vector<Value>* values) {
  std::vector<Port> ports;
  std::set<std::string> names;
  const std::string list_at = std::string("program.") + key;
  const auto last = static_cast<int64_t>(values->size()) - 1;
  for (const Json& json : fields::list(list_at, program.find(key), least, kMaxPorts)) {
    const std::string at = list_at + "[" + std::to_string(ports.size()) + "]";
    fields::object(at, &json);
    Port port;
    port.name = fields::text(at + ".name", json.find("name"));
    if (!names.insert(port.name).second) {
      bad(at + ".name", shown_string(port.name) + " again", "a name once");
    }
    port.value = static_cast<int>(integer(at + ".value", json.find("value"), 0, last));
    port.nchw = fields::name_of(at + ".layout", json.find("layout"), kLayouts, 2) == 1;
    Value& value = (*values)[static_cast<size_t>(port.value)];
    if (port.nchw && value.shape.size() != 3) {
      bad(at + ".layout", "\"nchw\" for shape " + fields::shown(value.shape),
          "\"plain\", or a value of shape [h, w, c]");
    }
    if (inputs) {
      if (value.base >= 0 || value.tensor != nullptr || value.is_input) {
        bad(at + ".value", std::to_string(port.value),
            "a value that is no view, no constant and no other input");
      }
      value.is_input = true;
    }
    ports.push_back(std::move(port));
  }
  return ports;
}

}  // namespace

const char* op_name(Op op) { return kOps[static_cast<size_t>(op)]; }

Graph read_graph(const DfqFile& file) {
  const auto text = file.metadata.find("network");
  if (text == file.metadata.end()) bad("network", "nothing", "the network's JSON");
  const Json network = Json::parse(text->second);
  const Json* program = network.find("program");
  fields::object("network.program", program);
  integer("program.version", program->find("version"), 1, 1);
  Graph graph;
  const Json::Array& values = fields::list("program.values", program->find("values"), 1, kMaxCount);
  for (const Json& json : values) {
    const std::string at = "values[" + std::to_string(graph.values.size()) + "]";
    graph.values.push_back(read_value(file, at, json, static_cast<int64_t>(values.size())));
  }
  for (size_t v = 0; v < graph.values.size(); ++v) {
    if (graph.values[v].base >= 0) {
      check_view("values[" + std::to_string(v) + "]", graph.values, graph.values[v]);
    }
  }
  graph.inputs = read_ports("inputs", *program, true, 0, &graph.values);
  graph.outputs = read_ports("outputs", *program, false, 1, &graph.values);
  for (const Json& json : fields::list("program.nodes", program->find("nodes"), 0, kMaxCount)) {
    graph.nodes.push_back(NodeReader(file, graph.values, json, graph.nodes.size()).read());
  }
  check_flow(graph);
  return graph;
}

}  // namespace defakeq

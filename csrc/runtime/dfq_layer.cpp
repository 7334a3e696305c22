#include "runtime/dfq_layer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/fields.h"
#include "runtime/tensor_type.h"

namespace defakeq {

namespace {

using fields::bad;
using fields::integer;
using fields::list;
using fields::object;
using fields::one_of;
using fields::shown;

constexpr int64_t kMaxChannels = int64_t{1} << 24;
constexpr int64_t kMaxExtent = 4096;
constexpr int32_t kMaxZeroPoint = 255;
constexpr int kHalfBits = 16;

class LayerReader {
 public:
  LayerReader(const DfqFile& file, const std::string& name, const Json& json)
      : file_(file), name_(name), json_(json) {}

  DfqLayer read() {
    object("network.layers." + name_, &json_);
    read_geometry();
    read_inputs();
    const Json::Array& bits = list(field("bits"), json_.find("bits"), 1, kMaxChannels);
    stored_.resize(static_cast<size_t>(spec_.out_channels));
    for (size_t i = 0; i < bits.size(); ++i) read_outputs(i);
    if (has_rest_) derive_rest();
    for (size_t i = 0; i < bits.size(); ++i) read_segment(i, bits[i]);
    const TensorView* half = find("half_in_weight");
    if (spec_.half_in_count > 0) {
      const std::vector<int64_t> shape = {stored_outputs_, taps_ * spec_.half_in_count};
      require(field("half_in_weight"), half, TensorType::kFloat16, shape);
      spec_.half_in_weight = data<uint16_t>(*half);
      check_halves(field("half_in_weight"), *half);
    } else if (half != nullptr) {
      bad(field("half_in_weight"), "a tensor", "none without half_in_index");
    }
    if (const TensorView* bias = find("bias")) {
      require(field("bias"), bias, TensorType::kFloat32, {stored_outputs_});
      spec_.bias = data<float>(*bias);
      check_floats(field("bias"), *bias);
    }
    read_epilogue();
    return {name_, std::move(spec_), std::move(derived_)};
  }

 private:
  std::string field(const std::string& key) const { return name_ + "." + key; }

  const TensorView* find(const std::string& key) const {
    const auto it = file_.tensors.find(field(key));
    return it == file_.tensors.end() ? nullptr : &it->second;
  }

  template <typename T>
  static const T* data(const TensorView& view) {
    return reinterpret_cast<const T*>(view.data);
  }

  static void require(const std::string& field, const TensorView* view, TensorType type,
                      const std::vector<int64_t>& shape) {
    const std::string accepted = defakeq::shown(type, shape);
    if (view == nullptr) bad(field, "nothing", accepted);
    if (view->dtype != type || view->shape != shape) {
      bad(field, defakeq::shown(*view), accepted);
    }
  }

  static void check_floats(const std::string& field, const TensorView& view) {
    const float* values = data<float>(view);
    const size_t count = view.nbytes / sizeof(float);
    if (!std::all_of(values, values + count, [](float v) { return std::isfinite(v); })) {
      bad(field, "a value that is not finite", "finite values");
    }
  }

  static void check_halves(const std::string& field, const TensorView& view) {
    const uint16_t* values = data<uint16_t>(view);
    const size_t count = view.nbytes / sizeof(uint16_t);
    if (!std::all_of(values, values + count, [](uint16_t v) { return (v & 0x7C00) != 0x7C00; })) {
      bad(field, "a value that is not finite", "finite values");
    }
  }

  // A pair that may be left out: it is then the default of `out`.
  void read_pair(const char* key, int64_t low, int64_t high, int32_t* out) const {
    if (json_.find(key) == nullptr) return;
    const Json::Array& pair = list(field(key), json_.find(key), 2, 2);
    for (int i = 0; i < 2; ++i) {
      out[i] = static_cast<int32_t>(integer(field(key), &pair[i], low, high));
    }
  }

  void read_geometry() {
    static constexpr const char* kKinds[] = {"linear", "conv2d"};
    spec_.kind = one_of<LayerKind>(field("kind"), json_.find("kind"), kKinds);
    const bool linear = spec_.kind == LayerKind::kLinear;
    const size_t rank = linear ? 2 : 4;
    const Json::Array& shape = list(field("shape"), json_.find("shape"), rank, rank);
    spec_.out_channels = integer(field("shape"), &shape[0], 1, kMaxChannels);
    group_inputs_ = integer(field("shape"), &shape[1], 1, kMaxChannels);
    for (size_t d = 2; d < rank; ++d) {
      spec_.kernel[d - 2] = static_cast<int32_t>(integer(field("shape"), &shape[d], 1, kMaxExtent));
    }
    taps_ = int64_t{spec_.kernel[0]} * spec_.kernel[1];
    read_pair("stride", 1, linear ? 1 : kMaxExtent, spec_.stride);
    read_pair("padding", 0, linear ? 0 : kMaxExtent, spec_.padding);
    read_pair("dilation", 1, linear ? 1 : kMaxExtent, spec_.dilation);
    const Json* groups = json_.find("groups");
    if (groups != nullptr) {
      spec_.groups =
          static_cast<int32_t>(integer(field("groups"), groups, 1, linear ? 1 : kMaxChannels));
    }
    spec_.in_channels = group_inputs_ * spec_.groups;
    if (spec_.out_channels % spec_.groups != 0 || spec_.in_channels > kMaxChannels) {
      bad(field("groups"), shown(groups),
          "a divisor of the outputs, with at most " + std::to_string(kMaxChannels) +
              " inputs in all");
    }
    const Json* size = json_.find("group_size");
    const int64_t largest = spec_.groups > 1 ? 0 : kMaxChannels;
    if (size != nullptr) {
      spec_.group_size = static_cast<int32_t>(integer(field("group_size"), size, 0, largest));
    }
    if (spec_.group_size % 4 != 0) bad(field("group_size"), shown(size), "a multiple of 4, or 0");
  }

  // int32, one dimension, not empty, strictly increasing, below `limit`.
  const int32_t* read_index(const std::string& key, int64_t limit, int64_t* count) const {
    const TensorView* view = find(key);
    const std::vector<int64_t>* shape = view == nullptr ? nullptr : &view->shape;
    const bool one = shape != nullptr && shape->size() == 1 && (*shape)[0] >= 1;
    *count = one ? (*shape)[0] : 1;
    require(field(key), view, TensorType::kInt32, {*count});
    const auto* index = data<int32_t>(*view);
    for (int64_t i = 0; i < *count; ++i) {
      if (index[i] < 0 || index[i] >= limit) {
        bad(field(key), std::to_string(index[i]), "indices from 0 to " + std::to_string(limit - 1));
      }
      if (i > 0 && index[i] <= index[i - 1]) {
        bad(field(key), "indices out of order", "strictly increasing indices");
      }
    }
    return index;
  }

  void read_inputs() {
    for (const char* key : {"in_index", "half_in_index"}) {
      if (find(key) != nullptr && spec_.groups > 1) {
        bad(field(key), "an index with groups " + std::to_string(spec_.groups),
            "none when groups > 1");
      }
    }
    in_count_ = group_inputs_;
    if (find("in_index") != nullptr) {
      spec_.in_index = read_index("in_index", group_inputs_, &spec_.in_count);
      in_count_ = spec_.in_count;
    }
    if (find("half_in_index") != nullptr) {
      if (spec_.in_index == nullptr) {
        bad(field("in_index"), "nothing", "the integer inputs, where half_in_index is given");
      }
      spec_.half_in_index = read_index("half_in_index", group_inputs_, &spec_.half_in_count);
      for (int64_t i = 0; i < spec_.half_in_count; ++i) {
        const int32_t input = spec_.half_in_index[i];
        if (std::binary_search(spec_.in_index, spec_.in_index + spec_.in_count, input)) {
          bad(field("half_in_index"), "input " + std::to_string(input), "inputs not in in_index");
        }
      }
    }
    reduction_ = taps_ * in_count_;
    const int64_t size = spec_.group_size;
    scale_groups_ = size == 0 ? 1 : taps_ * ((in_count_ + size - 1) / size);
  }

  // The outputs of a segment. One segment may leave them out: it has those of no other.
  void read_outputs(size_t i) {
    const std::string key = "seg" + std::to_string(i) + ".out_index";
    SegmentSpec s;
    if (find(key) == nullptr && !has_rest_) {
      has_rest_ = true;
      rest_ = i;
    } else {
      s.out_index = read_index(key, spec_.out_channels, &s.count);
      for (int64_t n = 0; n < s.count; ++n) {
        const auto output = static_cast<size_t>(s.out_index[n]);
        if (stored_[output]) {
          bad(field(key), "output " + std::to_string(output) + " again",
              "every output stored once");
        }
        stored_[output] = true;
      }
      stored_outputs_ += s.count;
    }
    spec_.segments.push_back(s);
  }

  void derive_rest() {
    const std::string base = "seg" + std::to_string(rest_);
    const int64_t count = spec_.out_channels - stored_outputs_;
    const TensorView* codes = find(base + ".codes");
    if (count == 0 || codes == nullptr || codes->shape.size() != 2 || codes->shape[0] != count) {
      bad(field(base + ".out_index"), "nothing",
          "an index, unless the segment has the " + std::to_string(count) +
              " outputs of no other segment");
    }
    auto index = std::make_shared<std::vector<int32_t>>();
    for (int64_t n = 0; n < spec_.out_channels; ++n) {
      if (!stored_[static_cast<size_t>(n)]) index->push_back(static_cast<int32_t>(n));
    }
    spec_.segments[rest_].out_index = index->data();
    spec_.segments[rest_].count = count;
    stored_outputs_ += count;
    derived_.push_back(std::move(index));
  }

  void read_segment(size_t i, const Json& bits) {
    const std::string base = "seg" + std::to_string(i);
    SegmentSpec& s = spec_.segments[i];
    s.bits = static_cast<int32_t>(integer(field(base + ".bits"), &bits, 1, kHalfBits));
    if (s.bits > 8 && s.bits != kHalfBits)
      bad(field(base + ".bits"), bits.shown(), "1 to 8, or 16");
    const std::string codes = base + ".codes";
    if (s.bits == kHalfBits) {
      require(field(codes), find(codes), TensorType::kFloat16, {s.count, reduction_});
      s.halves = data<uint16_t>(*find(codes));
      check_halves(field(codes), *find(codes));
      for (const char* key : {".scale", ".zero_point"}) {
        if (find(base + key) != nullptr) bad(field(base + key), "a tensor", "none for 16 bits");
      }
    } else {
      read_codes(base, &s);
    }
  }

  void read_codes(const std::string& base, SegmentSpec* s) {
    const int64_t row_bytes = (reduction_ * s->bits + 7) / 8;
    const std::string codes = base + ".codes", scale = base + ".scale", zero = base + ".zero_point";
    require(field(codes), find(codes), TensorType::kUint8, {s->count, row_bytes});
    s->codes = find(codes)->data;
    const int64_t used = reduction_ * s->bits - 8 * (row_bytes - 1);  // of the last byte, 1 to 8
    for (int64_t n = 0; n < s->count; ++n) {
      if (s->codes[(n + 1) * row_bytes - 1] >> used != 0) {
        bad(field(codes), "bits set in a row's padding", "zero padding");
      }
    }
    const std::vector<int64_t> shape = {s->count, scale_groups_};
    const TensorView* scales = find(scale);
    require(field(scale), scales, TensorType::kFloat32, shape);
    s->scale = data<float>(*scales);
    check_floats(field(scale), *scales);
    if (const TensorView* view = find(zero)) {
      if (view->dtype == TensorType::kInt8 && view->shape == shape) {
        s->zero_point = widened<int8_t>(*view);
      } else if (view->dtype == TensorType::kInt16 && view->shape == shape) {
        s->zero_point = widened<int16_t>(*view);
      } else {
        require(field(zero), view, TensorType::kInt32, shape);
        s->zero_point = data<int32_t>(*view);
      }
      for (int64_t n = 0; n < s->count * scale_groups_; ++n) {
        if (s->zero_point[n] < -kMaxZeroPoint || s->zero_point[n] > kMaxZeroPoint) {
          bad(field(zero), std::to_string(s->zero_point[n]), "-255 to 255");
        }
      }
    }
  }

  template <typename T>
  const int32_t* widened(const TensorView& view) {
    const T* narrow = data<T>(view);
    auto wide = std::make_shared<std::vector<int32_t>>(narrow, narrow + view.nbytes / sizeof(T));
    derived_.push_back(wide);
    return wide->data();
  }

  void read_epilogue() {
    static constexpr const char* kModes[] = {"none", "static", "dynamic_tensor", "dynamic_row"};
    static constexpr const char* kFunctions[] = {"none", "relu", "relu6",  "hardswish",
                                                 "silu", "gelu", "sigmoid"};
    static constexpr const char* kOuts[] = {"float32", "int8"};
    const Json* act = json_.find("act");
    object(field("act"), act);
    spec_.act_mode = one_of<ActMode>(field("act.mode"), act->find("mode"), kModes);
    spec_.act = fields::quantization(field("act"), *act);
    const bool dynamic =
        spec_.act_mode == ActMode::kDynamicTensor || spec_.act_mode == ActMode::kDynamicRow;
    if (dynamic && (spec_.act.zero_point != 0 || spec_.act.bits != 8)) {
      bad(field("act.zero_point"), std::to_string(spec_.act.zero_point),
          "0, with 8 bits, for dynamic modes");
    }
    if (const Json* activation = json_.find("activation")) {
      spec_.activation = one_of<Activation>(field("activation"), activation, kFunctions);
    }
    const Json* out = json_.find("out");
    object(field("out"), out);
    spec_.out_dtype = one_of<DType>(field("out.dtype"), out->find("dtype"), kOuts);
    spec_.out = fields::quantization(field("out"), *out);
  }

  const DfqFile& file_;
  const std::string& name_;
  const Json& json_;
  LayerSpec spec_;
  int64_t group_inputs_ = 0, taps_ = 1, in_count_ = 0, reduction_ = 0, scale_groups_ = 1;
  int64_t stored_outputs_ = 0;
  std::vector<bool> stored_;
  bool has_rest_ = false;  // whether a segment leaves out its outputs, and which
  size_t rest_ = 0;
  std::vector<std::shared_ptr<const std::vector<int32_t>>> derived_;
};

}  // namespace

DfqLayer read_layer(const DfqFile& file, const std::string& name, const Json& json) {
  return LayerReader(file, name, json).read();
}

}  // namespace defakeq

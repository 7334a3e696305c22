#include "defakeq/dfq_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <tuple>

#include "runtime/crc32.h"
#include "runtime/json.h"

static_assert(std::endian::native == std::endian::little, "files are read in place");

namespace defakeq {

namespace {

constexpr uint64_t kMaxHeader = uint64_t{1} << 24;
constexpr int64_t kMaxChannels = int64_t{1} << 24;
constexpr int64_t kMaxExtent = 4096;
constexpr int32_t kMaxZeroPoint = 255;
constexpr size_t kMaxRank = 8;
constexpr int kHalfBits = 16;
constexpr size_t kLengthBytes = 8;
constexpr size_t kCrcDigits = 8;
constexpr std::string_view kHeaderStart =
    R"({"__metadata__":{"format":"defakeq","version":"1","crc32":")";

struct TypeName {
  const char* name;
  TensorType type;
  int64_t bytes;
};
constexpr TypeName kTypes[] = {
    {"BOOL", TensorType::kBool, 1},   {"U8", TensorType::kUint8, 1},
    {"I8", TensorType::kInt8, 1},     {"I16", TensorType::kInt16, 2},
    {"U16", TensorType::kUint16, 2},  {"F16", TensorType::kFloat16, 2},
    {"I32", TensorType::kInt32, 4},   {"U32", TensorType::kUint32, 4},
    {"F32", TensorType::kFloat32, 4}, {"I64", TensorType::kInt64, 8},
    {"U64", TensorType::kUint64, 8},  {"F64", TensorType::kFloat64, 8},
};

[[noreturn]] void bad(const std::string& field, const std::string& found,
                      const std::string& accepted) {
  throw std::runtime_error(field + ": found " + found + "; accepted is " + accepted);
}

std::string shown(const Json* json) { return json == nullptr ? "nothing" : json->shown(); }

std::string shown(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

Json parse_json(const std::string& field, std::string_view text) {
  try {
    return Json::parse(text);
  } catch (const std::runtime_error& error) {
    bad(field, error.what(), "strict JSON");
  }
}

int64_t integer(const std::string& field, const Json* json, int64_t low, int64_t high) {
  const int64_t* value = json == nullptr ? nullptr : json->integer();
  if (value == nullptr || *value < low || *value > high) {
    bad(field, shown(json),
        "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return *value;
}

const Json::Array& list(const std::string& field, const Json* json, size_t least, size_t most) {
  const Json::Array* items = json == nullptr ? nullptr : json->array();
  if (items == nullptr || items->size() < least || items->size() > most) {
    bad(field, shown(json),
        "a list of " + std::to_string(least) + " to " + std::to_string(most) + " entries");
  }
  return *items;
}

const Json::Object& object(const std::string& field, const Json* json) {
  const Json::Object* members = json == nullptr ? nullptr : json->object();
  if (members == nullptr) bad(field, shown(json), "an object");
  return *members;
}

template <typename Entry, size_t N>
const Entry& one_of(const std::string& field, const Json* json, const Entry (&entries)[N]) {
  const std::string* name = json == nullptr ? nullptr : json->string();
  std::string names;
  for (const Entry& entry : entries) {
    if (name != nullptr && *name == entry.name) return entry;
    names += (names.empty() ? "one of " : ", ") + std::string(entry.name);
  }
  bad(field, shown(json), names);
}

// Header ------------------------------------------------------------------------------------------

TensorView read_entry(const std::string& field, const Json& entry, const uint8_t* payload,
                      int64_t payload_bytes) {
  if (object(field, &entry).size() != 3) {
    bad(field, entry.shown(), "dtype, shape and data_offsets");
  }
  const TypeName& type = one_of(field + " dtype", entry.find("dtype"), kTypes);
  TensorView view;
  view.dtype = type.type;
  const Json::Array& shape = list(field + " shape", entry.find("shape"), 0, kMaxRank);
  bool empty = false;
  for (const Json& size : shape) {
    view.shape.push_back(integer(field + " shape", &size, 0, INT64_MAX));
    empty = empty || view.shape.back() == 0;
  }
  int64_t bytes = empty ? 0 : type.bytes;
  for (const int64_t size : view.shape) {
    if (!empty && bytes > payload_bytes / size) {
      bad(field + " shape", shown(view.shape),
          "no more than the " + std::to_string(payload_bytes) + " bytes of the file");
    }
    bytes *= size;
  }
  const Json::Array& offsets = list(field + " data_offsets", entry.find("data_offsets"), 2, 2);
  const int64_t begin = integer(field + " data_offsets", &offsets[0], 0, payload_bytes);
  const int64_t end = integer(field + " data_offsets", &offsets[1], begin, payload_bytes);
  if (end - begin != bytes || begin % type.bytes != 0) {
    bad(field + " data_offsets", shown(entry.find("data_offsets")),
        std::to_string(bytes) + " aligned bytes for its shape");
  }
  view.data = payload + begin;
  view.nbytes = static_cast<size_t>(bytes);
  return view;
}

// Tensors lie end to end and fill the payload.
void check_cover(const DfqFile& file, const uint8_t* payload, int64_t payload_bytes) {
  std::vector<std::tuple<int64_t, int64_t, const std::string*>> spans;
  for (const auto& [name, view] : file.tensors) {
    const int64_t begin = view.data - payload;
    spans.emplace_back(begin, begin + static_cast<int64_t>(view.nbytes), &name);
  }
  std::sort(spans.begin(), spans.end());
  int64_t at = 0;
  for (const auto& [begin, end, name] : spans) {
    if (begin != at) {
      bad("tensor " + shown_string(*name) + " data_offsets", "a start at " + std::to_string(begin),
          "a start at " + std::to_string(at));
    }
    at = end;
  }
  if (at != payload_bytes) {
    bad("data_offsets", std::to_string(at) + " bytes of tensors",
        "the " + std::to_string(payload_bytes) + " of the file");
  }
}

void read_metadata(const Json* json, std::string_view header, DfqFile* file) {
  for (const auto& [key, value] : object("__metadata__", json)) {
    if (value.string() == nullptr) bad("__metadata__." + key, value.shown(), "a string");
    file->metadata[key] = *value.string();
  }
  for (const char* key : {"format", "version", "crc32", "network"}) {
    if (file->metadata.count(key) == 0) {
      bad(std::string("__metadata__.") + key, "nothing", "a string");
    }
  }
  const std::pair<const char*, const char*> fixed[] = {{"format", "defakeq"}, {"version", "1"}};
  for (const auto& [key, accepted] : fixed) {
    const std::string& found = file->metadata[key];
    if (found != accepted) {
      bad(std::string("__metadata__.") + key, shown_string(found), shown_string(accepted));
    }
  }
  if (header.substr(0, kHeaderStart.size()) != kHeaderStart) {
    bad("header", shown_string(header.substr(0, kHeaderStart.size())),
        "a start of " + std::string(kHeaderStart));
  }
}

// The CRC-32 of the file with zeros in the place of the checksum's own digits.
void check_crc(const std::string& digits, const uint8_t* data, size_t bytes) {
  const size_t at = kLengthBytes + kHeaderStart.size();
  const uint8_t zeros[kCrcDigits] = {'0', '0', '0', '0', '0', '0', '0', '0'};
  uint32_t crc = crc32(data, at);
  crc = crc32(zeros, kCrcDigits, crc);
  crc = crc32(data + at + kCrcDigits, bytes - at - kCrcDigits, crc);
  std::string computed(kCrcDigits, '0');
  for (size_t i = 0; i < kCrcDigits; ++i) {
    computed[i] = "0123456789abcdef"[(crc >> (4 * (kCrcDigits - 1 - i))) & 15];
  }
  if (digits != computed) {
    bad("crc32", shown_string(digits), shown_string(computed) + ", the checksum of the content");
  }
}

// Layers ------------------------------------------------------------------------------------------

class LayerReader {
 public:
  LayerReader(const DfqFile& file, const std::string& name, const Json& json)
      : file_(file), name_(name), json_(json) {}

  LayerSpec read() {
    object("network.layers." + name_, &json_);
    read_geometry();
    read_inputs();
    const Json::Array& bits = list(field("bits"), json_.find("bits"), 1, kMaxChannels);
    stored_.resize(static_cast<size_t>(spec_.out_channels));
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
    return std::move(spec_);
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
    const char* type_name = kTypes[static_cast<size_t>(type)].name;
    const std::string accepted = std::string(type_name) + " with shape " + shown(shape);
    if (view == nullptr) bad(field, "nothing", accepted);
    if (view->dtype != type || view->shape != shape) {
      bad(field,
          kTypes[static_cast<size_t>(view->dtype)].name + (" with shape " + shown(view->shape)),
          accepted);
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

  void read_pair(const char* key, int64_t low, int64_t high, int32_t* out) const {
    const Json::Array& pair = list(field(key), json_.find(key), 2, 2);
    for (int i = 0; i < 2; ++i) {
      out[i] = static_cast<int32_t>(integer(field(key), &pair[i], low, high));
    }
  }

  void read_geometry() {
    struct Kind {
      const char* name;
      LayerKind kind;
    };
    static constexpr Kind kKinds[] = {{"linear", LayerKind::kLinear},
                                      {"conv2d", LayerKind::kConv2d}};
    spec_.kind = one_of(field("kind"), json_.find("kind"), kKinds).kind;
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
    spec_.groups =
        static_cast<int32_t>(integer(field("groups"), groups, 1, linear ? 1 : kMaxChannels));
    spec_.in_channels = group_inputs_ * spec_.groups;
    if (spec_.out_channels % spec_.groups != 0 || spec_.in_channels > kMaxChannels) {
      bad(field("groups"), shown(groups),
          "a divisor of the outputs, with at most " + std::to_string(kMaxChannels) +
              " inputs in all");
    }
    const Json* size = json_.find("group_size");
    const int64_t largest = spec_.groups > 1 ? 0 : kMaxChannels;
    spec_.group_size = static_cast<int32_t>(integer(field("group_size"), size, 0, largest));
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

  void read_segment(size_t i, const Json& bits) {
    const std::string base = "seg" + std::to_string(i);
    SegmentSpec s;
    s.bits = static_cast<int32_t>(integer(field(base + ".bits"), &bits, 1, kHalfBits));
    if (s.bits > 8 && s.bits != kHalfBits)
      bad(field(base + ".bits"), bits.shown(), "1 to 8, or 16");
    s.out_index = read_index(base + ".out_index", spec_.out_channels, &s.count);
    for (int64_t n = 0; n < s.count; ++n) {
      const auto output = static_cast<size_t>(s.out_index[n]);
      if (stored_[output]) {
        bad(field(base + ".out_index"), "output " + std::to_string(output) + " again",
            "every output stored once");
      }
      stored_[output] = true;
    }
    stored_outputs_ += s.count;
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
    spec_.segments.push_back(s);
  }

  void read_codes(const std::string& base, SegmentSpec* s) const {
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
    require(field(scale), find(scale), TensorType::kFloat32, shape);
    s->scale = data<float>(*find(scale));
    check_floats(field(scale), *find(scale));
    if (const TensorView* view = find(zero)) {
      require(field(zero), view, TensorType::kInt32, shape);
      s->zero_point = data<int32_t>(*view);
      for (int64_t n = 0; n < s->count * scale_groups_; ++n) {
        if (s->zero_point[n] < -kMaxZeroPoint || s->zero_point[n] > kMaxZeroPoint) {
          bad(field(zero), std::to_string(s->zero_point[n]), "-255 to 255");
        }
      }
    }
  }

  Quantization read_quantization(const std::string& key, const Json& json) const {
    const std::string at = field(key);
    Quantization q;
    q.bits = static_cast<int32_t>(integer(at + ".bits", json.find("bits"), 4, 8));
    const int64_t half = int64_t{1} << (q.bits - 1);
    const Json* zero = json.find("zero_point");
    q.zero_point = static_cast<int32_t>(integer(at + ".zero_point", zero, -half, half - 1));
    const Json* scale = json.find("scale");
    double value = 0;
    if (scale == nullptr || !scale->number(&value) || !(value >= FLT_MIN && value <= FLT_MAX)) {
      bad(at + ".scale", shown(scale), "a normal positive float32");
    }
    q.scale = static_cast<float>(value);
    return q;
  }

  void read_epilogue() {
    struct Mode {
      const char* name;
      ActMode mode;
    };
    static constexpr Mode kModes[] = {{"none", ActMode::kNone},
                                      {"static", ActMode::kStatic},
                                      {"dynamic_tensor", ActMode::kDynamicTensor},
                                      {"dynamic_row", ActMode::kDynamicRow}};
    struct Function {
      const char* name;
      Activation activation;
    };
    static constexpr Function kFunctions[] = {
        {"none", Activation::kNone},       {"relu", Activation::kRelu},
        {"relu6", Activation::kRelu6},     {"hardswish", Activation::kHardswish},
        {"silu", Activation::kSilu},       {"gelu", Activation::kGelu},
        {"sigmoid", Activation::kSigmoid},
    };
    struct Out {
      const char* name;
      DType dtype;
    };
    static constexpr Out kOuts[] = {{"float32", DType::kFloat32}, {"int8", DType::kInt8}};

    const Json* act = json_.find("act");
    object(field("act"), act);
    spec_.act_mode = one_of(field("act.mode"), act->find("mode"), kModes).mode;
    spec_.act = read_quantization("act", *act);
    const bool dynamic =
        spec_.act_mode == ActMode::kDynamicTensor || spec_.act_mode == ActMode::kDynamicRow;
    if (dynamic && (spec_.act.zero_point != 0 || spec_.act.bits != 8)) {
      bad(field("act.zero_point"), std::to_string(spec_.act.zero_point),
          "0, with 8 bits, for dynamic modes");
    }
    const Json* activation = json_.find("activation");
    spec_.activation = one_of(field("activation"), activation, kFunctions).activation;
    const Json* out = json_.find("out");
    object(field("out"), out);
    spec_.out_dtype = one_of(field("out.dtype"), out->find("dtype"), kOuts).dtype;
    spec_.out = read_quantization("out", *out);
  }

  const DfqFile& file_;
  const std::string& name_;
  const Json& json_;
  LayerSpec spec_;
  int64_t group_inputs_ = 0, taps_ = 1, in_count_ = 0, reduction_ = 0, scale_groups_ = 1;
  int64_t stored_outputs_ = 0;
  std::vector<bool> stored_;
};

void read_layers(DfqFile* file) {
  const Json network = parse_json("network", file->metadata["network"]);
  object("network", &network);
  for (const auto& [name, json] : object("network.layers", network.find("layers"))) {
    if (name.empty()) bad("network.layers", "an empty name", "a non-empty string");
    file->layers.push_back({name, LayerReader(*file, name, json).read()});
  }
}

}  // namespace

const DfqLayer* DfqFile::find_layer(const std::string& name) const {
  for (const DfqLayer& layer : layers) {
    if (layer.name == name) return &layer;
  }
  return nullptr;
}

DfqFile parse_dfq(const void* memory, size_t bytes) {
  const auto* data = static_cast<const uint8_t*>(memory);
  if (reinterpret_cast<uintptr_t>(data) % kLengthBytes != 0) {
    throw std::invalid_argument("data: found an odd address; accepted is one aligned to 8 bytes");
  }
  if (bytes < kLengthBytes) {
    bad("header length", "a file of " + std::to_string(bytes) + " bytes", "at least 8 bytes");
  }
  uint64_t length = 0;
  std::memcpy(&length, data, kLengthBytes);
  const uint64_t limit = std::min<uint64_t>(kMaxHeader, bytes - kLengthBytes);
  if (length > limit || length % kLengthBytes != 0) {
    bad("header length", std::to_string(length), "a multiple of 8 up to " + std::to_string(limit));
  }
  const std::string_view text(reinterpret_cast<const char*>(data) + kLengthBytes, length);
  const uint8_t* payload = data + kLengthBytes + length;
  const auto payload_bytes = static_cast<int64_t>(bytes - kLengthBytes - length);

  DfqFile file;
  {
    const Json header = parse_json("header", text);
    object("header", &header);
    read_metadata(header.find("__metadata__"), text, &file);
    for (const auto& [name, entry] : *header.object()) {
      if (name == "__metadata__") continue;
      const std::string field = "tensor " + shown_string(name);
      file.tensors.emplace(name, read_entry(field, entry, payload, payload_bytes));
    }
  }
  check_cover(file, payload, payload_bytes);
  check_crc(file.metadata["crc32"], data, bytes);
  read_layers(&file);
  return file;
}

DfqFile read_dfq(const std::string& path) {
  const auto system_error = [&path](const char* what) {
    throw std::runtime_error(path + ": cannot " + what + ": " + std::strerror(errno));
  };
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) system_error("open");
  struct stat info = {};
  const bool regular = fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode);
  const auto bytes = regular ? static_cast<size_t>(info.st_size) : 0;
  void* mapped =
      bytes == 0 ? MAP_FAILED : mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int map_error = errno;
  close(descriptor);
  if (!regular) bad(path, "something else", "a regular file");
  if (bytes == 0) bad(path, "an empty file", "a .dfq file");
  if (mapped == MAP_FAILED) {
    errno = map_error;
    system_error("map");
  }
  const std::shared_ptr<const void> storage(
      mapped, [bytes](const void* at) { munmap(const_cast<void*>(at), bytes); });
  DfqFile file = parse_dfq(mapped, bytes);
  file.storage = storage;
  return file;
}

}  // namespace defakeq

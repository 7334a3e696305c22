#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "defakeq/dfq_file.h"
#include "runtime/crc32.h"
#include "runtime/json.h"

namespace defakeq {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr std::string_view kHeaderStart =
    R"({"__metadata__":{"format":"defakeq","version":"1","crc32":")";
constexpr size_t kCrcAt = 8 + kHeaderStart.size();

// A file under construction, which tests can bend out of shape.
struct Tensor {
  std::string name, dtype, shape;
  Bytes data;
  int64_t begin = -1, end = -1;  // -1: where it lies
};

struct Draft {
  std::string network;
  std::vector<Tensor> tensors;
  std::string format = "defakeq", version = "1", more_metadata, more_header;
  Bytes trailing;
};

template <typename T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

void seal(Bytes* file) {
  if (file->size() < kCrcAt + 8) return;
  std::memcpy(file->data() + kCrcAt, "00000000", 8);
  char digits[9];
  std::snprintf(digits, sizeof(digits), "%08x", crc32(file->data(), file->size()));
  std::memcpy(file->data() + kCrcAt, digits, 8);
}

Bytes build(const Draft& draft) {
  std::string header = R"({"__metadata__":{"format":")" + draft.format + R"(","version":")" +
                       draft.version + R"(","crc32":"00000000","network":)" +
                       quoted(draft.network) + draft.more_metadata + "}" + draft.more_header;
  Bytes payload;
  for (const Tensor& t : draft.tensors) {
    const auto begin = t.begin >= 0 ? t.begin : static_cast<int64_t>(payload.size());
    const auto end = t.end >= 0 ? t.end : static_cast<int64_t>(payload.size() + t.data.size());
    header += "," + quoted(t.name) + R"(:{"dtype":")" + t.dtype + R"(","shape":)" + t.shape +
              R"(,"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
    payload.insert(payload.end(), t.data.begin(), t.data.end());
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  Bytes file(8);
  const uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  file.insert(file.end(), header.begin(), header.end());
  file.insert(file.end(), payload.begin(), payload.end());
  file.insert(file.end(), draft.trailing.begin(), draft.trailing.end());
  seal(&file);
  return file;
}

const char kStaticAct[] = R"({"mode":"static","scale":0.02,"zero_point":-3,"bits":8})";
const char kInt8Out[] = R"({"dtype":"int8","scale":0.05,"zero_point":4,"bits":8})";
const char kFloatOut[] = R"({"dtype":"float32","scale":1.0,"zero_point":0,"bits":8})";

// A 6x8 linear layer with 2-bit, 4-bit and half-precision outputs, pruned on both sides, with
// half-precision inputs, groups of 4 and a bias.
Draft linear_draft() {
  Draft d;
  d.network =
      std::string(R"({"layers":{"fc":{"kind":"linear","shape":[6,8],"stride":[1,1],)") +
      R"("padding":[0,0],"dilation":[1,1],"groups":1,"group_size":4,"bits":[2,4,16],"act":)" +
      kStaticAct + R"(,"activation":"silu","out":)" + kInt8Out + R"(}},"classes":["real","fake"]})";
  d.tensors = {
      {"fc.bias", "F32", "[5]", bytes_of<float>({1, 2, 3, 4, 5})},
      {"fc.seg0.scale", "F32", "[2,2]", bytes_of<float>({.5f, .25f, 1, 2})},
      {"fc.seg1.scale", "F32", "[2,2]", bytes_of<float>({.125f, .25f, 3, 4})},
      {"fc.seg0.out_index", "I32", "[2]", bytes_of<int32_t>({0, 3})},
      {"fc.seg0.zero_point", "I32", "[2,2]", bytes_of<int32_t>({1, 2, -255, 255})},
      {"fc.seg1.out_index", "I32", "[2]", bytes_of<int32_t>({1, 5})},
      {"fc.seg2.out_index", "I32", "[1]", bytes_of<int32_t>({4})},
      {"fc.in_index", "I32", "[5]", bytes_of<int32_t>({0, 1, 2, 6, 7})},
      {"fc.half_in_index", "I32", "[2]", bytes_of<int32_t>({3, 5})},
      {"fc.half_in_weight", "F16", "[5,2]", bytes_of<uint16_t>(std::vector<uint16_t>(10, 0x3C00))},
      {"fc.seg2.codes", "F16", "[1,5]", bytes_of<uint16_t>({0, 0x3C00, 0xBC00, 0x7BFF, 0x8001})},
      {"fc.seg0.codes", "U8", "[2,2]", {0xE4, 0x03, 0x1B, 0x02}},
      {"fc.seg1.codes", "U8", "[2,3]", {0x21, 0x43, 0x05, 0xFE, 0xDC, 0x0B}},
  };
  return d;
}

// A depthwise 3x3 convolution with 3-bit symmetric weights beside a free tensor.
Draft conv_draft() {
  Draft d;
  d.network = std::string(R"({"extra":{"pi":3.5e0,"list":[null,true,[]]},"layers":{"dw.0":{)") +
              R"("kind":"conv2d","shape":[3,1,3,3],"stride":[2,1],"padding":[1,1],)" +
              R"("dilation":[1,2],"groups":3,"group_size":0,"bits":[3],"act":)" +
              R"({"mode":"dynamic_row","scale":1,"zero_point":0,"bits":8},"activation":"none",)" +
              R"("out":)" + kFloatOut + "}}}";
  d.tensors = {
      {"table", "I64", "[2,0]", {}},
      {"offset", "F64", "[]", bytes_of<double>({0.5})},
      {"dw.0.seg0.scale", "F32", "[2,1]", bytes_of<float>({.5f, .25f})},
      {"dw.0.seg0.out_index", "I32", "[2]", bytes_of<int32_t>({0, 2})},
      {"dw.0.seg0.codes", "U8", "[2,4]", {1, 2, 3, 4, 5, 6, 7, 7}},
  };
  return d;
}

// Two layers whose arrays are joined by type, with the default fields left out.
Draft joint_draft() {
  Draft d;
  const std::string rest =
      R"("bits":[4],"act":{"mode":"none","scale":1,"zero_point":0},"out":{"dtype":"float32",)"
      R"("scale":1,"zero_point":0}})";
  d.network = R"({"layers":{"b":{"kind":"linear","shape":[2,3],)" + rest +
              R"(,"a":{"kind":"linear","shape":[1,6],"group_size":4,)" + rest + "}" +
              R"(,"tensors":{"F32":{"a.bias":[1],"a.seg0.scale":[1,2],"b.bias":[2],)" +
              R"("b.seg0.scale":[2,1]},"I8":{"a.seg0.zero_point":[1,2],)" +
              R"("b.seg0.zero_point":[2,1]},"U8":{"a.seg0.codes":[1,3],"b.seg0.codes":[2,2]}}})";
  d.tensors = {
      {"*.F32", "F32", "[7]", bytes_of<float>({3, 1, 2, 1, 2, .5f, .25f})},
      {"*.I8", "I8", "[4]", {7, 6, 8, 0xFF}},
      {"*.U8", "U8", "[7]", {0x21, 0x43, 0x65, 0x21, 0x03, 0x54, 0x06}},
  };
  return d;
}

// Without a layer.
Draft empty_draft() {
  Draft d;
  d.network = R"({"layers":{}})";
  return d;
}

std::string refusal(const Bytes& file) {
  try {
    parse_dfq(file.data(), file.size());
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

std::string refusal(const Draft& draft) { return refusal(build(draft)); }

#define EXPECT_REFUSED(draft, field)                                                     \
  do {                                                                                   \
    const std::string message = refusal(draft);                                          \
    EXPECT_EQ(message.rfind(field ": found ", 0), 0u) << "message: '" << message << "'"; \
  } while (false)

bool named(const std::string& message) {
  static const std::vector<std::string> kStarts = {"header length", "header",        "__metadata__",
                                                   "crc32",         "network",       "tensor \"",
                                                   "data_offsets",  "network.layers"};
  const size_t end = message.find(": found ");
  if (end == std::string::npos || message.find("; accepted is ") == std::string::npos) return false;
  const std::string field = message.substr(0, end);
  for (const std::string& start : kStarts) {
    if (field.rfind(start, 0) == 0) return true;
  }
  // A layer's field: <layer name>.<field>.
  static const std::vector<std::string> kFields = {
      "kind",           "shape",     "stride", "padding",    "dilation", "groups",
      "group_size",     "bits",      "act",    "activation", "out",      "in_index",
      "half_in_index",  "bias",      "codes",  "zero_point", "scale",    "mode",
      "half_in_weight", "out_index", "dtype"};
  const std::string last = field.substr(field.rfind('.') + 1);
  return std::find(kFields.begin(), kFields.end(), last) != kFields.end();
}

// Reads everything that the file lends, so that the sanitizers see every byte, and checks again,
// by other means, what the reader promises.
void expect_consistent(const DfqFile& file, const Bytes& bytes) {
  uint64_t sum = 0;
  size_t total = 0;
  for (const auto& [name, view] : file.tensors) {
    ASSERT_GE(view.data, bytes.data()) << name;
    ASSERT_LE(view.data + view.nbytes, bytes.data() + bytes.size()) << name;
    for (size_t i = 0; i < view.nbytes; ++i) sum += view.data[i];
    total += view.nbytes;
  }
  uint64_t expected = 0;
  for (size_t i = bytes.size() - total; i < bytes.size(); ++i) expected += bytes[i];
  ASSERT_EQ(sum, expected);
  for (const DfqLayer& layer : file.layers) {
    const LayerSpec& s = layer.spec;
    std::set<int32_t> outputs;
    const int64_t taps = int64_t{s.kernel[0]} * s.kernel[1];
    const int64_t ins = s.in_index != nullptr ? s.in_count : s.in_channels / s.groups;
    const int64_t groups = s.group_size == 0 ? 1 : taps * ((ins - 1) / s.group_size + 1);
    int64_t stored = 0;
    for (const SegmentSpec& g : s.segments) {
      for (int64_t n = 0; n < g.count; ++n) {
        ASSERT_TRUE(g.out_index[n] >= 0 && g.out_index[n] < s.out_channels);
        ASSERT_TRUE(outputs.insert(g.out_index[n]).second);
      }
      stored += g.count;
      for (int64_t k = 0; g.bits == 16 && k < g.count * taps * ins; ++k) {
        ASSERT_NE(g.halves[k] & 0x7C00, 0x7C00);
      }
      if (g.bits == 16) continue;
      ASSERT_TRUE(g.bits >= 1 && g.bits <= 8);
      const int64_t row = (taps * ins * g.bits + 7) / 8;
      for (int64_t i = 0; i < g.count * row; ++i) sum += g.codes[i];
      for (int64_t i = 0; i < g.count * groups; ++i) {
        ASSERT_TRUE(std::isfinite(g.scale[i]));
        if (g.zero_point != nullptr) {
          ASSERT_LE(std::abs(g.zero_point[i]), 255);
        }
      }
    }
    ASSERT_LE(stored, s.out_channels);
    std::set<int32_t> inputs(s.in_index, s.in_index + (s.in_index != nullptr ? s.in_count : 0));
    for (int64_t i = 0; i < s.half_in_count; ++i) {
      ASSERT_TRUE(inputs.insert(s.half_in_index[i]).second);
    }
    for (int64_t i = 0; i < stored * taps * s.half_in_count; ++i) {
      ASSERT_NE(s.half_in_weight[i] & 0x7C00, 0x7C00);
    }
    for (int64_t i = 0; s.bias != nullptr && i < stored; ++i) {
      ASSERT_TRUE(std::isfinite(s.bias[i]));
    }
    ASSERT_TRUE(std::isfinite(s.act.scale) && s.act.scale > 0);
    ASSERT_TRUE(std::isfinite(s.out.scale) && s.out.scale > 0);
  }
}

// Reads or refuses with a named field. Returns whether it was read.
bool read_or_refuse(const Bytes& file) {
  // A copy of exactly this size, so that a read past the end is seen.
  const Bytes exact(file.begin(), file.end());
  try {
    const DfqFile read = parse_dfq(exact.data(), exact.size());
    expect_consistent(read, exact);
    return true;
  } catch (const std::runtime_error& error) {
    EXPECT_TRUE(named(error.what())) << error.what();
    return false;
  }
}

TEST(Crc32, KnownAnswers) {
  const std::string text = "123456789";
  const auto* data = reinterpret_cast<const uint8_t*>(text.data());
  EXPECT_EQ(crc32(data, text.size()), 0xCBF43926u);
  EXPECT_EQ(crc32(data + 4, 5, crc32(data, 4)), 0xCBF43926u);
  EXPECT_EQ(crc32(nullptr, 0), 0u);
  const Bytes zeros(32, 0);
  EXPECT_EQ(crc32(zeros.data(), zeros.size()), 0x190A55ADu);
}

TEST(Json, ReadsValues) {
  const Json j =
      Json::parse(R"( {"a":[1,-0,2.5,1e2,true,false,null],"s":"\u00e9\ud83d\ude00\n\/é"} )");
  const Json::Array& a = *j.find("a")->array();
  EXPECT_EQ(*a[0].integer(), 1);
  EXPECT_EQ(*a[1].integer(), 0);
  EXPECT_EQ(a[2].integer(), nullptr);
  double number = 0;
  EXPECT_TRUE(a[3].number(&number));
  EXPECT_EQ(number, 100.0);
  EXPECT_TRUE(*a[4].boolean());
  EXPECT_FALSE(*a[5].boolean());
  EXPECT_TRUE(a[6].is_null());
  EXPECT_EQ(*j.find("s")->string(), "\xC3\xA9\xF0\x9F\x98\x80\n/\xC3\xA9");
  EXPECT_EQ(j.find("b"), nullptr);
  EXPECT_EQ(*Json::parse("-9223372036854775808").integer(), INT64_MIN);
  EXPECT_EQ(Json::parse("9223372036854775808").integer(), nullptr);
}

TEST(Json, RefusesWhatIsNotStrict) {
  const char* kWrong[] = {"",
                          " ",
                          "{",
                          "[1,]",
                          "{\"a\":1,}",
                          "01",
                          "+1",
                          "1.",
                          ".5",
                          "1e",
                          "1e999",
                          "NaN",
                          "Infinity",
                          "tru",
                          "'a'",
                          "\"a",
                          "\"\\x\"",
                          "\"\\u12g4\"",
                          "\"\\ud800\"",
                          "\"\\udc00\"",
                          "\"\n\"",
                          "1 2",
                          "[1 2]",
                          "{1:2}",
                          "{\"a\" 1}",
                          "\"\xff\"",
                          "\"\xc0\x80\"",
                          "\"\xed\xa0\x80\"",
                          "\"\xf5\x80\x80\x80\"",
                          "\"\xe2\x82\"",
                          "{\"a\":1,\"b\":2,\"a\":3}",
                          "-",
                          "\"\\ud800\\u0041\""};
  for (const char* text : kWrong) EXPECT_THROW(Json::parse(text), std::runtime_error) << text;
  const std::string deepest(Json::kMaxDepth, '['), closing(Json::kMaxDepth, ']');
  EXPECT_NO_THROW(Json::parse(deepest + closing));
  EXPECT_THROW(Json::parse("[" + deepest + closing + "]"), std::runtime_error);
  EXPECT_THROW(Json::parse(std::string(1000000, '[')), std::runtime_error);
}

TEST(DfqFile, ReadsLayers) {
  const Bytes bytes = build(linear_draft());
  const DfqFile file = parse_dfq(bytes.data(), bytes.size());
  expect_consistent(file, bytes);
  EXPECT_EQ(file.tensors.size(), 13u);
  ASSERT_EQ(file.layers.size(), 1u);
  const DfqLayer* layer = file.find_layer("fc");
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(file.find_layer("other"), nullptr);
  const LayerSpec& s = layer->spec;
  EXPECT_EQ(s.kind, LayerKind::kLinear);
  EXPECT_EQ(s.out_channels, 6);
  EXPECT_EQ(s.in_channels, 8);
  EXPECT_EQ(s.group_size, 4);
  EXPECT_EQ(s.in_count, 5);
  EXPECT_EQ(s.half_in_count, 2);
  EXPECT_EQ(s.half_in_index[1], 5);
  ASSERT_EQ(s.segments.size(), 3u);
  EXPECT_EQ(s.segments[0].bits, 2);
  EXPECT_EQ(s.segments[0].zero_point[2], -255);
  EXPECT_EQ(s.segments[1].zero_point, nullptr);
  EXPECT_EQ(s.segments[1].codes[5], 0x0B);
  EXPECT_EQ(s.segments[2].halves[3], 0x7BFF);
  EXPECT_EQ(s.segments[2].scale, nullptr);
  EXPECT_EQ(s.bias[4], 5.0f);
  EXPECT_EQ(s.act_mode, ActMode::kStatic);
  EXPECT_EQ(s.act.scale, 0.02f);
  EXPECT_EQ(s.act.zero_point, -3);
  EXPECT_EQ(s.activation, Activation::kSilu);
  EXPECT_EQ(s.out_dtype, DType::kInt8);
  EXPECT_EQ(s.out.zero_point, 4);
}

TEST(DfqFile, ReadsConvolutionsAndFreeTensors) {
  const Bytes bytes = build(conv_draft());
  const DfqFile file = parse_dfq(bytes.data(), bytes.size());
  expect_consistent(file, bytes);
  const LayerSpec& s = file.find_layer("dw.0")->spec;
  EXPECT_EQ(s.kind, LayerKind::kConv2d);
  EXPECT_EQ(s.in_channels, 3);
  EXPECT_EQ(s.stride[0], 2);
  EXPECT_EQ(s.dilation[1], 2);
  EXPECT_EQ(s.groups, 3);
  EXPECT_EQ(s.bias, nullptr);
  EXPECT_EQ(s.act_mode, ActMode::kDynamicRow);
  EXPECT_EQ(file.tensors.at("table").nbytes, 0u);
  EXPECT_EQ(file.tensors.at("offset").dtype, TensorType::kFloat64);
  EXPECT_TRUE(file.tensors.at("offset").shape.empty());
  EXPECT_TRUE(read_or_refuse(build(empty_draft())));
}

TEST(DfqFile, ReadsThePartsOfJointTensors) {
  const Bytes bytes = build(joint_draft());
  const DfqFile file = parse_dfq(bytes.data(), bytes.size());
  expect_consistent(file, bytes);
  const LayerSpec& a = file.find_layer("a")->spec;
  const LayerSpec& b = file.find_layer("b")->spec;
  EXPECT_EQ(b.segments[0].scale[1], .25f);
  EXPECT_EQ(b.segments[0].zero_point[1], -1);
  EXPECT_EQ(b.bias[1], 2.0f);
  EXPECT_EQ(b.stride[0], 1);
  EXPECT_EQ(b.group_size, 0);
  EXPECT_EQ(b.act.bits, 8);
  EXPECT_EQ(b.activation, Activation::kNone);
  EXPECT_EQ(a.segments[0].scale[1], 2.0f);
  EXPECT_EQ(a.segments[0].zero_point[0], 7);
  EXPECT_EQ(a.bias[0], 3.0f);
}

TEST(DfqFile, NamesTheWrongJointTensor) {
  const auto with = [](size_t i, const char* dtype, const char* shape, const Bytes& data) {
    Draft d = joint_draft();
    d.tensors[i].dtype = dtype;
    d.tensors[i].shape = shape;
    d.tensors[i].data = data;
    return d;
  };
  const Bytes floats = bytes_of<float>({1, 2, 3, 4, 5, 6});
  EXPECT_REFUSED(with(0, "F32", "[6]", floats), "network.tensors.F32.b.seg0.scale");
  EXPECT_REFUSED(with(0, "F32", "[2,3]", floats), "tensor \"*.F32\"");
  EXPECT_REFUSED(with(0, "I32", "[7]", joint_draft().tensors[0].data), "tensor \"*.F32\"");
  EXPECT_REFUSED(with(1, "I8", "[5]", {1, 2, 3, 4, 5}), "network.tensors.I8");
  EXPECT_REFUSED(with(1, "I8", "[0]", {}), "network.tensors.I8.a.seg0.zero_point");
  EXPECT_REFUSED(with(1, "U8", "[4]", {1, 2, 3, 4}), "tensor \"*.I8\"");
  Draft d = joint_draft();
  d.tensors.insert(d.tensors.begin(), {"a.bias", "F32", "[1]", bytes_of<float>({1})});
  EXPECT_REFUSED(d, "network.tensors.F32.a.bias");
  d = joint_draft();
  d.tensors.pop_back();
  EXPECT_REFUSED(d, "tensor \"*.U8\"");
  const auto edited = [](const std::string& from, const std::string& to) {
    Draft draft = joint_draft();
    draft.network.replace(draft.network.find(from), from.size(), to);
    return draft;
  };
  EXPECT_REFUSED(edited(R"("a.bias":[1])", R"("a.bias":[9])"), "network.tensors.F32.a.bias");
  EXPECT_REFUSED(edited(R"("a.bias":[1])", R"("a.bias":[-1])"), "network.tensors.F32.a.bias");
  EXPECT_REFUSED(edited(R"("a.bias":[1])", R"("a.bias":7)"), "network.tensors.F32.a.bias");
  EXPECT_REFUSED(edited(R"("a.bias":[1])", R"("a.bias":[4611686018427387904,4])"),
                 "network.tensors.F32.a.bias");
  EXPECT_REFUSED(edited(R"("b.seg0.scale":[2,1])", R"("b.seg0.scale":[2,1],"x":[])"),
                 "network.tensors.F32.x");  // a scalar behind the end
  EXPECT_REFUSED(edited(R"("U8":{)", R"("U8":3,"x":{)"), "network.tensors.U8");
  EXPECT_REFUSED(edited(R"("tensors":{)", R"("tensors":[],"x":{)"), "network.tensors");
}

TEST(DfqFile, WidensWhatIsStoredIn16Bits) {
  Draft d = joint_draft();
  d.tensors[0] = {"*.F32/F16", "F16", "[7]",
                  bytes_of<uint16_t>({0x4200, 0x3C00, 0x4000, 0x3C00, 0x4000, 0x3800, 0x3400})};
  const std::string from = R"("F32":{)";
  d.network.replace(d.network.find(from), from.size(), R"("F32/F16":{)");
  const Bytes bytes = build(d);
  const DfqFile file = parse_dfq(bytes.data(), bytes.size());
  EXPECT_EQ(file.find_layer("a")->spec.bias[0], 3.0f);
  EXPECT_EQ(file.find_layer("b")->spec.segments[0].scale[1], .25f);
  const TensorView& bias = file.tensors.at("b.bias");
  EXPECT_EQ(bias.dtype, TensorType::kFloat32);
  EXPECT_EQ(bias.nbytes, 8u);
  d.network.replace(d.network.find("F32/F16"), 7, "F32/I16");
  EXPECT_REFUSED(d, "network.tensors");
}

// base64 of the deflate stream of a network without layers.
TEST(DfqFile, ReadsAndRefusesDeflatedNetworks) {
  Draft d;
  d.network = "q1bKSaxMLSpWsqqurQUA";
  const Bytes bytes = build(d);
  EXPECT_EQ(parse_dfq(bytes.data(), bytes.size()).metadata.at("network"), R"({"layers":{}})");
  for (const char* text : {"", "q1bK", "q1bKSaxMLSpWsqqurQU", "q1bKSaxMLSpWsqqurQUA ", "[]", "x",
                           "q1bKSaxMLSpWsqqurQUAAA==", "AQAA//8="}) {
    d.network = text;
    EXPECT_REFUSED(d, "network");
  }
}

TEST(DfqFile, ReadsFromDiskAndKeepsItMapped) {
  const Bytes bytes = build(linear_draft());
  std::string path = ::testing::TempDir() + "defakeq_XXXXXX";
  const int descriptor = mkstemp(path.data());
  ASSERT_GE(descriptor, 0);
  ASSERT_EQ(write(descriptor, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  close(descriptor);
  DfqFile copy;
  {
    const DfqFile file = read_dfq(path);
    copy = file;
  }
  std::remove(path.c_str());
  EXPECT_EQ(copy.find_layer("fc")->spec.segments[0].codes[0], 0xE4);
  EXPECT_THROW(read_dfq(path), std::runtime_error);
  EXPECT_THROW(read_dfq(::testing::TempDir()), std::runtime_error);
}

TEST(DfqFile, RefusesAnUnalignedAddress) {
  Bytes bytes = build(empty_draft());
  bytes.insert(bytes.begin(), 0);
  EXPECT_THROW(parse_dfq(bytes.data() + 1, bytes.size() - 1), std::invalid_argument);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(DfqFile, NamesTheWrongHeaderField) {
  Draft d = linear_draft();
  d.format = "defakex";
  EXPECT_REFUSED(d, "__metadata__.format");
  d = linear_draft();
  d.version = "2";
  EXPECT_REFUSED(d, "__metadata__.version");
  d = linear_draft();
  d.more_metadata = R"(,"format":"defakeq")";
  EXPECT_REFUSED(d, "header");
  d = linear_draft();
  d.more_metadata = R"(,"more":1)";
  EXPECT_REFUSED(d, "__metadata__.more");
  d = linear_draft();
  d.more_header = R"(,"fc.bias":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  EXPECT_REFUSED(d, "header");
  d = linear_draft();
  d.trailing = {0};
  EXPECT_REFUSED(d, "data_offsets");
  d = linear_draft();
  d.tensors[1].begin = 16;
  d.tensors[1].end = 32;
  EXPECT_REFUSED(d, "tensor \"fc.seg0.scale\" data_offsets");
  d.tensors[1].begin = 18;
  d.tensors[1].end = 34;
  EXPECT_REFUSED(d, "tensor \"fc.seg0.scale\" data_offsets");
  d.tensors[1].end = int64_t{1} << 40;
  EXPECT_REFUSED(d, "tensor \"fc.seg0.scale\" data_offsets");
  d = linear_draft();
  d.tensors[0].shape = "[4611686018427387905]";
  EXPECT_REFUSED(d, "tensor \"fc.bias\" shape");
  d.tensors[0].shape = "[4294967296,4294967296,5]";
  EXPECT_REFUSED(d, "tensor \"fc.bias\" shape");
  d.tensors[0].shape = "[-5]";
  EXPECT_REFUSED(d, "tensor \"fc.bias\" shape");
  d = linear_draft();
  d.tensors[0].dtype = "F8";
  EXPECT_REFUSED(d, "tensor \"fc.bias\" dtype");

  const Bytes good = build(linear_draft());
  Bytes file = good;
  file.back() ^= 0x10;
  EXPECT_REFUSED(file, "crc32");
  file = good;
  file[7] = 1;
  EXPECT_REFUSED(file, "header length");
  file = Bytes(good.begin(), good.begin() + 5);
  EXPECT_REFUSED(file, "header length");
  file = Bytes(good.begin(), good.end() - 3);
  seal(&file);
  EXPECT_REFUSED(file, "tensor \"fc.seg1.codes\" data_offsets");
}

TEST(DfqFile, NamesTheWrongLayerField) {
  const auto with_network = [](const char* from, const char* to) {
    Draft d = linear_draft();
    d.network = replaced(d.network, from, to);
    return d;
  };
  EXPECT_REFUSED(with_network(R"({"layers")", R"({"lawyers")"), "network.layers");
  EXPECT_REFUSED(with_network(R"("linear")", R"("lines")"), "fc.kind");
  EXPECT_REFUSED(with_network("[6,8]", "[6,8,1,1]"), "fc.shape");
  EXPECT_REFUSED(with_network("[6,8]", "[0,8]"), "fc.shape");
  EXPECT_REFUSED(with_network("[6,8]", "[5,8]"), "fc.seg1.out_index");
  EXPECT_REFUSED(with_network("[6,8]", "[6,7]"), "fc.in_index");
  EXPECT_REFUSED(with_network("[6,8]", "[6.0,8]"), "fc.shape");
  EXPECT_REFUSED(with_network(R"("stride":[1,1])", R"("stride":[2,1])"), "fc.stride");
  EXPECT_REFUSED(with_network(R"("padding":[0,0],)", R"("padding":null,)"), "fc.padding");
  EXPECT_EQ(refusal(with_network(R"("padding":[0,0],)", "")), "");
  EXPECT_REFUSED(with_network(R"("dilation":[1,1])", R"("dilation":1)"), "fc.dilation");
  EXPECT_REFUSED(with_network(R"("groups":1)", R"("groups":2)"), "fc.groups");
  EXPECT_REFUSED(with_network(R"("group_size":4)", R"("group_size":6)"), "fc.group_size");
  EXPECT_REFUSED(with_network(R"("group_size":4)", R"("group_size":8)"), "fc.seg0.scale");
  EXPECT_REFUSED(with_network("[2,4,16]", "[5,4,16]"), "fc.seg0.codes");
  EXPECT_REFUSED(with_network("[2,4,16]", "[2,4,12]"), "fc.seg2.bits");
  EXPECT_REFUSED(with_network("[2,4,16]", "[]"), "fc.bits");
  EXPECT_REFUSED(with_network("[2,4,16]", "[2,4,16,1]"), "fc.seg3.out_index");
  EXPECT_REFUSED(with_network("[2,4,16]", "[2,4]"), "fc.half_in_weight");
  EXPECT_REFUSED(with_network(R"("static")", R"("still")"), "fc.act.mode");
  EXPECT_REFUSED(with_network(R"("static")", R"("dynamic_row")"), "fc.act.zero_point");
  EXPECT_REFUSED(with_network("0.02", "-0.02"), "fc.act.scale");
  EXPECT_REFUSED(with_network("0.02", "1e39"), "fc.act.scale");
  EXPECT_REFUSED(with_network("-3", "-129"), "fc.act.zero_point");
  EXPECT_REFUSED(with_network(R"(-3,"bits":8)", R"(-3,"bits":9)"), "fc.act.bits");
  EXPECT_REFUSED(with_network(R"("silu")", R"("tanh")"), "fc.activation");
  EXPECT_REFUSED(with_network(R"("int8")", R"("int4")"), "fc.out.dtype");
  EXPECT_REFUSED(with_network("0.05", "0"), "fc.out.scale");
  EXPECT_REFUSED(with_network("[\"real\"", "[nan"), "network");
  EXPECT_REFUSED(with_network(R"("kind")", R"("kind":"linear","kind")"), "network");

  const auto with_tensor = [](const std::string& name, const Bytes& data) {
    Draft d = linear_draft();
    for (Tensor& t : d.tensors) {
      if (t.name == name) t.data = data;
    }
    return d;
  };
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_REFUSED(with_tensor("fc.bias", bytes_of<float>({1, inf, 3, 4, 5})), "fc.bias");
  EXPECT_REFUSED(with_tensor("fc.seg1.scale", bytes_of<float>({1, nan, 3, 4})), "fc.seg1.scale");
  EXPECT_REFUSED(with_tensor("fc.seg0.out_index", bytes_of<int32_t>({3, 0})), "fc.seg0.out_index");
  EXPECT_REFUSED(with_tensor("fc.seg0.out_index", bytes_of<int32_t>({3, 6})), "fc.seg0.out_index");
  EXPECT_REFUSED(with_tensor("fc.seg0.out_index", bytes_of<int32_t>({-1, 3})), "fc.seg0.out_index");
  EXPECT_REFUSED(with_tensor("fc.seg1.out_index", bytes_of<int32_t>({3, 5})), "fc.seg1.out_index");
  EXPECT_REFUSED(with_tensor("fc.seg0.zero_point", bytes_of<int32_t>({1, 2, 256, 0})),
                 "fc.seg0.zero_point");
  EXPECT_REFUSED(with_tensor("fc.half_in_index", bytes_of<int32_t>({3, 6})), "fc.half_in_index");
  EXPECT_REFUSED(with_tensor("fc.in_index", bytes_of<int32_t>({0, 1, 1, 6, 7})), "fc.in_index");
  EXPECT_REFUSED(with_tensor("fc.seg0.codes", {0xE4, 0x03, 0x1B, 0x42}), "fc.seg0.codes");
  EXPECT_REFUSED(with_tensor("fc.seg2.codes", bytes_of<uint16_t>({0, 0x7C00, 0, 0, 0})),
                 "fc.seg2.codes");
  EXPECT_REFUSED(
      with_tensor("fc.half_in_weight", bytes_of<uint16_t>(std::vector<uint16_t>(10, 0xFFFF))),
      "fc.half_in_weight");

  const auto without = [](const std::string& name) {
    Draft d = linear_draft();
    std::erase_if(d.tensors, [&](const Tensor& t) { return t.name == name; });
    return d;
  };
  EXPECT_REFUSED(without("fc.seg0.scale"), "fc.seg0.scale");
  EXPECT_REFUSED(without("fc.seg1.codes"), "fc.seg1.codes");
  EXPECT_REFUSED(without("fc.seg2.out_index"), "fc.seg2.out_index");
  EXPECT_REFUSED(without("fc.half_in_weight"), "fc.half_in_weight");
  EXPECT_REFUSED(without("fc.half_in_index"), "fc.half_in_weight");
  EXPECT_EQ(refusal(without("fc.bias")), "");
  EXPECT_EQ(refusal(without("fc.seg0.zero_point")), "");

  Draft d = conv_draft();
  d.network = replaced(d.network, R"("group_size":0)", R"("group_size":4)");
  EXPECT_REFUSED(d, "dw.0.group_size");
  d = conv_draft();
  d.tensors.push_back({"dw.0.in_index", "I32", "[1]", bytes_of<int32_t>({0})});
  EXPECT_REFUSED(d, "dw.0.in_index");
}

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }

  // Changes bytes of a finished file.
  void bend(Bytes* file) {
    switch (below(8)) {
      case 0:
        file->resize(below(file->size()));
        break;
      case 1:
        file->resize(file->size() + 1 + below(64), static_cast<uint8_t>(below(256)));
        break;
      case 2:
        for (size_t i = 1 + below(4); i > 0; --i) {
          (*file)[below(file->size())] ^= static_cast<uint8_t>(1u << below(8));
        }
        break;
      case 3:
        (*file)[below(file->size())] = static_cast<uint8_t>(below(256));
        break;
      case 4: {
        uint64_t length = 0;
        std::memcpy(&length, file->data(), 8);
        const uint64_t moves[] = {length + 8,
                                  length - 8,
                                  0,
                                  ~uint64_t{0},
                                  uint64_t{1} << below(64),
                                  uint64_t{below(file->size())}};
        length = moves[below(std::size(moves))];
        std::memcpy(file->data(), &length, 8);
        break;
      }
      case 5: {  // a run of bytes over another
        const size_t from = below(file->size()), to = below(file->size());
        const size_t count = 1 + below(std::min<size_t>(32, file->size() - std::max(from, to)));
        std::memmove(file->data() + to, file->data() + from, count);
        break;
      }
      case 6: {  // a digit, brace, comma or quote of the header
        static constexpr char kMarks[] = "0123456789-.e{}[],:\"\\ ";
        const size_t header = std::min<size_t>(file->size(), file_header(*file));
        (*file)[8 + below(header)] = static_cast<uint8_t>(kMarks[below(sizeof(kMarks) - 1)]);
        break;
      }
      default: {
        const auto at = file->begin() + static_cast<ptrdiff_t>(below(file->size()));
        file->erase(at, at + std::min<ptrdiff_t>(8, file->end() - at));
      }
    }
  }

  // Changes what a file says, in a way that keeps it a container.
  void bend(Draft* d) {
    if (d->tensors.empty() || below(3) == 0) {
      bend_network(&d->network);
      return;
    }
    Tensor& t = d->tensors[below(d->tensors.size())];
    static const char* kTypes[] = {"U8", "I32", "F32", "F16", "I64", "F64", "BOOL", "X"};
    static const char* kShapes[] = {"[]",    "[0]",     "[1]",
                                    "[2,2]", "[-1]",    "[4]",
                                    "[1.5]", "[2,1,2]", "[99999999999999999,99999999999]"};
    switch (below(9)) {
      case 0:
        t.dtype = kTypes[below(std::size(kTypes))];
        break;
      case 1:
        t.shape = kShapes[below(std::size(kShapes))];
        break;
      case 2:  // overlapping or separated
        t.begin = static_cast<int64_t>(below(200));
        t.end = t.begin + static_cast<int64_t>(t.data.size());
        break;
      case 3:
        t.end = static_cast<int64_t>(below(400));
        break;
      case 4:
        d->tensors.push_back(t);
        break;
      case 5:
        t.name = d->tensors[below(d->tensors.size())].name;
        break;
      case 6:
        if (!t.data.empty()) t.data.resize(below(2 * t.data.size()));
        break;
      case 7:
        d->tensors.erase(d->tensors.begin() + (&t - d->tensors.data()));
        break;
      default:
        if (!t.data.empty()) t.data[below(t.data.size())] = static_cast<uint8_t>(below(256));
    }
  }

 private:
  static size_t file_header(const Bytes& file) {
    uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    return std::max<size_t>(1, std::min<size_t>(length, file.size() - 8));
  }

  void bend_network(std::string* text) {
    static const char* kPieces[] = {"0",  "-1",   "1e400", "16777217", "[[[[", "null", "\"\"",
                                    "{}", "true", "2.5",   ",",        "}",    "16",   "\\"};
    const size_t at = below(text->size());
    switch (below(3)) {
      case 0:
        text->replace(at, 1, kPieces[below(std::size(kPieces))]);
        break;
      case 1:
        text->insert(at, kPieces[below(std::size(kPieces))]);
        break;
      default:
        text->erase(at, 1 + below(6));
    }
  }

  std::mt19937 random_;
};

TEST(DfqFile, TenThousandMutationsAreReadWellOrRefusedByName) {
  const Draft drafts[] = {linear_draft(), conv_draft(), joint_draft(), empty_draft()};
  int refused = 0, read = 0;
  for (uint32_t seed = 0; seed < 12000; ++seed) {
    Mutator mutator(seed);
    const Draft& base = drafts[seed % 8 == 0 ? 3 : seed / 3 % 3];
    const Bytes good = build(base);
    Bytes file = good;
    bool ok = false;
    if (seed % 3 == 0) {
      // The checksum stays as it was: nothing but the original is read.
      mutator.bend(&file);
      ok = read_or_refuse(file);
      ASSERT_EQ(ok, file == good) << "seed " << seed;
    } else if (seed % 3 == 1) {
      mutator.bend(&file);
      seal(&file);
      ok = read_or_refuse(file);
    } else {
      Draft draft = base;
      for (size_t i = 1 + mutator.below(2); i > 0; --i) mutator.bend(&draft);
      ok = read_or_refuse(build(draft));
    }
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
    (ok ? read : refused) += 1;
  }
  EXPECT_GT(refused, 9000);
  EXPECT_GT(read, 300);
}

// Every bit of a file is guarded.
TEST(DfqFile, EverySingleBitFlipIsRefused) {
  for (const Draft& draft : {linear_draft(), conv_draft(), joint_draft()}) {
    Bytes file = build(draft);
    for (size_t bit = 0; bit < file.size() * 8; ++bit) {
      file[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
      ASSERT_TRUE(named(refusal(file))) << "bit " << bit << ": " << refusal(file);
      file[bit / 8] ^= static_cast<uint8_t>(1u << (bit % 8));
    }
  }
}

// The same file that the Python tests read and compare with its source.
TEST(DfqFile, ReadsAFileWrittenByPython) {
  const DfqFile file = read_dfq(DEFAKEQ_SOURCE_DIR "/tests/data/sample.dfq");
  ASSERT_EQ(file.layers.size(), 2u);
  const LayerSpec& s = file.find_layer("conv")->spec;
  EXPECT_EQ(s.kind, LayerKind::kConv2d);
  ASSERT_EQ(s.segments.size(), 3u);
  EXPECT_EQ(s.segments[0].bits, 2);
  EXPECT_EQ(s.segments[2].bits, 16);
  EXPECT_EQ(s.half_in_count, 1);
  EXPECT_EQ(s.activation, Activation::kSilu);
  EXPECT_EQ(s.act_mode, ActMode::kStatic);
  EXPECT_EQ(file.find_layer("fc")->spec.act_mode, ActMode::kDynamicRow);
  EXPECT_NE(file.metadata.at("network").find("\"classes\""), std::string::npos);
}

}  // namespace
}  // namespace defakeq

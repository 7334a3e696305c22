#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "defakeq/program.h"
#include "runtime/crc32.h"
#include "runtime/memory_plan.h"
#include "tests/count_allocations.h"

namespace defakeq {
namespace {

using Bytes = std::vector<uint8_t>;

struct Tensor {
  std::string name, dtype, shape;
  Bytes data;
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

constexpr char kStart[] = R"({"__metadata__":{"format":"defakeq","version":"1","crc32":")";
constexpr size_t kCrcAt = 8 + sizeof(kStart) - 1;

void seal(Bytes* file) {
  if (file->size() < kCrcAt + 8) return;
  std::memcpy(file->data() + kCrcAt, "00000000", 8);
  char digits[9];
  std::snprintf(digits, sizeof(digits), "%08x", crc32(file->data(), file->size()));
  std::memcpy(file->data() + kCrcAt, digits, 8);
}

Bytes build(const std::string& network, const std::vector<Tensor>& tensors) {
  std::string header = std::string(kStart) + R"(00000000","network":)" + quoted(network) + "}";
  Bytes payload;
  for (const Tensor& t : tensors) {
    header += "," + quoted(t.name) + R"(:{"dtype":")" + t.dtype + R"(","shape":)" + t.shape +
              R"(,"data_offsets":[)" + std::to_string(payload.size()) + "," +
              std::to_string(payload.size() + t.data.size()) + "]}";
    payload.insert(payload.end(), t.data.begin(), t.data.end());
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  Bytes file(8);
  const uint64_t length = header.size();
  std::memcpy(file.data(), &length, 8);
  file.insert(file.end(), header.begin(), header.end());
  file.insert(file.end(), payload.begin(), payload.end());
  seal(&file);
  return file;
}

std::string q(const std::string& shape, const std::string& more = "") {
  return R"({"dtype":"int8","shape":)" + shape + R"(,"scale":0.5,"zero_point":1,"bits":8)" + more +
         "}";
}
std::string f(const std::string& shape, const std::string& more = "") {
  return R"({"dtype":"float32","shape":)" + shape + more + "}";
}

// Every kind of node once or more; a small image through convolutions, tokens through attention.
std::string network() {
  const std::string act = R"("scale":0.5,"zero_point":1,"bits":8})";
  const auto layer = [&](const std::string& kind, const std::string& shape, int padding) {
    const std::string p = std::to_string(padding);
    return R"({"kind":")" + kind + R"(","shape":)" + shape + R"(,"stride":[1,1],"padding":[)" + p +
           "," + p + R"(],"dilation":[1,1],"groups":1,"group_size":0,"bits":[8],"act":)" +
           R"({"mode":"static",)" + act + R"(,"activation":"none","out":{"dtype":"int8",)" + act +
           "}";
  };
  const std::string quantization = R"({"scale":0.5,"zero_point":1,"bits":8})";
  const std::string heads = R"({"offset":0,"batch":0,"token":4,"head":2})";
  return R"({"layers":{"c":)" + layer("conv2d", "[4,2,3,3]", 1) + R"(,"l":)" +
         layer("linear", "[4,4]", 0) + R"(},"program":{"version":1,"values":[)" + q("[4,4,2]") +
         "," +                                           // 0 image
         q("[4,4,4]") + "," +                            // 1 conv2d
         q("[4,4,4]") + "," +                            // 2 squeeze_excite
         q("[2,2,4]") + "," +                            // 3 max pool
         q("[2,2,4]") + "," +                            // 4 linear, residual
         q("[4,4]", R"(,"base":4,"offset":0)") + "," +   // 5 as tokens
         f("[4,4]") + "," +                              // 6 layer_norm
         q("[4,4]") + "," +                              // 7 convert
         q("[1,4,4]") + "," +                            // 8 attention
         f("[1,4,4]") + "," +                            // 9 matmul
         q("[32]") + "," +                               // 10 base of a concat
         q("[16]", R"(,"base":10,"offset":0)") + "," +   // 11
         q("[16]", R"(,"base":10,"offset":16)") + "," +  // 12
         f("[4]") + "," +                                // 13 mean_rows
         f("[4]", R"(,"tensor":"shift")") + "," +        // 14 constant
         f("[4]") + "," +                                // 15 binary
         f("[4]") + "," +                                // 16 softmax
         f("[1]") + "," +                                // 17 reduce
         f("[4,4,4]") + "," +                            // 18 interpolate
         f("[4,4,4]") + "," +                            // 19 unary
         f("[1,1,4]") +                                  // 20 adaptive pool
         R"(],"inputs":[{"name":"x","value":0,"layout":"nchw"}],"outputs":[)" +
         R"({"name":"y","value":16,"layout":"plain"},{"name":"m","value":19,"layout":"nchw"},)" +
         R"({"name":"n","value":9,"layout":"plain"},{"name":"r","value":17,"layout":"plain"},)" +
         R"({"name":"a","value":20,"layout":"plain"}],"nodes":[)" +
         R"({"op":"conv2d","name":"c","layer":"c","in":[0],"out":[1]},)" +
         R"({"op":"squeeze_excite","name":"se","in":[1],"out":[2],"fc1":"l","fc2":"l","pool":)" +
         quantization + R"(,"hidden":)" + quantization + R"(,"gate":)" + quantization +
         R"(,"table1":"table"},)" +
         R"({"op":"pool2d","name":"p","in":[2],"out":[3],"mode":"max","kernel":[2,2],)" +
         R"("stride":[2,2],"padding":[0,0]},)" +
         R"({"op":"linear","name":"l","layer":"l","in":[3,3],"out":[4]},)" +
         R"({"op":"layer_norm","name":"ln","in":[5],"out":[6],"gamma":"shift","beta":"shift",)" +
         R"("eps":1e-5,"count":6,"rows":"rows"},)" +
         R"({"op":"convert","name":"q","in":[6],"out":[7]},)" +
         R"({"op":"attention","name":"at","in":[7,7,7],"out":[8],"heads":2,"head_dim":2,)" +
         R"("alpha":0.1,"batches":1,"q_tokens":4,"k_tokens":4,"q":)" + heads + R"(,"k":)" + heads +
         R"(,"v":)" + heads + R"(,"rows":"order"},)" +
         R"({"op":"matmul","name":"mm","in":[7,8],"out":[9],"batches":1,"m":4,"n":4,"k":4,)" +
         R"("a":{"offset":0,"batch":0,"row":4},"b":{"offset":0,"batch":0,"row":1,"col":4},)" +
         R"("alpha":0.25},)" +
         R"({"op":"copy","name":"cp","in":[7],"out":[11],"index":"rows","chunk":4},)" +
         R"({"op":"lookup","name":"t","in":[8],"out":[12],"table":"table"},)" +
         R"({"op":"mean_rows","name":"mean","in":[4],"out":[13]},)" +
         R"({"op":"binary","name":"add","in":[13,14],"out":[15],"fn":"add","activation":"relu"},)" +
         R"({"op":"softmax","name":"s","in":[15],"out":[16]},)" +
         R"({"op":"reduce","name":"r","in":[10],"out":[17],"fn":"mean"},)" +
         R"({"op":"interpolate","name":"i","in":[3],"out":[18],"size":[4,4],"mode":"bilinear",)" +
         R"("align_corners":false,"scale":[0.5,0.5]},)" +
         R"({"op":"unary","name":"u","in":[18],"out":[19],"fn":"silu"},)" +
         R"({"op":"adaptive_avg_pool2d","name":"g","in":[19],"out":[20],"size":[1,1]}]}})";
}

std::vector<Tensor> tensors() {
  std::vector<uint8_t> conv(4 * 18), table(256);
  for (size_t i = 0; i < conv.size(); ++i) conv[i] = static_cast<uint8_t>(i * 37);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<uint8_t>(i * 3);
  const Bytes scales = bytes_of<float>({.01f, .02f, .03f, .04f});
  const Bytes outs = bytes_of<int32_t>({0, 1, 2, 3});
  return {{"c.seg0.scale", "F32", "[4,1]", scales},
          {"c.seg0.out_index", "I32", "[4]", outs},
          {"l.seg0.scale", "F32", "[4,1]", scales},
          {"l.seg0.out_index", "I32", "[4]", outs},
          {"shift", "F32", "[4]", bytes_of<float>({1, -1, 2, .5f})},
          {"rows", "I32", "[4]", bytes_of<int32_t>({3, -1, 0, 1})},
          {"order", "I32", "[4]", bytes_of<int32_t>({3, 1, 0, 2})},
          {"c.seg0.codes", "U8", "[4,18]", conv},
          {"l.seg0.codes", "U8", "[4,4]", Bytes(conv.begin(), conv.begin() + 16)},
          {"table", "I8", "[256]", table}};
}

// What a caller brings along.
struct Arrays {
  std::vector<std::vector<float>> in, out;
  std::vector<const float*> inputs;
  std::vector<float*> outputs;

  Arrays(const Program& program, int64_t batch) {
    const auto sized = [&](const ProgramPort& port) {
      int64_t count = batch;
      for (const int64_t size : port.shape) count *= size;
      return std::vector<float>(static_cast<size_t>(count), 0.75f);
    };
    for (const ProgramPort& port : program.inputs()) in.push_back(sized(port));
    for (const ProgramPort& port : program.outputs()) out.push_back(sized(port));
    for (auto& x : in) {
      for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i));
    }
    for (const auto& x : in) inputs.push_back(x.data());
    for (auto& y : out) outputs.push_back(y.data());
  }
};

std::vector<std::vector<float>> outputs_of(Program& program, int64_t batch) {
  Arrays arrays(program, batch);
  program.run(arrays.inputs.data(), arrays.outputs.data(), batch);
  return arrays.out;
}

TEST(Program, RunsEveryKindOfNode) {
  const Bytes bytes = build(network(), tensors());
  Program program = Program::load(parse_dfq(bytes.data(), bytes.size()), 1);
  ASSERT_EQ(program.nodes().size(), 17u);
  EXPECT_EQ(program.inputs()[0].shape, (std::vector<int64_t>{2, 4, 4}));
  EXPECT_EQ(program.nodes()[0].macs, 4 * 4 * 4 * 18);
  const auto want = outputs_of(program, 2);
  for (int threads = 2; threads <= 3; ++threads) {
    program.set_threads(threads);
    EXPECT_EQ(outputs_of(program, 2), want);
  }
  EXPECT_LE(program.info().live_bytes, program.info().arena_bytes);
}

#if defined(DEFAKEQ_COUNTS_ALLOCATIONS)
TEST(Program, ARunAllocatesNothing) {
  const Bytes small = build(network(), tensors());
  // Large enough for several threads.
  const Bytes large =
      build(R"({"layers":{},"program":{"version":1,"values":[)" + q("[64,64,32]") + "," +
                q("[64,64,32]") + "," + f("[64,64,32]") +
                R"(],"inputs":[{"name":"x","value":0,"layout":"nchw"}],"outputs":[{"name":"y",)" +
                R"("value":2,"layout":"nchw"}],"nodes":[)" +
                R"({"op":"unary","name":"u","in":[0],"out":[1],"fn":"relu"},)" +
                R"({"op":"convert","name":"c","in":[1],"out":[2]}]}})",
            {});
  for (const Bytes& bytes : {small, large}) {
    for (int threads = 1; threads <= 3; ++threads) {
      Program program = Program::parse(bytes.data(), bytes.size(), threads);
      Arrays arrays(program, 2);
      program.run(arrays.inputs.data(), arrays.outputs.data(), 2);  // starts the threads
      const int64_t before = count_allocations();
      program.run(arrays.inputs.data(), arrays.outputs.data(), 2);
      EXPECT_EQ(count_allocations() - before, 0) << threads << " threads";
    }
  }
  const int64_t before = count_allocations();
  ::operator delete(::operator new(8));
  EXPECT_EQ(count_allocations() - before, 1);
}
#endif

TEST(Program, RefusesAnArenaThatDoesNotFit) {
  // 2^31 elements are accepted of one value, not of a thousand.
  std::string values = f("[1]"), nodes;
  for (int i = 1; i <= 1000; ++i) {
    values += "," + f("[2147483648]");
    nodes += std::string(i == 1 ? "" : ",") + R"({"op":"copy","name":"n)" + std::to_string(i) +
             R"(","in":[0],"out":[)" + std::to_string(i) + R"(],"index":"i","chunk":2147483648})";
  }
  const Bytes bytes =
      build(R"({"layers":{},"program":{"version":1,"values":[)" + values +
                R"(],"inputs":[{"name":"x","value":0,"layout":"plain"}],"outputs":[{"name":"y",)" +
                R"("value":1,"layout":"plain"}],"nodes":[)" + nodes + "]}}",
            {{"i", "I32", "[1]", bytes_of<int32_t>({0})}});
  const DfqFile file = parse_dfq(bytes.data(), bytes.size());
  EXPECT_THROW(Program::load(file, 1), std::runtime_error);
}

TEST(MemoryPlan, BuffersInUseTogetherAreApart) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<Buffer> buffers(1 + random() % 60);
    for (Buffer& b : buffers) {
      b.bytes = 1 + static_cast<int64_t>(random() % 5000);
      b.first = static_cast<int64_t>(random() % 40);
      b.last = b.first + static_cast<int64_t>(random() % 6);
    }
    const MemoryPlan plan = plan_memory(&buffers);
    EXPECT_LE(plan.live_bytes, plan.arena_bytes);
    for (const Buffer& a : buffers) {
      EXPECT_EQ(a.offset % 64, 0);
      EXPECT_LE(a.offset + a.bytes, plan.arena_bytes);
      for (const Buffer& b : buffers) {
        if (&a == &b || a.last < b.first || b.last < a.first) continue;
        EXPECT_TRUE(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset);
      }
    }
  }
}

// Replaces one number or word of the JSON, or some bytes of a tensor.
class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}
  size_t below(size_t n) { return random_() % n; }

  void bend(std::string* text) {
    static const char* kPieces[] = {"0",          "1",    "2",    "3",     "-1",   "4",     "5",
                                    "7",          "16",   "1000", "65536", "null", "\"x\"", "{}",
                                    "2147483648", "1e30", "[]",   "true",  "9",    "12",    "255"};
    size_t at = text->find("\"program\"") + below(text->size() - text->find("\"program\""));
    while (at < text->size() && !std::isdigit(static_cast<unsigned char>((*text)[at]))) ++at;
    size_t end = at;
    while (end < text->size() && std::isdigit(static_cast<unsigned char>((*text)[end]))) ++end;
    if (below(4) == 0) {
      text->erase(below(text->size() - 8), 1 + below(8));
    } else if (at < text->size()) {
      text->replace(at, end - at, kPieces[below(std::size(kPieces))]);
    }
  }

  void bend(std::vector<Tensor>* all) {
    Tensor& t = (*all)[below(all->size())];
    t.data[below(t.data.size())] = static_cast<uint8_t>(below(256));
  }

  void bend(Bytes* file) {
    for (size_t i = 1 + below(3); i > 0; --i) {
      (*file)[below(file->size())] ^= static_cast<uint8_t>(1u << below(8));
    }
    seal(file);
  }

 private:
  std::mt19937 random_;
};

TEST(Program, TenThousandMutationsRunOrAreRefused) {
  const std::string good = network();
  int ran = 0, refused = 0;
  for (uint32_t seed = 0; seed < 10000; ++seed) {
    Mutator mutator(seed);
    std::string text = good;
    std::vector<Tensor> all = tensors();
    if (seed % 4 != 0) mutator.bend(&text);
    if (seed % 8 == 1) mutator.bend(&text);
    if (seed % 4 == 0) mutator.bend(&all);
    Bytes file = build(text, all);
    if (seed % 8 == 2) mutator.bend(&file);
    try {
      Program program = Program::load(parse_dfq(file.data(), file.size()), 1 + seed % 2);
      if (program.info().arena_bytes < (size_t{1} << 24)) outputs_of(program, 1);
      ++ran;
    } catch (const std::runtime_error& error) {
      ASSERT_NE(std::string(error.what()).find(": "), std::string::npos) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(ran, 1000);
  EXPECT_GT(refused, 3000);
}

}  // namespace
}  // namespace defakeq

// run_program: a whole network as one op.
#include <pthread.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bindings/torch_tensors.h"
#include "defakeq/program.h"

namespace {

using namespace defakeq;
using namespace defakeq::torch_tensors;
using torch::stable::detail::to;

// The programs of the tensors that were run last. An entry is found again by the place and length
// of its tensor and by the checksum in it, which is that of the whole content.
class ProgramCache {
 public:
  static ProgramCache& get() {
    static ProgramCache* cache = [] {
      // A child has no thread that would release a lock held at the fork.
      pthread_atfork([] { get().mutex_.lock(); }, [] { get().mutex_.unlock(); },
                     [] { get().mutex_.unlock(); });
      return new ProgramCache;
    }();
    return *cache;
  }

  std::shared_ptr<Program> find(const Argument& bytes, int threads, int load_threads) {
    const Key key = key_of(bytes, threads);
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (it->first != key) continue;
      entries_.splice(entries_.begin(), entries_, it);
      return it->second;
    }
    auto program = std::make_shared<Program>(load(key, load_threads));
    entries_.emplace_front(key, program);
    if (entries_.size() > kMost) entries_.pop_back();
    return program;
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_.clear();
  }

 private:
  static constexpr size_t kMost = 32;
  // docs/format.md: 8 bytes of length, 59 that are the same in every file, the checksum's 8 digits
  static constexpr size_t kChecksumAt = 8 + 59, kChecksumBytes = 8;

  struct Key {
    const void* data;
    size_t bytes;
    int threads;
    uint64_t checksum;
    bool operator==(const Key&) const = default;
  };

  static Key key_of(const Argument& bytes, int threads) {
    Key key = {bytes.data, static_cast<size_t>(bytes.sizes[0]), threads, 0};
    if (key.bytes >= kChecksumAt + kChecksumBytes) {
      std::memcpy(&key.checksum, static_cast<const char*>(key.data) + kChecksumAt, kChecksumBytes);
    }
    return key;
  }

  static Program load(const Key& key, int threads) {
    if (reinterpret_cast<uintptr_t>(key.data) % 8 == 0) {
      return Program::parse(key.data, key.bytes, threads);
    }
    std::vector<uint64_t> aligned((key.bytes + 7) / 8);
    std::memcpy(aligned.data(), key.data, key.bytes);
    return Program::parse(aligned.data(), key.bytes, threads);
  }

  std::mutex mutex_;
  std::list<std::pair<Key, std::shared_ptr<Program>>> entries_;
};

std::string batched(const std::vector<int64_t>& shape) {
  std::string text = "[N";
  for (const int64_t size : shape) text += ", " + std::to_string(size);
  return text + "]";
}

// out_shapes: of each output its number of dimensions, then its sizes, without the batch.
void check_shapes(const Program& program, const std::vector<int64_t>& given) {
  std::vector<int64_t> accepted;
  for (const ProgramPort& port : program.outputs()) {
    accepted.push_back(static_cast<int64_t>(port.shape.size()));
    accepted.insert(accepted.end(), port.shape.begin(), port.shape.end());
  }
  if (given != accepted) {
    refuse("out_shapes", shape_text(given.data(), static_cast<int64_t>(given.size())),
           shape_text(accepted.data(), static_cast<int64_t>(accepted.size())));
  }
}

void open_input(Argument& x, const ProgramPort& port, int64_t* batch) {
  const std::string name = "input '" + port.name + "'";
  x.open(name.c_str());
  bool good = x.is_float() && x.dims == static_cast<int64_t>(port.shape.size()) + 1;
  for (size_t d = 0; good && d < port.shape.size(); ++d) good = x.sizes[d + 1] == port.shape[d];
  if (!good) refuse(name, dtype_name(x.dtype) + x.shape(), "float32" + batched(port.shape));
  if (*batch < 0) *batch = x.sizes[0];
  if (x.sizes[0] != *batch) {
    refuse(name, "a batch of " + std::to_string(x.sizes[0]),
           std::to_string(*batch) + ", that of the first input");
  }
  refuse_grad(x);
  x.name = "";
}

// run_program(program, inputs, out_shapes, threads)
void boxed_run_program(StableIValue* stack, uint64_t, uint64_t) {
  Argument bytes(to<AtenTensorHandle>(stack[0]));
  const auto tensors = to<std::vector<torch::stable::Tensor>>(stack[1]);
  const auto shapes = to<std::vector<int64_t>>(stack[2]);
  const auto threads = to<int64_t>(stack[3]);
  bytes.open("program");
  if (bytes.dtype != aoti_torch_dtype_uint8() || bytes.dims != 1 ||
      (bytes.sizes[0] > 1 && bytes.strides[0] != 1)) {
    refuse("program", dtype_name(bytes.dtype) + bytes.shape(),
           "a contiguous uint8 tensor: the content of a .dfq file");
  }
  if (threads < 0 || threads > 1024) refuse("threads", std::to_string(threads), "0 to 1024");
  TorchParallel parallel;
  const int own = static_cast<int>(threads);
  const std::shared_ptr<Program> program =
      ProgramCache::get().find(bytes, own, own > 0 ? own : parallel.threads());
  check_shapes(*program, shapes);
  const std::vector<ProgramPort>& ports = program->inputs();
  if (tensors.size() != ports.size()) {
    refuse("inputs", std::to_string(tensors.size()) + " tensors", std::to_string(ports.size()));
  }

  int64_t batch = ports.empty() ? 1 : -1;
  thread_local std::vector<GrowingScratch> t_inputs;
  if (t_inputs.size() < ports.size()) t_inputs = std::vector<GrowingScratch>(ports.size());
  std::vector<const float*> in;
  for (size_t i = 0; i < ports.size(); ++i) {
    AtenTensorHandle handle = nullptr;
    check(aoti_torch_new_tensor_handle(tensors[i].get(), &handle), "new_tensor_handle");
    Argument x(handle);
    open_input(x, ports[i], &batch);
    in.push_back(
        static_cast<const float*>(dense(in_order(x), DType::kFloat32, t_inputs[i], parallel)));
  }
  std::vector<torch::stable::Tensor> results;
  std::vector<float*> out;
  for (const ProgramPort& port : program->outputs()) {
    std::vector<int64_t> sizes = {batch}, strides(port.shape.size() + 1);
    sizes.insert(sizes.end(), port.shape.begin(), port.shape.end());
    int64_t stride = 1;
    for (size_t d = sizes.size(); d-- > 0;) {
      strides[d] = stride;
      stride *= std::max<int64_t>(sizes[d], 1);
    }
    results.emplace_back(new_tensor(static_cast<int64_t>(sizes.size()), sizes.data(),
                                    strides.data(), DType::kFloat32));
    void* data = nullptr;
    check(torch_get_mutable_data_ptr(results.back().get(), &data), "get_mutable_data_ptr");
    out.push_back(static_cast<float*>(data));
  }
  if (threads > 0) {
    program->run(in.data(), out.data(), batch);
  } else {
    // The arena has scratch for as many threads as there were at the last plan.
    if (parallel.threads() > program->threads()) program->set_threads(parallel.threads());
    program->run(in.data(), out.data(), batch, parallel);
  }
  stack[0] = torch::stable::detail::from(results);
}

void boxed_release_programs(StableIValue*, uint64_t, uint64_t) { ProgramCache::get().clear(); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(defakeq, m) {
  m.def(
      "run_program(Tensor program, Tensor[] inputs, int[] out_shapes, int threads=0) -> Tensor[]");
  m.def("release_programs() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(defakeq, CPU, m) { m.impl("run_program", &boxed_run_program); }

STABLE_TORCH_LIBRARY_IMPL(defakeq, CompositeExplicitAutograd, m) {
  m.impl("release_programs", &boxed_release_programs);
}

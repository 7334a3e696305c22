// From a file to steps, packed weights and a planned arena.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>

#include "defakeq/cpu_info.h"
#include "defakeq/layer.h"
#include "runtime/memory_plan.h"
#include "runtime/program_state.h"

namespace defakeq {

namespace {

constexpr int64_t kAlign = 64;
// Larger single buffers are refused before sizes are summed up.
constexpr int64_t kMaxBuffer = int64_t{1} << 40;
// Operators may read whole vectors past the end of the last value.
constexpr int64_t kSlack = 256;
constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Writes the whole index of a copy from one period of it.
void repeat_index(const Node& node, char* to) {
  const int64_t period = node.index->shape[0];
  const auto* index = reinterpret_cast<const int32_t*>(node.index->data);
  const auto* step = reinterpret_cast<const int32_t*>(node.step->data);
  auto* out = reinterpret_cast<int32_t*>(to);
  for (int64_t r = 0; r < node.repeats; ++r) {
    for (int64_t i = 0; i < period; ++i) *out++ = static_cast<int32_t>(index[i] + r * step[i]);
  }
}

std::vector<int64_t> input_chunks(const Graph& graph, const Node& node) {
  std::vector<int64_t> chunks;
  for (const int v : node.in) {
    chunks.push_back(graph.values[static_cast<size_t>(v)].count / node.chunk);
  }
  return chunks;
}

std::vector<CopyMove> moves_of(const Graph& graph, const Node& node) {
  const auto ints = [](const TensorView* view) {
    return view == nullptr ? nullptr : reinterpret_cast<const int32_t*>(view->data);
  };
  return copy_moves(ints(node.index), ints(node.step), node.index->shape[0], node.repeats,
                    input_chunks(graph, node));
}

// Writes a constant [rows][index] from its tensor [rows][columns].
void gather_columns(const Value& value, char* to) {
  const auto width = static_cast<size_t>(value.element_bytes());
  const int64_t count = value.index->shape[0], rows = value.count / count;
  const auto* index = reinterpret_cast<const int32_t*>(value.index->data);
  const char* row = reinterpret_cast<const char*>(value.tensor->data);
  for (int64_t r = 0; r < rows; ++r, row += value.tensor->nbytes / static_cast<size_t>(rows)) {
    for (int64_t i = 0; i < count; ++i, to += width) {
      std::memcpy(to, row + static_cast<size_t>(index[i]) * width, width);
    }
  }
}

}  // namespace

Memory::Memory(const char* what, int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
  if (bytes == 0) return;
  void* data = bytes > kMaxBuffer ? MAP_FAILED
                                  : mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw std::runtime_error(std::string(what) + ": found " + std::to_string(bytes) +
                             " bytes; accepted is what the memory holds");
  }
  data_ = static_cast<char*>(data);
#if defined(MADV_HUGEPAGE)
  // Fewer page faults and misses of the address cache; where there are no huge pages nothing
  // happens.
  if (bytes >= kHugePage) madvise(data, bytes_, MADV_HUGEPAGE);
#endif
}

Memory::~Memory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void Program::State::pack() {
  const auto start = std::chrono::steady_clock::now();
  struct Part {
    int64_t at = 0, bytes = 0;
  };
  std::vector<const DfqLayer*> layers;
  std::map<const DfqLayer*, Part> blobs;
  std::map<const TensorView*, Part> constants;
  std::map<const Node*, Part> repeated;
  std::map<const Node*, std::vector<CopyMove>> moves;
  const auto want = [&](const TensorView* view) {
    if (view != nullptr) constants[view].bytes = static_cast<int64_t>(view->nbytes);
  };
  for (const Node& node : graph.nodes) {
    for (const DfqLayer* layer : {node.layer, node.layer2}) {
      if (layer != nullptr && blobs.emplace(layer, Part{}).second) layers.push_back(layer);
    }
    for (const TensorView* view : {node.table, node.table2, node.gamma, node.beta, node.rows}) {
      want(view);
    }
    if (node.op == Op::kCopy && !(moves[&node] = moves_of(graph, node)).empty()) continue;
    if (node.step == nullptr) {
      want(node.index);
    } else {
      const int64_t count = node.index->shape[0] * node.repeats;
      repeated[&node].bytes = count * static_cast<int64_t>(sizeof(int32_t));
    }
  }
  std::vector<Part> gathered(graph.values.size());
  for (size_t v = 0; v < graph.values.size(); ++v) {
    if (graph.values[v].index == nullptr) {
      want(graph.values[v].tensor);
    } else {
      gathered[v].bytes = graph.values[v].bytes();
    }
  }

  const auto named = [](const DfqLayer& layer, const auto& body) {
    try {
      body();
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error("layer " + layer.name + ": " + error.what());
    }
  };
  int64_t bytes = 0;
  const auto place = [&](Part* part) {
    if (part->bytes > kMaxBuffer || bytes > kMaxBuffer) {
      throw std::runtime_error("packed weights: found more than " + std::to_string(kMaxBuffer) +
                               " bytes; accepted is what the memory holds");
    }
    part->at = bytes;
    bytes += padded(part->bytes);
  };
  for (const DfqLayer* layer : layers) {
    Part& part = blobs[layer];
    named(*layer, [&] { part.bytes = static_cast<int64_t>(packed_layer_bytes(layer->spec)); });
    place(&part);
  }
  for (auto& [view, part] : constants) place(&part);
  for (Part& part : gathered) place(&part);
  for (auto& [node, part] : repeated) place(&part);
  weights = Memory("packed weights", bytes + kSlack);
  info.packed_bytes = static_cast<size_t>(bytes);

  // The largest layers first, one at a time to each thread.
  std::sort(layers.begin(), layers.end(),
            [&](const DfqLayer* a, const DfqLayer* b) { return blobs[a].bytes > blobs[b].bytes; });
  struct Shared {
    const std::vector<const DfqLayer*>& layers;
    const std::map<const DfqLayer*, Part>& blobs;
    char* base;
    std::atomic<size_t> next{0};
  } shared{layers, blobs, weights.data(), {}};
  ThreadPool pool(threads);
  pool.run(
      threads,
      [](void* context, int64_t, int64_t) {
        auto& s = *static_cast<Shared*>(context);
        for (size_t i; (i = s.next.fetch_add(1)) < s.layers.size();) {
          const Part& part = s.blobs.at(s.layers[i]);
          try {
            pack_layer(s.layers[i]->spec, s.base + part.at, static_cast<size_t>(part.bytes));
          } catch (const std::invalid_argument& error) {
            throw std::runtime_error("layer " + s.layers[i]->name + ": " + error.what());
          }
        }
      },
      &shared);
  for (const auto& [view, part] : constants) {
    if (part.bytes > 0) {
      std::memcpy(weights.data() + part.at, view->data, static_cast<size_t>(part.bytes));
    }
  }

  for (const auto& [node, part] : repeated) repeat_index(*node, weights.data() + part.at);
  for (size_t v = 0; v < graph.values.size(); ++v) {
    if (graph.values[v].index != nullptr) {
      gather_columns(graph.values[v], weights.data() + gathered[v].at);
    }
  }

  const auto constant = [&](const TensorView* view) -> char* {
    return view == nullptr ? nullptr : weights.data() + constants[view].at;
  };
  for (const Node& node : graph.nodes) {
    Step step;
    step.node = &node;
    if (node.layer != nullptr) {
      const Part& part = blobs[node.layer];
      step.blob = {weights.data() + part.at, static_cast<size_t>(part.bytes)};
    }
    if (node.layer2 != nullptr) {
      const Part& part = blobs[node.layer2];
      step.blob2 = {weights.data() + part.at, static_cast<size_t>(part.bytes)};
    }
    step.table = reinterpret_cast<const int8_t*>(constant(node.table));
    step.table2 = reinterpret_cast<const int8_t*>(constant(node.table2));
    step.gamma = reinterpret_cast<const float*>(constant(node.gamma));
    step.beta = reinterpret_cast<const float*>(constant(node.beta));
    if (node.op == Op::kCopy) step.moves = std::move(moves[&node]);
    if (step.moves.empty()) {
      const TensorView* index = node.rows != nullptr ? node.rows : node.index;
      step.index = reinterpret_cast<const int32_t*>(
          node.step == nullptr ? constant(index) : weights.data() + repeated[&node].at);
      if (index != nullptr) step.index_count = index->shape[0] * node.repeats;
    }
    if (node.op == Op::kCopy) {
      step.inputs.resize(node.in.size());
      step.input_chunks = input_chunks(graph, node);
    }
    steps.push_back(std::move(step));
  }
  at.assign(graph.values.size(), nullptr);
  for (size_t v = 0; v < graph.values.size(); ++v) {
    if (graph.values[v].index != nullptr) {
      at[v] = weights.data() + gathered[v].at;
    } else if (graph.values[v].tensor != nullptr) {
      at[v] = constant(graph.values[v].tensor);
    }
  }
  info.pack_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Which values lie in the caller's memory: float32 ones whose layout is the caller's.
void Program::State::find_ports() {
  std::vector<int> port(graph.values.size(), -1);
  std::vector<bool> is_input(graph.values.size());
  const auto describe_port = [&](const Port& p) {
    const Value& value = graph.values[static_cast<size_t>(p.value)];
    std::vector<int64_t> shape = value.shape;
    if (p.nchw) shape = {shape[2], shape[0], shape[1]};
    return ProgramPort{p.name, std::move(shape)};
  };
  for (size_t i = 0; i < graph.inputs.size(); ++i) {
    const Port& p = graph.inputs[i];
    const Value& value = graph.values[static_cast<size_t>(p.value)];
    inputs.push_back(describe_port(p));
    input_counts.push_back(value.count);
    const bool direct = !p.nchw && value.dtype == DType::kFloat32;
    input_direct.push_back(direct);
    if (direct) {
      port[static_cast<size_t>(p.value)] = static_cast<int>(i);
      is_input[static_cast<size_t>(p.value)] = true;
    }
  }
  for (size_t i = 0; i < graph.outputs.size(); ++i) {
    const Port& p = graph.outputs[i];
    const Value& value = graph.values[static_cast<size_t>(p.value)];
    outputs.push_back(describe_port(p));
    output_counts.push_back(value.count);
    const bool direct = !p.nchw && value.dtype == DType::kFloat32 && value.tensor == nullptr &&
                        value.base < 0 && !value.is_input && port[static_cast<size_t>(p.value)] < 0;
    output_direct.push_back(direct);
    if (direct) port[static_cast<size_t>(p.value)] = static_cast<int>(i);
  }
  in_arena.assign(graph.values.size(), false);
  for (size_t v = 0; v < graph.values.size(); ++v) {
    const Value& value = graph.values[v];
    const auto root = static_cast<size_t>(graph.root(static_cast<int>(v)));
    if (port[root] >= 0) {
      in_place.push_back(
          {static_cast<int>(v), port[root], is_input[root], value.offset * value.element_bytes()});
    } else if (root == v && value.tensor == nullptr) {
      in_arena[v] = true;
    }
  }
}

void Program::State::describe() {
  nodes.clear();
  info.macs = 0;
  for (const Step& step : steps) {
    const Node& node = *step.node;
    NodeInfo n{};
    n.name = node.name;
    n.op = op_name(node.op);
    n.kernel = n.op + "__" + isa;
    if (step.blob.data != nullptr) {
      n.weight_bytes = static_cast<int64_t>(step.blob.bytes + step.blob2.bytes);
      if (node.op != Op::kSqueezeExcite) {
        n.kernel = strategy_of(graph, step) + "__" + isa;
      }
    }
    n.shape = graph.values[static_cast<size_t>(node.out)].shape;
    n.macs = macs_of(graph, step, &n.macs_skipped);
    info.macs += n.macs;
    nodes.push_back(std::move(n));
  }
}

// Scratch depends on the kernels and on the number of threads, and so does the arena.
void Program::State::plan(int thread_count) {
  const char* const planned_isa = selected_isa();
  std::vector<Step> planned = steps;
  std::vector<Buffer> buffers(graph.values.size() + steps.size());
  const auto check = [](const std::string& what, int64_t bytes) {
    if (bytes < 0 || bytes > kMaxBuffer) {
      throw std::runtime_error(what + ": found a buffer of " + std::to_string(bytes) +
                               " bytes; accepted are " + std::to_string(kMaxBuffer));
    }
    return bytes;
  };
  const auto last = static_cast<int64_t>(steps.size()) + 1;
  std::vector<bool> used(graph.values.size());
  const auto touch = [&](int v, int64_t step) {
    const auto root = static_cast<size_t>(graph.root(v));
    Buffer& b = buffers[root];
    if (!used[root]) b.first = step;
    used[root] = true;
    b.last = step;
  };
  for (const Port& p : graph.inputs) touch(p.value, 0);
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto now = static_cast<int64_t>(i) + 1;
    for (const int v : steps[i].node->in) {
      if (v >= 0) touch(v, now);
    }
    touch(steps[i].node->out, now);
    plan_scratch(graph, thread_count, &planned[i]);
    Buffer& b = buffers[graph.values.size() + i];
    b.bytes = check("node " + steps[i].node->name, static_cast<int64_t>(planned[i].scratch_bytes));
    b.first = b.last = now;
  }
  for (const Port& p : graph.outputs) touch(p.value, last);
  for (size_t v = 0; v < graph.values.size(); ++v) {
    if (in_arena[v] && used[v]) {
      buffers[v].bytes = check("values[" + std::to_string(v) + "]", graph.values[v].bytes());
    }
  }
  std::vector<Buffer> placed;
  std::vector<size_t> places;
  for (size_t i = 0; i < buffers.size(); ++i) {
    if (buffers[i].bytes > 0) {
      placed.push_back(buffers[i]);
      places.push_back(i);
    }
  }
  const MemoryPlan result = plan_memory(&placed);
  for (size_t i = 0; i < placed.size(); ++i) buffers[places[i]].offset = placed[i].offset;
  Memory memory("arena", result.arena_bytes + kSlack);

  for (size_t v = 0; v < graph.values.size(); ++v) {
    const auto root = static_cast<size_t>(graph.root(static_cast<int>(v)));
    if (in_arena[root]) {
      at[v] = memory.data() + buffers[root].offset +
              graph.values[v].offset * graph.values[v].element_bytes();
    }
  }
  for (size_t i = 0; i < planned.size(); ++i) {
    planned[i].scratch = memory.data() + buffers[graph.values.size() + i].offset;
  }
  steps = std::move(planned);
  arena = std::move(memory);
  threads = thread_count;
  isa = planned_isa;
  info.arena_bytes = static_cast<size_t>(result.arena_bytes);
  info.live_bytes = static_cast<size_t>(result.live_bytes);
}

void Program::State::load(const DfqFile& file, int thread_count) {
  if (thread_count < 1 || thread_count > 1024) {
    throw std::invalid_argument("threads: found " + std::to_string(thread_count) +
                                ", accepted: 1 to 1024");
  }
  threads = thread_count;
  graph = read_graph(file);
  pack();
  find_ports();
  plan(thread_count);
  describe();
  gate = new Gate(thread_count);
  // They point into the file, which need not outlive this.
  for (Node& node : graph.nodes) {
    node.layer = node.layer2 = nullptr;
    node.table = node.table2 = node.gamma = node.beta = node.rows = node.index = node.step =
        nullptr;
  }
}

}  // namespace defakeq

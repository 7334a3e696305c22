#include "defakeq/program.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "defakeq/cpu_info.h"
#include "defakeq/ops.h"
#include "runtime/program_state.h"

namespace defakeq {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Has as many threads as were planned for, at most.
class Limited final : public Parallel {
 public:
  Limited(Parallel& inner, int threads) : inner_(inner), threads_(threads) {}
  int threads() const override { return threads_; }
  void run(int64_t n, Body body, void* context) override { inner_.run(n, body, context); }

 private:
  Parallel& inner_;
  int threads_;
};

}  // namespace

Gate& Program::State::enter() {
  Gate* current = gate.load();
  if (current->owner == getpid()) return *current;
  auto fresh = std::make_unique<Gate>(threads);
  // The parent's is left as it is: its threads do not exist here.
  if (gate.compare_exchange_strong(current, fresh.get())) return *fresh.release();
  return *current;
}

// After set_isa the kernels may want more scratch. With the lock held.
void Program::State::follow_isa() {
  if (isa == selected_isa()) return;
  plan(threads);
  describe();
}

void Program::State::run_images(const float* const* in, float* const* out, int64_t batch,
                                Parallel& parallel, double* node_seconds) {
  for (int64_t image = 0; image < batch; ++image) {
    for (const Placed& p : in_place) {
      const auto port = static_cast<size_t>(p.port);
      char* base =
          p.input
              ? reinterpret_cast<char*>(const_cast<float*>(in[port] + image * input_counts[port]))
              : reinterpret_cast<char*>(out[port] + image * output_counts[port]);
      at[static_cast<size_t>(p.value)] = base + p.offset;
    }
    for (size_t i = 0; i < graph.inputs.size(); ++i) {
      if (input_direct[i]) continue;
      const Port& port = graph.inputs[i];
      const Value& value = graph.values[static_cast<size_t>(port.value)];
      const float* from = in[i] + image * value.count;
      char* to = at[static_cast<size_t>(port.value)];
      if (port.nchw) {
        from_nchw(from, value.channels(), value.rows(), {to, value.dtype, value.quantization},
                  parallel);
      } else {
        quantize(from, value.count, value.quantization, reinterpret_cast<int8_t*>(to));
      }
    }
    if (node_seconds == nullptr) {
      for (const Step& step : steps) run_step(graph, step, at.data(), parallel);
    } else {
      Clock::time_point before = Clock::now();
      for (size_t i = 0; i < steps.size(); ++i) {
        run_step(graph, steps[i], at.data(), parallel);
        const Clock::time_point after = Clock::now();
        node_seconds[i] += std::chrono::duration<double>(after - before).count();
        before = after;
      }
    }
    for (size_t i = 0; i < graph.outputs.size(); ++i) {
      if (output_direct[i]) continue;
      const Port& port = graph.outputs[i];
      const Value& value = graph.values[static_cast<size_t>(port.value)];
      float* to = out[i] + image * value.count;
      const char* from = at[static_cast<size_t>(port.value)];
      if (port.nchw) {
        to_nchw({from, value.dtype, value.quantization}, value.channels(), value.rows(), to,
                parallel);
      } else if (value.dtype == DType::kInt8) {
        dequantize(reinterpret_cast<const int8_t*>(from), value.count, value.quantization, to);
      } else {
        std::memcpy(to, from, static_cast<size_t>(value.bytes()));
      }
    }
  }
}

Program::Program(std::unique_ptr<State> state) : state_(std::move(state)) {}
Program::Program(Program&&) noexcept = default;
Program& Program::operator=(Program&&) noexcept = default;
Program::~Program() = default;

template <class Read>
Program Program::load_read(int threads, Read&& read) {
  const Clock::time_point start = Clock::now();
  const DfqFile file = read();
  const double seconds = seconds_since(start);
  Program program = load(file, threads);
  program.state_->info.read_seconds = seconds;
  program.state_->info.load_seconds += seconds;
  return program;
}

Program Program::load(const std::string& path, int threads) {
  return load_read(threads, [&] { return read_dfq(path); });
}

Program Program::parse(const void* data, size_t bytes, int threads) {
  return load_read(threads, [&] { return parse_dfq(data, bytes); });
}

Program Program::load(const DfqFile& file, int threads) {
  const Clock::time_point start = Clock::now();
  auto state = std::make_unique<State>();
  state->load(file, threads);
  state->info.load_seconds = seconds_since(start);
  return Program(std::move(state));
}

const std::vector<ProgramPort>& Program::inputs() const { return state_->inputs; }
const std::vector<ProgramPort>& Program::outputs() const { return state_->outputs; }
const std::vector<NodeInfo>& Program::nodes() const { return state_->nodes; }
const ProgramInfo& Program::info() const { return state_->info; }

int Program::threads() const { return state_->threads; }

void Program::set_threads(int threads) {
  if (threads < 1 || threads > 1024) {
    throw std::invalid_argument("threads: found " + std::to_string(threads) +
                                ", accepted: 1 to 1024");
  }
  auto pool = std::make_unique<ThreadPool>(threads);
  Gate& gate = state_->enter();
  const std::lock_guard<std::mutex> lock(gate.mutex);
  state_->plan(threads);
  gate.pool = std::move(pool);
}

void Program::run(const float* const* inputs, float* const* outputs, int64_t batch,
                  double* node_seconds) {
  Gate& gate = state_->enter();
  const std::lock_guard<std::mutex> lock(gate.mutex);
  state_->follow_isa();
  state_->run_images(inputs, outputs, batch, *gate.pool, node_seconds);
}

void Program::run(const float* const* inputs, float* const* outputs, int64_t batch,
                  Parallel& parallel, double* node_seconds) {
  Gate& gate = state_->enter();
  const std::lock_guard<std::mutex> lock(gate.mutex);
  state_->follow_isa();
  Limited limited(parallel, std::min(parallel.threads(), state_->threads));
  state_->run_images(inputs, outputs, batch, limited, node_seconds);
}

}  // namespace defakeq

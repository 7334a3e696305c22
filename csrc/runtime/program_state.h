// What a program keeps between runs.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "defakeq/program.h"
#include "defakeq/thread_pool.h"
#include "runtime/program_graph.h"
#include "runtime/program_steps.h"

namespace defakeq {

// Zeroed pages of its own, so that they go back to the system as a whole.
class Memory {
 public:
  Memory() = default;
  // Throws std::runtime_error naming `what` when there is no such memory.
  Memory(const char* what, int64_t bytes);
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory();
  char* data() const { return data_; }

 private:
  void swap(Memory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

// The lock and the threads of one process. A forked child makes its own: those of its parent may
// have been in use.
struct Gate {
  explicit Gate(int threads) : owner(getpid()), pool(std::make_unique<ThreadPool>(threads)) {}
  const pid_t owner;
  std::mutex mutex;
  std::unique_ptr<ThreadPool> pool;
};

struct Program::State {
  Graph graph;
  std::vector<Step> steps;
  Memory weights, arena;
  int threads = 1;
  const char* isa = nullptr;  // that the scratch was planned for
  std::atomic<Gate*> gate{nullptr};

  // Where a value lies: `at` points into the arena or the constants; the caller's memory comes in
  // at each run for values whose root has a port in `in_place`.
  std::vector<char*> at;
  struct Placed {
    int value, port;
    bool input;
    int64_t offset;
  };
  std::vector<Placed> in_place;
  std::vector<bool> in_arena;

  std::vector<ProgramPort> inputs, outputs;
  std::vector<int64_t> input_counts, output_counts;
  std::vector<bool> input_direct, output_direct;
  std::vector<NodeInfo> nodes;
  ProgramInfo info{};

  ~State() {
    Gate* g = gate.load();
    // A child that never ran it has no threads to join.
    if (g != nullptr && g->owner == getpid()) delete g;
  }

  // program_load.cpp
  void load(const DfqFile& file, int thread_count);
  void pack();
  void find_ports();
  void describe();
  void plan(int thread_count);

  // program.cpp
  Gate& enter();
  void follow_isa();
  void run_images(const float* const* in, float* const* out, int64_t batch, Parallel& parallel,
                  double* node_seconds);
};

}  // namespace defakeq

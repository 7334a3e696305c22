// A whole network: loaded once, then run without allocation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "defakeq/dfq_file.h"
#include "defakeq/export.h"
#include "defakeq/parallel.h"

namespace defakeq {

// What a caller sees of an input or output: float32, without the batch dimension.
struct ProgramPort {
  std::string name;
  std::vector<int64_t> shape;  // [C, H, W] for images
};

struct NodeInfo {
  std::string name, op;
  std::string kernel;          // strategy and ISA
  std::vector<int64_t> shape;  // of the output
  int64_t macs;                // done, an image
  int64_t macs_skipped;        // of pruned channels
  int64_t weight_bytes;
};

struct ProgramInfo {
  size_t packed_bytes, arena_bytes, live_bytes;  // live: the largest set alive at once
  int64_t macs;
  double read_seconds, pack_seconds, load_seconds;  // load: all of it
};

// Thread-safe: calls of run() from several threads take turns. After fork() the child runs it as
// the parent did.
class DEFAKEQ_API Program {
 public:
  // Throws std::runtime_error naming the wrong field or node.
  static Program load(const std::string& path, int threads = 1);
  static Program load(const DfqFile& file, int threads = 1);
  // The content of a file, aligned to 8 bytes; not needed after the call.
  static Program parse(const void* data, size_t bytes, int threads = 1);

  Program(Program&&) noexcept;
  Program& operator=(Program&&) noexcept;
  ~Program();

  const std::vector<ProgramPort>& inputs() const;
  const std::vector<ProgramPort>& outputs() const;
  const std::vector<NodeInfo>& nodes() const;
  const ProgramInfo& info() const;

  int threads() const;
  // Plans the memory again. Throws std::invalid_argument unless 1 <= threads <= 1024.
  void set_threads(int threads);

  // inputs[i]: [batch][shape of input i] float32, contiguous; outputs[i] the same, apart from the
  // inputs.
  // node_seconds: [nodes], added to when not null.
  void run(const float* const* inputs, float* const* outputs, int64_t batch,
           double* node_seconds = nullptr);
  // The same on threads that the caller lends; no more than threads() of them are used.
  void run(const float* const* inputs, float* const* outputs, int64_t batch, Parallel& parallel,
           double* node_seconds = nullptr);

 private:
  struct State;
  explicit Program(std::unique_ptr<State> state);
  template <class Read>
  static Program load_read(int threads, Read&& read);
  std::unique_ptr<State> state_;
};

}  // namespace defakeq

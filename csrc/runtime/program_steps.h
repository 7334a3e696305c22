// Calls the operators of nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "defakeq/ops.h"
#include "runtime/program_graph.h"

namespace defakeq {

struct Blob {
  const void* data = nullptr;
  size_t bytes = 0;
};

// A node with all that does not change between runs. Its operands are found by value number at each
// run, since some of them lie in the caller's memory.
struct Step {
  const Node* node = nullptr;
  Blob blob, blob2;
  const int8_t* table = nullptr;
  const int8_t* table2 = nullptr;
  const float* gamma = nullptr;
  const float* beta = nullptr;
  const int32_t* index = nullptr;  // rows of layer_norm and attention, chunks of copy
  int64_t index_count = 0;
  std::vector<CopyMove> moves;              // copy: instead of the index, where it is regular
  std::vector<int64_t> input_chunks;        // copy
  mutable std::vector<const void*> inputs;  // copy
  char* scratch = nullptr;
  size_t scratch_bytes = 0;
  // parts of the scratch that squeeze_excite keeps its vectors in
  size_t hidden_at = 0, gate_at = 0, inner_at = 0;
};

// Sets scratch_bytes, for at most `threads` threads.
void plan_scratch(const Graph& graph, int threads, Step* step);

// at[v]: where value v lies.
void run_step(const Graph& graph, const Step& step, char* const* at, Parallel& parallel);

// What a layer's kernel is called, for the selected instruction set.
std::string strategy_of(const Graph& graph, const Step& step);

int64_t macs_of(const Graph& graph, const Step& step, int64_t* skipped);

}  // namespace defakeq

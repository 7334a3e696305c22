// Reads the nodes of a program.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/json.h"
#include "runtime/program_graph.h"

namespace defakeq {

// Node `index` of the program, after every check of its attributes and operands. Throws
// std::runtime_error naming the node and field.
Node read_node(const DfqFile& file, const std::vector<Value>& values, const Json& json,
               size_t index);

}  // namespace defakeq

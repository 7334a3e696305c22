// The tensors of a file with a compact header: one for each element type, and a table of their
// parts.
#pragma once

#include "defakeq/dfq_file.h"
#include "runtime/json.h"

namespace defakeq {

// Puts the parts in the place of the joint tensors of `file`. Throws std::runtime_error that names
// the wrong entry.
void split_joint_tensors(const Json& table, DfqFile* file);

}  // namespace defakeq

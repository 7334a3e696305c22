// Reads the layers of a file.
#pragma once

#include <string>

#include "defakeq/dfq_file.h"
#include "runtime/joint_tensors.h"
#include "runtime/json.h"

namespace defakeq {

// The layer that `json` describes, with the tensors of `file` and its parts of `joint`, which holds
// those of the layers not read yet. Throws std::runtime_error naming the wrong field.
DfqLayer read_layer(const DfqFile& file, JointTensors* joint, const std::string& name,
                    const Json& json);

}  // namespace defakeq

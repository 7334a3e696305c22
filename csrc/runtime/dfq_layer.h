// Reads the layers of a file.
#pragma once

#include <string>

#include "defakeq/dfq_file.h"
#include "runtime/json.h"

namespace defakeq {

// The layer that `json` describes, with the tensors of `file`. Throws std::runtime_error naming the
// wrong field.
DfqLayer read_layer(const DfqFile& file, const std::string& name, const Json& json);

}  // namespace defakeq

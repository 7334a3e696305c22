#pragma once

#include "defakeq/export.h"

#define DEFAKEQ_VERSION_MAJOR 0
#define DEFAKEQ_VERSION_MINOR 1
#define DEFAKEQ_VERSION_PATCH 0
#define DEFAKEQ_VERSION "0.1.0"

namespace defakeq {

// The version of the library that is loaded, for comparison with the header's DEFAKEQ_VERSION.
DEFAKEQ_API const char* version();

}  // namespace defakeq

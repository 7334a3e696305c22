// The one place that chooses kernels.
#pragma once

#include "kernels/kernel_table.h"

namespace defakeq {

// The kernels of the selected instruction-set tier. Cheap: one atomic load after the first call.
const KernelTable& kernels();

}  // namespace defakeq

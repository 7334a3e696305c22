// Every layer that is a matrix product over rows of activations: linear, and convolutions that are
// not depthwise.
#pragma once

#include "defakeq/ops.h"
#include "kernels/kernel_table.h"
#include "ops/activations.h"
#include "pack/packed_layer.h"

namespace defakeq {

void run_product(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                 const Images& images, Parallel& parallel, Scratch& scratch);

void run_depthwise(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                   const Images& images, Parallel& parallel, Scratch& scratch);

// The scratch that these calls take.
size_t product_scratch(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                       const Images& images, Parallel& parallel);
size_t depthwise_scratch(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                         const Images& images, Parallel& parallel);

// Whether run_product multiplies by Winograd.
bool uses_winograd(const PackedLayer& layer, const KernelTable& kernels, const OpArgs& args,
                   const Images& images);

}  // namespace defakeq

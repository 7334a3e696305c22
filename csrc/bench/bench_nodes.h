#pragma once

#include <string>

#include "defakeq/parallel.h"

// The operators between layers on the sizes of ViT-B/16, Swin and ResNet-like networks. `work`:
// only those whose name has it.
void bench_nodes(const std::string& work, int rounds, defakeq::Parallel& parallel);

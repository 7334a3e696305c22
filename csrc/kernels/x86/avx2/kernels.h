#pragma once

#include "kernels/isa_kernels.h"

DQ_DECLARE_ISA_KERNELS(avx2);

// The whole public C++ API of DefakeQ: no torch, no Python.
#pragma once

#include "defakeq/cpu_info.h"
#include "defakeq/layer.h"
#include "defakeq/ops.h"
#include "defakeq/parallel.h"
#include "defakeq/program.h"
#include "defakeq/types.h"
#include "defakeq/version.h"

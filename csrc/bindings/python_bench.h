#pragma once

#include <pybind11/pybind11.h>

// Adds what the benchmarks call to the module.
void bind_bench(pybind11::module_& m);

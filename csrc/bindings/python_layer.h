#pragma once

#include <pybind11/pybind11.h>

// Adds the packing and description of layers to the module.
void bind_layers(pybind11::module_& m);

// Shared by the files that drive: pybind11, and the list of ops that module.cpp binds.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emfast.h"

namespace emfast {

namespace py = pybind11;

void define_attention(py::module_& module);
void define_blur(py::module_& module);
void define_checksum(py::module_& module);
void define_convolution(py::module_& module);
void define_convolution_weight_gradient(py::module_& module);
void define_group_norm_silu(py::module_& module);
void define_mask_misfit(py::module_& module);
void define_random(py::module_& module);
void define_sampler_update(py::module_& module);
void define_separable_blur(py::module_& module);
void define_winograd_convolution(py::module_& module);
void define_winograd_weight_gradient(py::module_& module);

}  // namespace emfast

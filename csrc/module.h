// Shared by the files that drive: pybind11. Each has a define_<name>, which module.cpp lists.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emfast.h"

namespace emfast {

namespace py = pybind11;

}  // namespace emfast

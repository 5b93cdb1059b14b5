#include <pybind11/pybind11.h>

#include "weightshare/parallel.hpp"

namespace py = pybind11;

namespace weightshare {

void bind_parallel(py::module_& parent) {
  auto m = parent.def_submodule("parallel", "How the core uses threads.");
  m.def("after_fork_in_child", &after_fork_in_child,
      "Run serially from now on: the threads of the OpenMP runtime did not survive the fork.");
  m.def("openmp_version", &openmp_version, "OpenMP's version date, or 0 when built without it.");
  m.def("compiler", [] { return __VERSION__; }, "The compiler that built this module.");
}

}  // namespace weightshare

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace weightshare {
void bind_elementary(py::module_& parent);
void bind_elementwise(py::module_& parent);
void bind_error(py::module_& parent);
void bind_fusion(py::module_& parent);
void bind_integrity(py::module_& parent);
void bind_mixing(py::module_& parent);
void bind_network(py::module_& parent);
void bind_parallel(py::module_& parent);
void bind_selection(py::module_& parent);
void bind_similarity(py::module_& parent);
void bind_sparsity(py::module_& parent);
void bind_spherical(py::module_& parent);
void bind_step(py::module_& parent);
}  // namespace weightshare

PYBIND11_MODULE(native, m) {
  weightshare::bind_elementary(m);
  weightshare::bind_elementwise(m);
  weightshare::bind_error(m);
  weightshare::bind_fusion(m);
  weightshare::bind_integrity(m);
  weightshare::bind_mixing(m);
  weightshare::bind_network(m);
  weightshare::bind_parallel(m);
  weightshare::bind_selection(m);
  weightshare::bind_similarity(m);
  weightshare::bind_sparsity(m);
  weightshare::bind_spherical(m);
  weightshare::bind_step(m);
}

#include <optional>

#include <pybind11/stl.h>

#include "numpy_buffer.hpp"
#include "weightshare/step.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

void step_array(const py::array& w, const py::array& g, const std::optional<py::array>& v, double rate,
    double momentum, bool nesterov, double weight_decay, int threads) {
  const Buffer parameters = writable_buffer(w, "params");
  const ConstBuffer gradient = buffer(g, "grads");
  const Buffer velocity = v ? writable_buffer(*v, "velocity") : Buffer{};
  std::vector<ConstBuffer> read{gradient};
  check_overlap({parameters}, read);
  const Execution how = execution(threads);
  const py::gil_scoped_release unlocked;
  sgd_step(parameters, gradient, velocity, {rate, momentum, weight_decay, nesterov}, how);
}

}  // namespace

void bind_step(py::module_& parent) {
  auto m = parent.def_submodule("step", "Optimizer steps in place.");
  m.def("sgd_step", &step_array, "w"_a, "g"_a, "v"_a, "rate"_a, "momentum"_a = 0.0, "nesterov"_a = false,
      "weight_decay"_a = 0.0, "threads"_a = 1, "One step of SGD in place; see weightshare/step.hpp.");
}

}  // namespace weightshare

#include "numpy_buffer.hpp"
#include "weightshare/elementary.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

using Function = void (*)(std::span<double>);

template <Function function>
void in_place(const py::array& x) {
  const auto count = static_cast<std::size_t>(x.size());
  double* values = writable_numbers<double>(x, "x", count);
  const py::gil_scoped_release unlocked;
  function({values, count});
}

}  // namespace

void bind_elementary(py::module_& parent) {
  auto m = parent.def_submodule("elementary", "Elementary functions, the same bits on every machine.");
  m.def("exp", [](double x) { return elementary::exp(x); }, "x"_a, "e to the power x.");
  m.def("log", [](double x) { return elementary::log(x); }, "x"_a, "Natural logarithm.");
  m.def("sin", &elementary::sin, "x"_a, "Sine.");
  m.def("cos", &elementary::cos, "x"_a, "Cosine.");
  m.def("acos", &elementary::acos, "x"_a, "Arccosine in [0, pi].");
  m.def("exp_in_place", &in_place<static_cast<Function>(&elementary::exp)>, "x"_a,
      "exp of every number of a float64 array.");
  m.def("log_in_place", &in_place<static_cast<Function>(&elementary::log)>, "x"_a,
      "Natural logarithm of every number of a float64 array.");
}

}  // namespace weightshare

#include <pybind11/stl.h>

#include <optional>

#include "numpy_buffer.hpp"
#include "weightshare/mixing.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

using Optional = std::optional<py::array>;

void mix_arrays(const std::vector<py::array>& out, const std::vector<py::array>& w, const py::array& a,
    const Optional& base, int threads, const Optional& start) {
  const std::vector<Buffer> targets = writable_buffers(out, "out");
  const std::vector<ConstBuffer> sources = buffers(w, "w");
  const std::size_t n_coefficients = targets.size() * sources.size();
  const double* coefficients = numbers<double>(a, "a", n_coefficients);
  std::vector<ConstBuffer> read = sources;
  const ConstBuffer from = base ? buffer(*base, "base") : ConstBuffer{};
  const ConstBuffer onto = start ? buffer(*start, "start") : ConstBuffer{};
  read.insert(read.end(), {from, onto});
  check_overlap(targets, read);
  const Execution how = execution(threads);
  const py::gil_scoped_release unlocked;
  mix(targets, sources, {coefficients, n_coefficients}, {base ? &from : nullptr, start ? &onto : nullptr},
      how);
}

}  // namespace

void bind_mixing(py::module_& parent) {
  auto m = parent.def_submodule("mixing", "Mixing of tensors: out_i = sum_j a_ij w_j.");
  m.def("mix", &mix_arrays, "out"_a, "w"_a, "a"_a, "base"_a = py::none(), "threads"_a = 1,
      "start"_a = py::none(), "Mix n arrays into m, in place in `out`; see weightshare/mixing.hpp.");
}

}  // namespace weightshare

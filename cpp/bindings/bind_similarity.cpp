#include <pybind11/stl.h>

#include <optional>

#include "numpy_buffer.hpp"
#include "weightshare/similarity.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

/// The views of one call, alive while the core runs without the GIL.
struct Arguments {
  Arguments(const std::vector<py::array>& w, const std::optional<py::array>& base,
      const std::vector<double>& shift_of_each, int threads)
      : tensors(buffers(w, "w")), shift(shift_of_each), how(execution(threads)) {
    if (base) {
      subtracted = buffer(*base, "base");
    }
  }
  Family family() const { return {tensors, subtracted ? &*subtracted : nullptr, shift}; }
  std::size_t pairs() const { return tensors.size() * tensors.size(); }

  std::vector<ConstBuffer> tensors;
  std::optional<ConstBuffer> subtracted;
  std::vector<double> shift;
  Execution how;
};

using Arrays = std::vector<py::array>;
using Base = std::optional<py::array>;
using Shift = std::vector<double>;

void sums_of(const py::array& out, const Arrays& w, const Base& base, int threads) {
  const Arguments arguments(w, base, {}, threads);
  double* result = writable_numbers<double>(out, "out", w.size());
  const py::gil_scoped_release unlocked;
  sums(arguments.family(), {result, w.size()}, arguments.how);
}

void inner_products_of(
    const py::array& out, const Arrays& w, const Base& base, const Shift& shift, int threads) {
  const Arguments arguments(w, base, shift, threads);
  double* result = writable_numbers<double>(out, "out", arguments.pairs());
  const py::gil_scoped_release unlocked;
  inner_products(arguments.family(), {result, arguments.pairs()}, arguments.how);
}

void squared_distances_of(const py::array& out, const Arrays& w, int threads) {
  const Arguments arguments(w, {}, {}, threads);
  double* result = writable_numbers<double>(out, "out", arguments.pairs());
  const py::gil_scoped_release unlocked;
  squared_distances(arguments.family(), {result, arguments.pairs()}, arguments.how);
}

void count_signs_of(
    const py::array& same, const py::array& both, const Arrays& w, const Base& base, int threads) {
  const Arguments arguments(w, base, {}, threads);
  auto* equal = writable_numbers<std::int64_t>(same, "same", arguments.pairs());
  auto* nonzero = writable_numbers<std::int64_t>(both, "both", arguments.pairs());
  const py::gil_scoped_release unlocked;
  count_signs(arguments.family(), {equal, arguments.pairs()}, {nonzero, arguments.pairs()}, arguments.how);
}

void row_cosine_sums_of(const py::array& out, const Arrays& w, std::size_t n_columns, const Base& base,
    const Shift& shift, int threads) {
  const Arguments arguments(w, base, shift, threads);
  double* result = writable_numbers<double>(out, "out", arguments.pairs());
  const py::gil_scoped_release unlocked;
  row_cosine_sums(arguments.family(), n_columns, {result, arguments.pairs()}, arguments.how);
}

}  // namespace

void bind_similarity(py::module_& parent) {
  auto m = parent.def_submodule("similarity", "Sums over all pairs of n tensors, each read once.");
  m.def("sums", &sums_of, "out"_a, "w"_a, "base"_a = py::none(), "threads"_a = 1,
      "out[j] = sum of the elements of w[j] - base.");
  m.def("inner_products", &inner_products_of, "out"_a, "w"_a, "base"_a = py::none(), "shift"_a = Shift{},
      "threads"_a = 1, "out[i, j] = inner product of w[i] - base - shift[i] and w[j] - base - shift[j].");
  m.def("squared_distances", &squared_distances_of, "out"_a, "w"_a, "threads"_a = 1,
      "out[i, j] = squared norm of w[i] - w[j].");
  m.def("count_signs", &count_signs_of, "same"_a, "both"_a, "w"_a, "base"_a = py::none(), "threads"_a = 1,
      "Elements non-zero in both of a pair, and of those the ones of equal sign.");
  m.def("row_cosine_sums", &row_cosine_sums_of, "out"_a, "w"_a, "n_columns"_a, "base"_a = py::none(),
      "shift"_a = Shift{}, "threads"_a = 1,
      "out[i, j] = sum over rows of the cosine of that row in w[i] and w[j].");
}

}  // namespace weightshare

#include "numpy_buffer.hpp"
#include "weightshare/fusion.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

RowPair row_pair(const py::array& w, const py::array& base, std::size_t n_columns) {
  return {buffer(w, "w"), buffer(base, "base"), n_columns};
}

std::span<const double> row_numbers(const py::array& array) {
  const auto count = static_cast<std::size_t>(array.size());
  return {numbers<double>(array, "of_rows", count), count};
}

void row_divergences_of(
    const py::array& out, const py::array& w, const py::array& base, std::size_t n_columns, int threads) {
  const RowPair rows = row_pair(w, base, n_columns);
  const auto count = static_cast<std::size_t>(out.size());
  double* result = writable_numbers<double>(out, "out", count);
  const Execution how = execution(threads);
  const py::gil_scoped_release unlocked;
  row_divergences({result, count}, rows, how);
}

void importance_of(const py::array& out, const py::array& w, const py::array& base, const py::array& of_rows,
    std::size_t n_columns, int threads) {
  const RowPair rows = row_pair(w, base, n_columns);
  const auto count = static_cast<std::size_t>(out.size());
  auto* result = writable_numbers<float>(out, "out", count);
  const std::span<const double> factors = row_numbers(of_rows);
  const Execution how = execution(threads);
  const py::gil_scoped_release unlocked;
  importance({result, count}, rows, factors, how);
}

void keep_important_of(const py::array& out, const py::array& w, const py::array& base,
    const py::array& of_rows, std::size_t n_columns, double threshold, int threads) {
  const RowPair rows = row_pair(w, base, n_columns);
  const Buffer target = writable_buffer(out, "out");
  check_overlap({target}, {rows.w, rows.base});
  const std::span<const double> factors = row_numbers(of_rows);
  const Execution how = execution(threads);
  const py::gil_scoped_release unlocked;
  keep_important(target, rows, factors, threshold, how);
}

}  // namespace

void bind_fusion(py::module_& parent) {
  auto m = parent.def_submodule("fusion", "Which elements of a model matter beside its base.");
  m.def("row_divergences", &row_divergences_of, "out"_a, "w"_a, "base"_a, "n_columns"_a, "threads"_a = 1,
      "out[r] = Kullback-Leibler divergence of the softmax of row r of w from that of the base.");
  m.def("importance", &importance_of, "out"_a, "w"_a, "base"_a, "of_rows"_a, "n_columns"_a, "threads"_a = 1,
      "out = |w - base| times the number of the row, float32.");
  m.def("keep_important", &keep_important_of, "out"_a, "w"_a, "base"_a, "of_rows"_a, "n_columns"_a,
      "threshold"_a, "threads"_a = 1, "w where its importance reaches the threshold, else the base.");
}

}  // namespace weightshare

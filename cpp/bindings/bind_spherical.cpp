#include <pybind11/stl.h>

#include <optional>

#include "numpy_buffer.hpp"
#include "weightshare/spherical.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

using Arrays = std::vector<py::array>;
using Base = std::optional<py::array>;

/// The views of one call, alive while the core runs without the GIL.
struct Inputs {
  Inputs(const Arrays& w, const Base& base, int threads) : tensors(buffers(w, "w")), how(execution(threads)) {
    if (base) {
      subtracted = buffer(*base, "base");
    }
  }
  Family family() const { return {tensors, subtracted ? &*subtracted : nullptr, {}}; }
  void check_apart(const Buffer& out) const {
    std::vector<ConstBuffer> read = tensors;
    if (subtracted) {
      read.push_back(*subtracted);
    }
    check_overlap({out}, read);
  }

  std::vector<ConstBuffer> tensors;
  std::optional<ConstBuffer> subtracted;
  Execution how;
};

std::span<double> float64(const py::array& array, const std::string& name) {
  const auto count = static_cast<std::size_t>(array.size());
  return {writable_numbers<double>(array, name, count), count};
}

void chunk_products_of(
    const py::array& out, const Arrays& w, std::size_t chunk, const Base& base, int threads) {
  const Inputs inputs(w, base, threads);
  const std::span<double> sums = float64(out, "out");
  const py::gil_scoped_release unlocked;
  chunk_products(inputs.family(), chunk, sums, inputs.how);
}

void column_products_of(const py::array& out, const Arrays& w, std::size_t n_columns,
    std::size_t n_rows_at_once, const Base& base, int threads) {
  const Inputs inputs(w, base, threads);
  const std::span<double> sums = float64(out, "out");
  const py::gil_scoped_release unlocked;
  column_products(inputs.family(), n_columns, n_rows_at_once, sums, inputs.how);
}

std::pair<double, double> coefficients_of(
    double first_squared, double product, double second_squared, double t) {
  const Coefficients found = spherical_coefficients(first_squared, product, second_squared, t);
  return {found.first, found.second};
}

/// out (2, k) from products (3, k): one pair of coefficients for each column.
void coefficients_of_columns(const py::array& out, const py::array& products, double t) {
  const auto count = static_cast<std::size_t>(products.size()) / 3;
  const double* of = numbers<double>(products, "products", 3 * count);
  double* result = writable_numbers<double>(out, "out", 2 * count);
  const py::gil_scoped_release unlocked;
  for (std::size_t x = 0; x < count; ++x) {
    const Coefficients found = spherical_coefficients(of[x], of[count + x], of[2 * count + x], t);
    result[x] = found.first;
    result[count + x] = found.second;
  }
}

double stock_ratio_of(const py::array& products, std::size_t n) {
  return stock_ratio({numbers<double>(products, "products", n * n), n * n}, n);
}

void nuslerp_rows_of(
    const py::array& out, const Arrays& w, std::size_t n_columns, double t, const Base& base, int threads) {
  const Inputs inputs(w, base, threads);
  const Buffer target = writable_buffer(out, "out");
  inputs.check_apart(target);
  const py::gil_scoped_release unlocked;
  nuslerp_rows(target, inputs.family(), n_columns, t, inputs.how);
}

void stock_rows_of(
    const py::array& out, const Arrays& w, std::size_t n_columns, const py::array& base, int threads) {
  const Inputs inputs(w, base, threads);
  const Buffer target = writable_buffer(out, "out");
  inputs.check_apart(target);
  const py::gil_scoped_release unlocked;
  stock_rows(target, inputs.family(), n_columns, inputs.how);
}

void mix_columns_of(const py::array& out, const Arrays& w, const py::array& a, std::size_t n_columns,
    const Base& base, int threads) {
  const Inputs inputs(w, base, threads);
  const Buffer target = writable_buffer(out, "out");
  const std::size_t count = w.size() * n_columns;
  const double* coefficients = numbers<double>(a, "a", count);
  inputs.check_apart(target);
  const py::gil_scoped_release unlocked;
  mix_columns(target, inputs.family(), {coefficients, count}, n_columns, inputs.how);
}

}  // namespace

void bind_spherical(py::module_& parent) {
  auto m = parent.def_submodule("spherical", "Angles and norms of tensors, whole, by row and by column.");
  m.def("chunk_products", &chunk_products_of, "out"_a, "w"_a, "chunk"_a, "base"_a = py::none(),
      "threads"_a = 1, "out[c, i, j] = inner product of w[i] - base and w[j] - base over chunk c.");
  m.def("column_products", &column_products_of, "out"_a, "w"_a, "n_columns"_a, "n_rows_at_once"_a,
      "base"_a = py::none(), "threads"_a = 1,
      "out[run, pair, x] = inner product of column x over a run of rows, for all pairs i <= j.");
  m.def("spherical_coefficients", &coefficients_of, "first_squared"_a, "product"_a, "second_squared"_a, "t"_a,
      "What spherical interpolation multiplies two vectors with.");
  m.def("spherical_coefficients_of_columns", &coefficients_of_columns, "out"_a, "products"_a, "t"_a,
      "The same for every column of products (3, k), into out (2, k).");
  m.def("stock_ratio", &stock_ratio_of, "products"_a, "n"_a,
      "How far Model Stock goes from the base to the mean of n models.");
  m.def("nuslerp_rows", &nuslerp_rows_of, "out"_a, "w"_a, "n_columns"_a, "t"_a, "base"_a = py::none(),
      "threads"_a = 1, "Spherical interpolation of two tensors, row by row.");
  m.def("stock_rows", &stock_rows_of, "out"_a, "w"_a, "n_columns"_a, "base"_a, "threads"_a = 1,
      "Model Stock, row by row.");
  m.def("mix_columns", &mix_columns_of, "out"_a, "w"_a, "a"_a, "n_columns"_a, "base"_a = py::none(),
      "threads"_a = 1, "Mix with coefficients a (n, n_columns) of each column's own.");
}

}  // namespace weightshare

#include <pybind11/stl.h>

#include <optional>

#include "numpy_buffer.hpp"
#include "weightshare/error.hpp"
#include "weightshare/selection.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

using Arrays = std::vector<py::array>;
using Base = std::optional<py::array>;

Quantity quantity_of(const std::string& name) {
  if (name == "magnitude") return Quantity::magnitude;
  if (name == "variance") return Quantity::variance;
  throw ArgumentError("quantity: expected magnitude or variance, got " + name);
}

/// The views of one call, alive while the core runs without the GIL.
struct Ranked {
  Ranked(const Arrays& w, const Base& base, const std::string& quantity, bool in_float64, int threads)
      : tensors(buffers(w, "w")), kind(quantity_of(quantity)), wide(in_float64), how(execution(threads)) {
    if (base) {
      subtracted = buffer(*base, "base");
    }
  }
  Rankable rankable() const { return {tensors, subtracted ? &*subtracted : nullptr, kind, wide}; }

  std::vector<ConstBuffer> tensors;
  std::optional<ConstBuffer> subtracted;
  Quantity kind;
  bool wide;
  Execution how;
};

py::array_t<std::int64_t> array_of(const std::vector<std::int64_t>& values) {
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

void count_arrays(const py::array& counts, const Arrays& w, const Base& base, int level,
    const std::vector<std::int64_t>& prefixes, const std::string& quantity, bool wide, int threads) {
  const Ranked ranked(w, base, quantity, wide, threads);
  const std::size_t size = ranked.rankable().rankings() * kHistogram;
  auto* result = writable_numbers<std::int64_t>(counts, "counts", size);
  const py::gil_scoped_release unlocked;
  count_digits({result, size}, ranked.rankable(), level, prefixes, ranked.how);
}

py::list gather_arrays(const Arrays& w, const Base& base, int level, const std::vector<std::size_t>& which,
    const std::vector<std::int64_t>& prefixes, const std::string& quantity, bool wide, int threads) {
  require<ShapeError>(which.size() == prefixes.size(), "prefixes: expected one for each of which");
  const Ranked ranked(w, base, quantity, wide, threads);
  std::vector<Wanted> wanted(which.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    wanted[i] = {which[i], prefixes[i]};
  }
  std::vector<Gathered> found;
  {
    const py::gil_scoped_release unlocked;
    found = gather_digits(ranked.rankable(), level, wanted, ranked.how);
  }
  py::list pairs;
  for (const Gathered& one : found) {
    pairs.append(py::make_tuple(array_of(one.keys), array_of(one.places)));
  }
  return pairs;
}

py::array_t<std::uint8_t> mark_arrays(const Arrays& w, const Base& base, std::int64_t key,
    const std::string& quantity, bool wide, int threads) {
  const Ranked ranked(w, base, quantity, wide, threads);
  const std::size_t count = w.empty() ? 0 : ranked.tensors[0].count;
  py::array_t<std::uint8_t> bits(static_cast<py::ssize_t>((count + 7) / 8));
  std::uint8_t* const data = bits.mutable_data();
  const py::gil_scoped_release unlocked;
  mark_key({data, (count + 7) / 8}, ranked.rankable(), key, ranked.how);
  return bits;
}

}  // namespace

void bind_selection(py::module_& parent) {
  auto m =
      parent.def_submodule("selection", "Exact order statistics, from histograms of digits of bit patterns.");
  m.attr("HISTOGRAM") = kHistogram;
  m.def("count_digits", &count_arrays, "counts"_a, "w"_a, "base"_a, "level"_a, "prefixes"_a,
      "quantity"_a = "magnitude", "wide"_a = false, "threads"_a = 1,
      "Add to one histogram for each tensor the digits at a level of the elements with its prefix.");
  m.def("gather_digits", &gather_arrays, "w"_a, "base"_a, "level"_a, "which"_a, "prefixes"_a,
      "quantity"_a = "magnitude", "wide"_a = false, "threads"_a = 1,
      "(keys, places) of the elements of a ranking with a prefix, digits down to the level, for each pair.");
  m.def("mark_key", &mark_arrays, "w"_a, "base"_a, "key"_a, "quantity"_a = "magnitude", "wide"_a = false,
      "threads"_a = 1, "One bit for each element, lowest first: whether its key is that one.");
}

}  // namespace weightshare

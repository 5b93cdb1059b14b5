#include <pybind11/stl.h>

#include <optional>

#include "numpy_buffer.hpp"
#include "weightshare/error.hpp"
#include "weightshare/sparsity.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

using Arrays = std::vector<py::array>;
using Doubles = std::vector<double>;
using Held = std::optional<py::array>;

constexpr std::size_t kFields = 5;

/// Rows of five integers, (kind, ...) as the kind needs them, and of two probabilities.
std::vector<Mask> masks_of(const py::array& fields, const py::array& spans, std::size_t n) {
  const auto* row = numbers<std::int64_t>(fields, "masks", n * kFields);
  const auto* span = numbers<double>(spans, "spans", n * 2);
  std::vector<Mask> masks(n);
  for (std::size_t j = 0; j < n; ++j, row += kFields, span += 2) {
    Mask& mask = masks[j];
    require<ArgumentError>(row[0] >= 0 && row[0] <= static_cast<std::int64_t>(Keep::variance),
        "masks: there is no kind " + std::to_string(row[0]));
    mask.keep = static_cast<Keep>(row[0]);
    if (mask.keep == Keep::random || mask.keep == Keep::ranked) {
      mask.stream = static_cast<std::uint64_t>(row[1]);
      mask.bound = row[2];
    } else {
      mask.key = row[1];
      mask.cutoff = row[2];
      mask.top_key = row[3];
      mask.top_cutoff = row[4];
    }
    mask.least = span[0];
    mask.most = span[1];
  }
  return masks;
}

/// The views of one call, alive while the core runs without the GIL.
struct Arguments {
  Arguments(const Arrays& w, const py::array& base, const py::array& fields, const py::array& spans,
      const std::vector<Held>& held, std::size_t first, std::size_t row_length, std::size_t chunk_length,
      bool in_float64, int threads)
      : tensors(buffers(w, "w")),
        subtracted(buffer(base, "base")),
        masks(masks_of(fields, spans, w.size())),
        start(first),
        row(row_length),
        chunk(chunk_length),
        wide(in_float64),
        how(execution(threads)) {
    require<ShapeError>(held.empty() || held.size() == w.size(), "held: expected one entry for each of w");
    for (std::size_t j = 0; j < held.size(); ++j) {
      masks[j].bits = held[j] ? numbers<std::uint8_t>(*held[j], "held", (tensors[j].count + 7) / 8) : nullptr;
    }
    for (const Mask& mask : masks) {
      require<ArgumentError>(mask.keep != Keep::held || mask.bits != nullptr, "held: a mask lacks its bits");
    }
  }
  TaskVectors vectors() const { return {tensors, &subtracted, masks, start, row, chunk, wide}; }

  std::vector<ConstBuffer> tensors;
  ConstBuffer subtracted;
  std::vector<Mask> masks;
  std::size_t start, row, chunk;
  bool wide;
  Execution how;
};

void norms_of(const py::array& all, const py::array& kept, const Arrays& w, const py::array& base,
    const py::array& masks, const py::array& spans, std::size_t start, std::size_t row, std::size_t chunk,
    int power, const Held& bits, bool wide, int threads) {
  const Arguments arguments(w, base, masks, spans, {}, start, row, chunk, wide, threads);
  const std::size_t count = arguments.subtracted.count;
  const std::size_t size = chunk == 0 ? 0 : (count + chunk - 1) / chunk * w.size();
  double* every = writable_numbers<double>(all, "all", size);
  double* some = writable_numbers<double>(kept, "kept", size);
  const std::size_t bytes = bits ? (count + 7) / 8 * w.size() : 0;
  std::uint8_t* packed = bits ? writable_numbers<std::uint8_t>(*bits, "bits", bytes) : nullptr;
  const py::gil_scoped_release unlocked;
  chunk_norms({every, size}, {some, size}, arguments.vectors(), power, {packed, bytes}, arguments.how);
}

void sum_arrays(const py::array& out, const Arrays& w, const py::array& base, const py::array& masks,
    const py::array& spans, std::size_t start, std::size_t row, std::size_t chunk,
    const Doubles& coefficients, const Doubles& votes, const Doubles& weights, double tiny, double instead,
    double strength, const std::vector<Held>& held, bool wide, int threads) {
  const Buffer target = writable_buffer(out, "out");
  const Arguments arguments(w, base, masks, spans, held, start, row, chunk, wide, threads);
  std::vector<ConstBuffer> read = arguments.tensors;
  read.push_back(arguments.subtracted);
  check_overlap({target}, read);
  const py::gil_scoped_release unlocked;
  sum_task_vectors(
      target, arguments.vectors(), {coefficients, votes, weights, tiny, instead, strength}, arguments.how);
}

}  // namespace

void bind_sparsity(py::module_& parent) {
  auto m = parent.def_submodule(
      "sparsity", "Masked task vectors, their norms, and their sum by an election of signs.");
  m.def("chunk_norms", &norms_of, "all"_a, "kept"_a, "w"_a, "base"_a, "masks"_a, "spans"_a, "start"_a,
      "row"_a, "chunk"_a, "power"_a = 1, "bits"_a = py::none(), "wide"_a = false, "threads"_a = 1,
      "Sums of |w_j - base|^power of each chunk, and of the elements that the masks keep.");
  m.def("sum_task_vectors", &sum_arrays, "out"_a, "w"_a, "base"_a, "masks"_a, "spans"_a, "start"_a, "row"_a,
      "chunk"_a, "coefficients"_a, "votes"_a = Doubles{}, "weights"_a = Doubles{}, "tiny"_a = 0.0,
      "instead"_a = 1.0, "strength"_a = 1.0, "held"_a = std::vector<Held>{}, "wide"_a = false,
      "threads"_a = 1, "out = base + the sum of the masked task vectors; see weightshare/sparsity.hpp.");
}

}  // namespace weightshare

#include <pybind11/stl.h>

#include "numpy_buffer.hpp"
#include "weightshare/elementwise.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

using Arrays = std::vector<py::array>;
using Numbers = std::vector<double>;

/// The views of one call, alive while the core runs without the GIL.
struct Inputs {
  Inputs(const Arrays& models, const py::array& start, int threads)
      : w(buffers(models, "w")), base(buffer(start, "base")), how(execution(threads)) {}
  Buffer target(const py::array& out) const {
    const Buffer view = writable_buffer(out, "out");
    std::vector<ConstBuffer> read = w;
    read.push_back(base);
    check_overlap({view}, read);
    return view;
  }

  std::vector<ConstBuffer> w;
  ConstBuffer base;
  Execution how;
};

void nearswap_arrays(const py::array& out, const py::array& w, const py::array& base, double t, int threads) {
  const Inputs inputs({w}, base, threads);
  const Buffer target = inputs.target(out);
  const py::gil_scoped_release unlocked;
  nearswap(target, inputs.w[0], inputs.base, t, inputs.how);
}

void count_active_of(
    const py::array& counts, const Arrays& w, const py::array& base, double epsilon, int threads) {
  const Inputs inputs(w, base, threads);
  const std::size_t size = 2 * w.size();
  auto* result = writable_numbers<std::int64_t>(counts, "counts", size);
  const py::gil_scoped_release unlocked;
  count_active(inputs.w, inputs.base, epsilon, {result, size}, inputs.how);
}

void mean_of_active_arrays(const py::array& out, const Arrays& w, const py::array& base, double epsilon,
    const Numbers& alone, int threads) {
  const Inputs inputs(w, base, threads);
  const Buffer target = inputs.target(out);
  const py::gil_scoped_release unlocked;
  mean_of_active(target, inputs.w, inputs.base, epsilon, alone, inputs.how);
}

void largest_delta_of(
    const py::array& out, const Arrays& w, const py::array& base, double strength, int threads) {
  const Inputs inputs(w, base, threads);
  const Buffer target = inputs.target(out);
  const py::gil_scoped_release unlocked;
  largest_delta(target, inputs.w, inputs.base, strength, inputs.how);
}

void agreed_sum_of(const py::array& out, const Arrays& w, const py::array& base, const Numbers& threshold,
    double k, double strength, int threads) {
  const Inputs inputs(w, base, threads);
  const Buffer target = inputs.target(out);
  const py::gil_scoped_release unlocked;
  agreed_sum(target, inputs.w, inputs.base, threshold, k, strength, inputs.how);
}

void weighted_mean_of(const py::array& out, const Arrays& w, const Arrays& fisher, const Numbers& a,
    double epsilon, int threads) {
  const std::vector<ConstBuffer> models = buffers(w, "w");
  const std::vector<ConstBuffer> information = buffers(fisher, "fisher");
  const Buffer target = writable_buffer(out, "out");
  std::vector<ConstBuffer> read = models;
  read.insert(read.end(), information.begin(), information.end());
  check_overlap({target}, read);
  const Execution how = execution(threads);
  const py::gil_scoped_release unlocked;
  weighted_mean(target, models, information, a, epsilon, how);
}

}  // namespace

void bind_elementwise(py::module_& parent) {
  auto m = parent.def_submodule("elementwise", "Merge rules that look at each element alone.");
  m.def("nearswap", &nearswap_arrays, "out"_a, "w"_a, "base"_a, "t"_a, "threads"_a = 1,
      "base moved towards w by at most t.");
  m.def("count_active", &count_active_of, "counts"_a, "w"_a, "base"_a, "epsilon"_a, "threads"_a = 1,
      "counts (2, n): where each delta is active beside another, and where alone.");
  m.def("mean_of_active", &mean_of_active_arrays, "out"_a, "w"_a, "base"_a, "epsilon"_a, "alone"_a,
      "threads"_a = 1, "base + mean of the active deltas, alone[j] times one that is alone.");
  m.def("largest_delta", &largest_delta_of, "out"_a, "w"_a, "base"_a, "strength"_a = 1.0, "threads"_a = 1,
      "base + strength times the delta of largest magnitude.");
  m.def("agreed_sum", &agreed_sum_of, "out"_a, "w"_a, "base"_a, "threshold"_a, "k"_a, "strength"_a = 1.0,
      "threads"_a = 1, "base + strength times the sum of the deltas where k masks hold.");
  m.def("weighted_mean", &weighted_mean_of, "out"_a, "w"_a, "fisher"_a, "a"_a, "epsilon"_a, "threads"_a = 1,
      "Mean of w weighted by a (fisher + epsilon).");
}

}  // namespace weightshare

#include <pybind11/stl.h>

#include "numpy_buffer.hpp"
#include "weightshare/error.hpp"
#include "weightshare/network.hpp"

using namespace pybind11::literals;

namespace weightshare {
namespace {

using Arrays = std::vector<py::array>;

Activation activation_of(const std::string& name) {
  if (name == "identity") return Activation::identity;
  if (name == "relu") return Activation::relu;
  if (name == "tanh") return Activation::tanh;
  if (name == "logistic") return Activation::logistic;
  throw ArgumentError("activation: expected identity, relu, tanh or logistic, got " + name);
}

std::size_t extent(const py::array& array, const std::string& name, py::ssize_t axis) {
  require<ShapeError>(
      array.ndim() == 2, name + ": expected two dimensions, got " + std::to_string(array.ndim()));
  return static_cast<std::size_t>(array.shape(axis));
}

template <class Real>
std::vector<Dense<Real>> layers_of(const Arrays& weights, const Arrays& biases) {
  require<ShapeError>(weights.size() == biases.size(), "network: needs one bias for each weight");
  std::vector<Dense<Real>> layers(weights.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::string name = "weights[" + std::to_string(l) + "]";
    Dense<Real>& layer = layers[l];
    layer.n_out = extent(weights[l], name, 0);
    layer.n_in = extent(weights[l], name, 1);
    layer.weight = numbers<Real>(weights[l], name, layer.n_out * layer.n_in);
    layer.bias = numbers<Real>(biases[l], "biases[" + std::to_string(l) + "]", layer.n_out);
  }
  require<ShapeError>(!layers.empty(), "network: needs at least one layer");
  return layers;
}

template <class Real>
const Real* input_of(const std::vector<Dense<Real>>& layers, const py::array& x) {
  const std::size_t n_in = extent(x, "x", 1);
  require<ShapeError>(n_in == layers[0].n_in,
      "x: expected " + std::to_string(layers[0].n_in) + " columns, got " + std::to_string(n_in));
  return numbers<Real>(x, "x", extent(x, "x", 0) * n_in);
}

template <class Real>
void forward_as(const py::array& out, const Arrays& weights, const Arrays& biases,
    const std::string& activation, const py::array& x) {
  const std::vector<Dense<Real>> layers = layers_of<Real>(weights, biases);
  const Real* input = input_of(layers, x);
  const std::size_t n_rows = extent(x, "x", 0);
  Real* result = writable_numbers<Real>(out, "out", n_rows * layers.back().n_out);
  const Activation activate = activation_of(activation);
  const py::gil_scoped_release unlocked;
  forward<Real>(layers, activate, input, n_rows, result);
}

template <class Real>
double gradient_as(const Arrays& weight_gradients, const Arrays& bias_gradients, const Arrays& weights,
    const Arrays& biases, const std::string& activation, const py::array& x, const py::array& labels) {
  std::vector<Dense<Real>> layers = layers_of<Real>(weights, biases);
  require<ShapeError>(weight_gradients.size() == layers.size() && bias_gradients.size() == layers.size(),
      "network: needs one gradient for each weight and bias");
  for (std::size_t l = 0; l < layers.size(); ++l) {
    Dense<Real>& layer = layers[l];
    layer.weight_gradient =
        writable_numbers<Real>(weight_gradients[l], "weight_gradients", layer.n_out * layer.n_in);
    layer.bias_gradient = writable_numbers<Real>(bias_gradients[l], "bias_gradients", layer.n_out);
  }
  const Real* input = input_of(layers, x);
  const std::size_t n_rows = extent(x, "x", 0);
  const std::int64_t* classes = numbers<std::int64_t>(labels, "labels", n_rows);
  const Activation activate = activation_of(activation);
  const py::gil_scoped_release unlocked;
  return loss_and_gradient<Real>(layers, activate, input, classes, n_rows);
}

bool is_double(const Arrays& weights) {
  return !weights.empty() && py::isinstance<py::array_t<double>>(weights[0]);
}

}  // namespace

void bind_network(py::module_& parent) {
  auto m = parent.def_submodule("network", "Multi-layer perceptrons, float32 or float64.");
  m.def(
      "forward",
      [](const py::array& out, const Arrays& weights, const Arrays& biases, const std::string& activation,
          const py::array& x) {
        (is_double(weights) ? forward_as<double> : forward_as<float>)(out, weights, biases, activation, x);
      },
      "out"_a, "weights"_a, "biases"_a, "activation"_a, "x"_a, "Logits of a perceptron, into `out`.");
  m.def(
      "loss_and_gradient",
      [](const Arrays& weight_gradients, const Arrays& bias_gradients, const Arrays& weights,
          const Arrays& biases, const std::string& activation, const py::array& x, const py::array& labels) {
        return (is_double(weights) ? gradient_as<double> : gradient_as<float>)(weight_gradients,
            bias_gradients, weights, biases, activation, x, labels);
      },
      "weight_gradients"_a, "bias_gradients"_a, "weights"_a, "biases"_a, "activation"_a, "x"_a, "labels"_a,
      "Mean cross-entropy; writes its gradient.");
}

}  // namespace weightshare

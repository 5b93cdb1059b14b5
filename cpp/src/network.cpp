#include "weightshare/network.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <Eigen/Core>

#include "weightshare/error.hpp"

namespace weightshare {
namespace {

template <class Real>
using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class Real>
using ConstMap = Eigen::Map<const Matrix<Real>>;
template <class Real>
using Map = Eigen::Map<Matrix<Real>>;
template <class Real>
using ConstRow = Eigen::Map<const Eigen::Matrix<Real, 1, Eigen::Dynamic>>;
template <class Real>
using Row = Eigen::Map<Eigen::Matrix<Real, 1, Eigen::Dynamic>>;

Eigen::Index index(std::size_t size) {
  return static_cast<Eigen::Index>(size);
}

template <class Real>
ConstMap<Real> weight_of(const Dense<Real>& layer) {
  return {layer.weight, index(layer.n_out), index(layer.n_in)};
}

template <class Real>
void check(std::span<const Dense<Real>> layers) {
  require<ShapeError>(!layers.empty(), "network: needs at least one layer");
  for (std::size_t l = 1; l < layers.size(); ++l) {
    require<ShapeError>(layers[l].n_in == layers[l - 1].n_out,
        "network: layer " + std::to_string(l) + " takes " + std::to_string(layers[l].n_in) +
            " inputs, the layer before it gives " + std::to_string(layers[l - 1].n_out));
  }
}

template <class Real>
void activate(Activation activation, Matrix<Real>& z) {
  switch (activation) {
    case Activation::identity:
      return;
    case Activation::relu:
      z = z.cwiseMax(Real{0});
      return;
    case Activation::tanh:
      z = z.array().tanh();
      return;
    case Activation::logistic:
      z = (Real{1} + (-z.array()).exp()).inverse();
  }
}

/// delta *= the derivative of the activation, from its value y.
template <class Real>
void deactivate(Activation activation, const Matrix<Real>& y, Matrix<Real>& delta) {
  switch (activation) {
    case Activation::identity:
      return;
    case Activation::relu:
      delta.array() *= (y.array() > Real{0}).template cast<Real>();
      return;
    case Activation::tanh:
      delta.array() *= Real{1} - y.array().square();
      return;
    case Activation::logistic:
      delta.array() *= y.array() * (Real{1} - y.array());
  }
}

/// The values of all layers: what each gives to the next, and last the logits.
template <class Real>
std::vector<Matrix<Real>> values_of(
    std::span<const Dense<Real>> layers, Activation activation, const Real* x, std::size_t n_rows) {
  check(layers);
  std::vector<Matrix<Real>> values(layers.size());
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const Dense<Real>& layer = layers[l];
    const ConstMap<Real> input(l == 0 ? x : values[l - 1].data(), index(n_rows), index(layer.n_in));
    values[l].noalias() = input * weight_of(layer).transpose();
    values[l].rowwise() += ConstRow<Real>(layer.bias, index(layer.n_out));
    if (l + 1 < layers.size()) {
      activate(activation, values[l]);
    }
  }
  return values;
}

/// Turns logits into the gradient of the mean cross-entropy with respect to them; returns the loss.
template <class Real>
double softmax_gradient(Matrix<Real>& logits, const std::int64_t* labels) {
  double loss = 0.0;
  const auto n_rows = static_cast<double>(logits.rows());
  for (Eigen::Index i = 0; i < logits.rows(); ++i) {
    auto row = logits.row(i);
    row.array() -= row.maxCoeff();
    const Real chosen = row(labels[i]);
    row = row.array().exp();
    const Real total = row.sum();
    loss += std::log(static_cast<double>(total)) - static_cast<double>(chosen);
    row /= total;
    row(labels[i]) -= Real{1};
    row /= static_cast<Real>(n_rows);
  }
  return loss / n_rows;
}

void check_labels(const std::int64_t* labels, std::size_t n_rows, std::size_t n_classes) {
  require<ShapeError>(n_rows > 0, "network: needs at least one sample");
  for (std::size_t i = 0; i < n_rows; ++i) {
    require<ArgumentError>(labels[i] >= 0 && static_cast<std::size_t>(labels[i]) < n_classes,
        "network: label " + std::to_string(labels[i]) + " of sample " + std::to_string(i) +
            " is not in [0, " + std::to_string(n_classes) + ")");
  }
}

}  // namespace

template <class Real>
void forward(std::span<const Dense<Real>> layers, Activation activation, const Real* x, std::size_t n_rows,
    Real* out) {
  const std::vector<Matrix<Real>> values = values_of(layers, activation, x, n_rows);
  std::copy_n(values.back().data(), values.back().size(), out);
}

template <class Real>
double loss_and_gradient(std::span<const Dense<Real>> layers, Activation activation, const Real* x,
    const std::int64_t* labels, std::size_t n_rows) {
  check(layers);
  check_labels(labels, n_rows, layers.back().n_out);
  std::vector<Matrix<Real>> values = values_of(layers, activation, x, n_rows);
  Matrix<Real> delta = std::move(values.back());
  const double loss = softmax_gradient(delta, labels);
  for (std::size_t l = layers.size(); l-- > 0;) {
    const Dense<Real>& layer = layers[l];
    const ConstMap<Real> input(l == 0 ? x : values[l - 1].data(), index(n_rows), index(layer.n_in));
    Map<Real>(layer.weight_gradient, index(layer.n_out), index(layer.n_in)).noalias() =
        delta.transpose() * input;
    // summed into memory of our own: the order of Eigen's sum depends on where its result is aligned
    const Eigen::Matrix<Real, 1, Eigen::Dynamic> bias_gradient = delta.colwise().sum();
    Row<Real>(layer.bias_gradient, index(layer.n_out)) = bias_gradient;
    if (l > 0) {
      Matrix<Real> before = delta * weight_of(layer);
      deactivate(activation, values[l - 1], before);
      delta = std::move(before);
    }
  }
  return loss;
}

template void forward<float>(std::span<const Dense<float>>, Activation, const float*, std::size_t, float*);
template void forward<double>(
    std::span<const Dense<double>>, Activation, const double*, std::size_t, double*);
template double loss_and_gradient<float>(
    std::span<const Dense<float>>, Activation, const float*, const std::int64_t*, std::size_t);
template double loss_and_gradient<double>(
    std::span<const Dense<double>>, Activation, const double*, const std::int64_t*, std::size_t);

}  // namespace weightshare

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace weightshare {

enum class Activation : std::uint8_t { identity, relu, tanh, logistic };

/// One dense layer, z = x Wᵀ + b, followed by an activation. Row-major, float or double.
template <class Real>
struct Dense {
  const Real* weight = nullptr;  ///< (n_out, n_in)
  const Real* bias = nullptr;    ///< (n_out,)
  std::size_t n_in = 0;
  std::size_t n_out = 0;
  Real* weight_gradient = nullptr;  ///< (n_out, n_in), written by loss_and_gradient
  Real* bias_gradient = nullptr;    ///< (n_out,), written by loss_and_gradient
};

/// Output of a multi-layer perceptron before the softmax: out (n_rows, last n_out).
///
/// x (n_rows, first n_in). Hidden layers use `activation`, the last layer none. Throws ShapeError when
/// the layers do not fit each other.
template <class Real>
void forward(
    std::span<const Dense<Real>> layers, Activation activation, const Real* x, std::size_t n_rows, Real* out);

/// Mean cross-entropy of the softmax of the last layer over n_rows samples, and its gradient.
///
/// labels (n_rows,) in [0, last n_out): anything else throws ArgumentError. Returns the loss; writes the
/// gradients of the mean. Source: Rumelhart et al. 1986 (back-propagation).
template <class Real>
double loss_and_gradient(std::span<const Dense<Real>> layers, Activation activation, const Real* x,
    const std::int64_t* labels, std::size_t n_rows);

}  // namespace weightshare

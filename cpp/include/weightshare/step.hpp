#pragma once

#include "weightshare/buffer.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

/// One step of stochastic gradient descent.
struct Step {
  double rate = 0.0;          ///< learning rate, >= 0
  double momentum = 0.0;      ///< in [0, 1)
  double weight_decay = 0.0;  ///< decoupled, >= 0
  bool nesterov = false;
};

/// Takes one step in place, in one pass:
///
///   v <- momentum v + g;   u = g + momentum v (Nesterov) or v;   w <- (1 - rate weight_decay) w - rate u
///
/// Arithmetic is float32, or float64 when w is f64. Same bits for every thread count and instruction set.
///
/// w  parameters, any element        g  their gradient, any element, same count
/// v  velocity, f32 (f64 when w is f64), same count; not looked at when momentum is 0 (count 0 is legal)
/// Throws ShapeError or ElementError when they do not fit.
/// Source: Sutskever et al. 2013 (momentum, Nesterov); Loshchilov & Hutter 2019, arXiv:1711.05101 (decay).
void sgd_step(
    const Buffer& w, const ConstBuffer& g, const Buffer& v, const Step& step, const Execution& execution);

}  // namespace weightshare

#pragma once

#include <span>

#include "weightshare/buffer.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

/// A tensor beside its base, as rows of n_columns elements.
struct RowPair {
  ConstBuffer w;
  ConstBuffer base;
  std::size_t n_columns = 1;
};

/// For every row Σ p ln(p / q), at least 0, with p = softmax(w row) + 1e-8 and q that of the base: out has
/// n_rows float64. In float64, with sums in four fixed lanes and our own exp and log: the same bits for every
/// thread count and instruction set. NaN where a row holds NaN or +infinity. Throws ShapeError.
void row_divergences(std::span<double> out, const RowPair& rows, const Execution& execution);

/// out = |w - base| times the number of the row, as float32; infinity where that is too large. The
/// difference is taken in float32, or in float64 when a tensor is f64.
void importance(
    std::span<float> out, const RowPair& rows, std::span<const double> of_rows, const Execution& execution);

/// out = w where its importance is at or above the threshold, else the base: exactly their elements.
/// A NaN importance keeps w.
void keep_important(const Buffer& out, const RowPair& rows, std::span<const double> of_rows, double threshold,
    const Execution& execution);

}  // namespace weightshare

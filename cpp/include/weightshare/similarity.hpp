#pragma once

#include <cstdint>
#include <span>

#include "weightshare/buffer.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

/// n tensors of one count, and what is subtracted from each before they are compared.
struct Family {
  std::span<const ConstBuffer> w;
  /// A tensor that is subtracted from every w (task vectors), or nullptr.
  const ConstBuffer* base = nullptr;
  /// n numbers subtracted from the elements of each w - base, or none.
  std::span<const double> shift;
};

/// Sums of the elements of each w - base: out has n float64. Throws ShapeError if counts differ.
void sums(const Family& family, std::span<double> out, const Execution& execution);

/// Inner products of all pairs: out (n, n) float64, row by row, each tensor read once.
///
/// Sums are float64 in four fixed lanes over fixed chunks of elements: the same bits for every thread
/// count and instruction set. Throws ShapeError if counts differ.
void inner_products(const Family& family, std::span<double> out, const Execution& execution);

/// ‖w_i - w_j‖² of all pairs from the differences themselves, so that near-equal tensors do not cancel.
/// Otherwise as inner_products; the base and the shift are not looked at.
void squared_distances(const Family& family, std::span<double> out, const Execution& execution);

/// For each pair, the number of elements that are both non-zero, and of those the number of equal sign.
/// same, both: (n, n) row by row. NaN counts as zero. The shift is not looked at.
void count_signs(const Family& family, std::span<std::int64_t> same, std::span<std::int64_t> both,
    const Execution& execution);

/// Sums over the rows of a (n_rows, n_columns) tensor of the cosines between equal rows of all pairs;
/// a row of zeros has cosine 0 with every row. out (n, n) float64; out_ii is NaN when w_i is not finite.
void row_cosine_sums(
    const Family& family, std::size_t n_columns, std::span<double> out, const Execution& execution);

}  // namespace weightshare

#pragma once

#include <span>

#include "weightshare/buffer.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

/// What deltas are taken from, and what they are added to.
struct Origin {
  const ConstBuffer* base = nullptr;   ///< subtracted from every w, or nullptr
  const ConstBuffer* start = nullptr;  ///< added to every sum; nullptr means the base
};

/// Mixes n tensors into m: out_i = Σ_j a_ij w_j, in one pass over memory.
///
/// With an origin, deltas are mixed: out_i = start + Σ_j a_ij (w_j - base), so a delta of zero gives the
/// start back bit for bit. Sums run in the order of j, in float32, or in float64 when any buffer is f64,
/// and each result is rounded once to the element of its out. A coefficient of 0 leaves its tensor out of
/// the sum altogether (a NaN there does not spread); a row of zeros gives zeros (or the start). Results are
/// the same bits for every thread count and instruction set.
///
/// out     m buffers of one count, any elements; each is one of the inputs itself, or overlaps none
/// w       n >= 1 buffers of that count, any elements
/// a       m*n finite coefficients, row by row (row i makes out_i)
/// origin  buffers of that count, any elements
/// Throws ShapeError when the counts or the number of coefficients do not fit.
/// Source: Wortsman et al. 2022, arXiv:2203.05482 (a_ij = 1/n is their uniform soup); with a base:
/// Ilharco et al. 2023, arXiv:2212.04089.
void mix(std::span<const Buffer> out, std::span<const ConstBuffer> w, std::span<const double> a,
    const Origin& origin, const Execution& execution);

}  // namespace weightshare

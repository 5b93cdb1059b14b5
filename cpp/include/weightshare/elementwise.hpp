#pragma once

#include <cstdint>
#include <span>

#include "weightshare/buffer.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

// Merge rules that look at each element alone. τ_j = w_j - base; a zero delta gives the base back bit for
// bit, and a NaN in any input gives NaN. Arithmetic is float32, or float64 when any buffer is f64; each
// result is rounded once to the element of out. The same bits for every thread count and instruction set.
// Every buffer has one count; out is one of the inputs itself, or overlaps none. Throws ShapeError.

/// base moved towards w by at most t: base + clamp(t / max(|τ|, 1e-6), 0, 1) τ; w itself where that is 1.
void nearswap(
    const Buffer& out, const ConstBuffer& w, const ConstBuffer& base, double t, const Execution& execution);

/// Counts for each tensor where |τ_j| > epsilon and so is another's, and where it is the only one:
/// counts holds n numbers of the first kind, then n of the second.
void count_active(std::span<const ConstBuffer> w, const ConstBuffer& base, double epsilon,
    std::span<std::int64_t> counts, const Execution& execution);

/// base + the mean of the τ_j with |τ_j| > epsilon; where it is one alone, alone[j] times it.
void mean_of_active(const Buffer& out, std::span<const ConstBuffer> w, const ConstBuffer& base,
    double epsilon, std::span<const double> alone, const Execution& execution);

/// base + strength times the τ_j of largest magnitude, the first of equal ones.
/// Source: Marczak et al. 2024, arXiv:2407.06322 (MagMax).
void largest_delta(const Buffer& out, std::span<const ConstBuffer> w, const ConstBuffer& base,
    double strength, const Execution& execution);

/// base + strength Σ τ_j where at least k of the n masks |τ_j| >= threshold_j |Σ τ - τ_j| hold, else base.
/// Source: Wang et al. 2024, arXiv:2405.07813 (TALL masks, consensus merging).
void agreed_sum(const Buffer& out, std::span<const ConstBuffer> w, const ConstBuffer& base,
    std::span<const double> threshold, double k, double strength, const Execution& execution);

/// Σ a_j (F_j + epsilon) w_j / Σ a_j (F_j + epsilon), in float64; a negative F_j counts as 0. A tensor whose
/// a_j is 0 is left out.
/// Source: Matena & Raffel 2022, arXiv:2111.09832 (Fisher-weighted averaging).
void weighted_mean(const Buffer& out, std::span<const ConstBuffer> w, std::span<const ConstBuffer> fisher,
    std::span<const double> a, double epsilon, const Execution& execution);

}  // namespace weightshare

#pragma once

#include <span>

#include "weightshare/similarity.hpp"

namespace weightshare {

/// Coefficients of two vectors.
struct Coefficients {
  double first = 0.0;
  double second = 0.0;
};

/// Inner products of all pairs, apart for every `chunk` elements: out (chunks, n, n) float64.
///
/// Sums run in four fixed lanes within a chunk: the same bits for every thread count and instruction set.
/// Of the family, w and base are looked at. Throws ShapeError when the counts or the output do not fit.
void chunk_products(
    const Family& family, std::size_t chunk, std::span<double> out, const Execution& execution);

/// Inner products of all pairs i <= j of every column of (n_rows, n_columns) tensors, apart for every
/// `n_rows_at_once` rows: out (runs, n (n + 1) / 2, n_columns) float64. Sums run in the order of the rows.
void column_products(const Family& family, std::size_t n_columns, std::size_t n_rows_at_once,
    std::span<double> out, const Execution& execution);

/// What spherical interpolation multiplies two vectors with, from their inner products.
///
/// With u = v / max(‖v‖, 1e-7) and the angle between the two u: sin((1-t) angle) / sin(angle) and
/// sin(t angle) / sin(angle), or 1-t and t where 1 - cos² <= 1e-12: vectors that are opposite but for
/// rounding have no angle to go through. NaN where a product is not finite. Source: Shoemake 1985.
Coefficients spherical_coefficients(double first_squared, double product, double second_squared, double t);

/// How far from the base to the mean of n task vectors, from their inner products (n, n), n >= 2:
/// n c / (1 + (n-1) c), c the mean over pairs of clamp(<i, j> / max(‖i‖ ‖j‖, 1e-6), -1, 1); 0 where
/// |1 + (n-1) c| < 1e-8, NaN where a product is not finite. Source: Jang et al. 2024, arXiv:2403.19522 (Model
/// Stock).
double stock_ratio(std::span<const double> products, std::size_t n);

/// Spherical interpolation of two tensors row by row, or of their deltas to the base, which is added back.
///
/// out  n_rows * n_columns elements, any element; w of the family: two inputs of that count
/// Arithmetic is float32, or float64 when any buffer is f64; norms and angles are float64.
/// Throws ShapeError when the counts do not fit.
void nuslerp_rows(
    const Buffer& out, const Family& family, std::size_t n_columns, double t, const Execution& execution);

/// base + stock_ratio of a row * mean of the task vectors of that row. The family has a base, n >= 2.
void stock_rows(const Buffer& out, const Family& family, std::size_t n_columns, const Execution& execution);

/// out[r, x] = base[r, x] + Σ_j a[j, x] (w_j - base)[r, x]; without a base, Σ_j a[j, x] w_j[r, x].
/// a (n, n_columns). A coefficient of 0 leaves its element out of the sum.
void mix_columns(const Buffer& out, const Family& family, std::span<const double> a, std::size_t n_columns,
    const Execution& execution);

}  // namespace weightshare

#include "weightshare/fusion.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "weightshare/elementary.hpp"
#include "widened.hpp"

namespace weightshare {
namespace {

constexpr double kFloor = 1e-8;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::size_t kLanes = 4;  // fixed, so that sums do not depend on the instruction set

std::size_t check(const RowPair& rows) {
  require<ShapeError>(rows.w.count == rows.base.count, "fusion: both tensors must have as many elements");
  require<ShapeError>(rows.n_columns > 0 && rows.w.count % rows.n_columns == 0,
      "fusion: " + std::to_string(rows.w.count) + " elements are no whole rows of " +
          std::to_string(rows.n_columns));
  return rows.w.count / rows.n_columns;
}

void check_rows(const RowPair& rows, std::size_t found) {
  const std::size_t n_rows = check(rows);
  require<ShapeError>(found == n_rows, "fusion: expected " + std::to_string(n_rows) +
                                           " numbers, one for each row, got " + std::to_string(found));
}

/// A sum in four lanes.
struct Sum {
  void add(const double* values, std::size_t count) {
    std::size_t x = 0;
    for (; x + kLanes <= count; x += kLanes) {
      for (std::size_t k = 0; k < kLanes; ++k) {
        lane[k] += values[x + k];
      }
    }
    for (; x < count; ++x) {
      lane[x % kLanes] += values[x];
    }
  }
  double total() const { return (lane[0] + lane[1]) + (lane[2] + lane[3]); }
  double lane[kLanes] = {};
};

/// Calls body(start, count) for the blocks of a row.
template <class Body>
void for_row(std::size_t start, std::size_t stop, const Body& body) {
  for (std::size_t x = start; x < stop; x += kWideBlock) {
    body(x, std::min(kWideBlock, stop - x));
  }
}

/// The range of a row's values; NaN is passed over, exp meets it later.
struct Range {
  void add(const double* values, std::size_t count) {
    std::size_t x = 0;
    for (; x + kLanes <= count; x += kLanes) {
      for (std::size_t k = 0; k < kLanes; ++k) {
        add_one(values[x + k], k);
      }
    }
    for (; x < count; ++x) {
      add_one(values[x], 0);
    }
  }
  void add_one(double value, std::size_t k) {
    high[k] = value > high[k] ? value : high[k];
    low[k] = value < low[k] ? value : low[k];
  }
  double largest() const { return *std::max_element(high, high + kLanes); }
  double least() const { return *std::min_element(low, low + kLanes); }

  double high[kLanes] = {-kInfinity, -kInfinity, -kInfinity, -kInfinity};
  double low[kLanes] = {kInfinity, kInfinity, kInfinity, kInfinity};
};

constexpr double kNearOne = 0.1;    // |p - q| / (p + q) up to which the logarithm of p / q is a short series
constexpr double kNearZero = 0.34;  // |x| up to which exp(x) needs no reduction

template <std::size_t n>
double polynomial(const double (&c)[n], double x) {
  double sum = c[n - 1];
  for (std::size_t k = n - 1; k > 0; --k) {
    sum = sum * x + c[k - 1];
  }
  return sum;
}

/// exp of numbers within kNearZero, as weights are, to 5e-15: a third of the work of any number.
void exp_near_zero(double* values, std::size_t count) {
  constexpr double kTaylor[] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040,
      1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800};
  for (std::size_t k = 0; k < count; ++k) {
    values[k] = polynomial(kTaylor, values[k]);
  }
}

/// p = p log(p / q). Where all of a block are near one another, by the series of the inverse hyperbolic
/// tangent, which takes no logarithm.
void multiply_by_log_ratio(double* p, double* q, std::size_t count) {
  constexpr double kSeries[] = {2.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13};
  double ratio[kWideBlock];
  std::size_t apart = 0;  // NaN is not apart, and shows in either way
  for (std::size_t k = 0; k < count; ++k) {
    ratio[k] = (p[k] - q[k]) / (p[k] + q[k]);
    apart += static_cast<std::size_t>(std::fabs(ratio[k]) > kNearOne);
  }
  if (apart == 0) {
    for (std::size_t k = 0; k < count; ++k) {
      p[k] *= ratio[k] * polynomial(kSeries, ratio[k] * ratio[k]);
    }
    return;
  }
  for (std::size_t k = 0; k < count; ++k) {
    q[k] = p[k] / q[k];
  }
  elementary::log(std::span(q, count));
  for (std::size_t k = 0; k < count; ++k) {
    p[k] *= q[k];
  }
}

/// exp(element - largest) of one row of one tensor, or exp(element) where all are small, and 1 / their sum. A
/// row that fits the memory is computed once, a longer one again each time that it is asked for.
class Exponentials {
 public:
  Exponentials(const ConstBuffer& of, std::size_t n_columns)
      : of_(of), kept_(n_columns <= kKeptRow ? n_columns : 0), block_(1) {}

  void begin(std::size_t start, std::size_t stop) {
    start_ = start;
    Range range;
    for_row(start, stop, [&](std::size_t x, std::size_t count) {
      double* values = place(x);
      widen<double>(of_.element, of_.at(x), values, count);
      range.add(values, count);
    });
    largest_ = range.largest();
    is_small_ = largest_ <= kNearZero && range.least() >= -kNearZero;
    Sum sum;
    for_row(start, stop, [&](std::size_t x, std::size_t count) {
      double* values = place(x);
      if (kept_.empty()) {
        widen<double>(of_.element, of_.at(x), values, count);
      }
      sum.add(shifted_exp(values, count), count);
    });
    scale_ = 1.0 / sum.total();
  }

  /// The probabilities of a block, never below the floor.
  double* probabilities(std::size_t x, std::size_t count) {
    double* values = place(x);
    if (kept_.empty()) {
      widen<double>(of_.element, of_.at(x), values, count);
      shifted_exp(values, count);
    }
    for (std::size_t k = 0; k < count; ++k) {
      values[k] = values[k] * scale_ + kFloor;
    }
    return values;
  }

 private:
  static constexpr std::size_t kKeptRow = std::size_t{1} << 14U;  // two of them in the second-level cache

  double* place(std::size_t x) { return kept_.empty() ? block_.row(0) : kept_.data() + (x - start_); }

  const double* shifted_exp(double* values, std::size_t count) const {
    if (is_small_) {
      exp_near_zero(values, count);
      return values;
    }
    for (std::size_t k = 0; k < count; ++k) {
      values[k] -= largest_;
    }
    elementary::exp(std::span(values, count));
    return values;
  }

  const ConstBuffer& of_;
  std::vector<double> kept_;
  Widened<double> block_;
  std::size_t start_ = 0;
  double largest_ = 0.0;
  bool is_small_ = false;
  double scale_ = 1.0;
};

double divergence(Exponentials& first, Exponentials& second, std::size_t start, std::size_t stop) {
  first.begin(start, stop);
  second.begin(start, stop);
  Sum sum;
  for_row(start, stop, [&](std::size_t x, std::size_t count) {
    double* p = first.probabilities(x, count);
    multiply_by_log_ratio(p, second.probabilities(x, count), count);
    sum.add(p, count);
  });
  const double total = sum.total();
  return total < 0.0 ? 0.0 : total;
}

/// Calls body(start, stop, row) for the part of each row in [start, stop).
template <class Body>
void for_parts(std::size_t start, std::size_t stop, std::size_t n_columns, const Body& body) {
  while (start < stop) {
    const std::size_t row = start / n_columns;
    const std::size_t end = std::min(stop, (row + 1) * n_columns);
    body(start, end, row);
    start = end;
  }
}

/// Row 1 = |w - base| as Real times the number of the row, rounded to float.
template <class Real>
void importance_block(Widened<Real>& scratch, Widened<float>& result, const RowPair& rows,
    std::span<const double> of_rows, std::size_t start, std::size_t count) {
  const Real* base = scratch.read(0, rows.base, start, count);
  const Real* delta = scratch.read_less(1, rows.w, start, count, base);
  float* target = result.row(0);
  for_parts(start, start + count, rows.n_columns, [&](std::size_t from, std::size_t to, std::size_t row) {
    const auto factor = static_cast<Real>(of_rows[row]);
    for (std::size_t x = from - start; x < to - start; ++x) {
      target[x] = static_cast<float>(std::fabs(delta[x]) * factor);
    }
  });
}

template <class Real>
struct Scratch {
  Widened<Real> values{3};
  Widened<float> importance{1};
};

/// Calls put(scratch, start, count) once the importance of a block is in the scratch.
template <class Real, class Put>
void for_importance(
    const RowPair& rows, std::span<const double> of_rows, const Execution& execution, const Put& put) {
  for_wide_blocks(
      rows.w.count, execution, [] { return Scratch<Real>(); },
      [&](Scratch<Real>& scratch, std::size_t start, std::size_t count) {
        importance_block<Real>(scratch.values, scratch.importance, rows, of_rows, start, count);
        put(scratch, start, count);
      });
}

bool is_wide(const RowPair& rows) {
  return is_f64(rows.w) || is_f64(rows.base);
}

template <class Real>
void keep_block(Scratch<Real>& scratch, const Buffer& out, const RowPair& rows, double threshold,
    std::size_t start, std::size_t count) {
  const Real* base = scratch.values.row(0);
  const Real* whole = scratch.values.read(1, rows.w, start, count);
  const float* found = scratch.importance.row(0);
  Real* result = scratch.values.row(2);
  for (std::size_t x = 0; x < count; ++x) {
    result[x] = static_cast<double>(found[x]) < threshold ? base[x] : whole[x];
  }
  narrow<Real>(out.element, result, out.at(start), count);
}

}  // namespace

void row_divergences(std::span<double> out, const RowPair& rows, const Execution& execution) {
  check_rows(rows, out.size());
  const std::size_t at_once = std::max<std::size_t>(1, kWideChunk / rows.n_columns);
  for_blocks((out.size() + at_once - 1) / at_once, execution, [&](std::size_t run) {
    Exponentials first(rows.w, rows.n_columns);
    Exponentials second(rows.base, rows.n_columns);
    const std::size_t stop = std::min(out.size(), (run + 1) * at_once);
    for (std::size_t row = run * at_once; row < stop; ++row) {
      out[row] = divergence(first, second, row * rows.n_columns, (row + 1) * rows.n_columns);
    }
  });
}

void importance(
    std::span<float> out, const RowPair& rows, std::span<const double> of_rows, const Execution& execution) {
  check_rows(rows, of_rows.size());
  require<ShapeError>(out.size() == rows.w.count, "fusion: the output must have as many elements");
  const auto put = [&](auto& scratch, std::size_t start, std::size_t count) {
    std::copy_n(scratch.importance.row(0), count, out.data() + start);
  };
  if (is_wide(rows)) {
    for_importance<double>(rows, of_rows, execution, put);
  } else {
    for_importance<float>(rows, of_rows, execution, put);
  }
}

void keep_important(const Buffer& out, const RowPair& rows, std::span<const double> of_rows, double threshold,
    const Execution& execution) {
  check_rows(rows, of_rows.size());
  require<ShapeError>(out.count == rows.w.count, "fusion: the output must have as many elements");
  const auto put = [&](auto& scratch, std::size_t start, std::size_t count) {
    keep_block(scratch, out, rows, threshold, start, count);
  };
  if (is_wide(rows)) {
    for_importance<double>(rows, of_rows, execution, put);
  } else {
    for_importance<float>(rows, of_rows, execution, put);
  }
}

}  // namespace weightshare

#include "weightshare/spherical.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "pair_sums.hpp"
#include "weightshare/elementary.hpp"
#include "widened.hpp"

namespace weightshare {
namespace {

constexpr double kSmallestNorm = 1e-7;
constexpr double kOneLine = 1e-12;  // 1 - cos² up to this is one line: well above the rounding of a cosine
constexpr double kSmallestProduct = 1e-6;
constexpr double kSingular = 1e-8;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<ConstBuffer> all_of(const Family& family) {
  std::vector<ConstBuffer> all(family.w.begin(), family.w.end());
  if (family.base != nullptr) {
    all.push_back(*family.base);
  }
  return all;
}

std::size_t check(const Family& family) {
  return equal_count(all_of(family), "spherical");
}

std::size_t check(const Buffer& out, const Family& family, std::size_t n_columns) {
  const std::size_t count = check(family);
  require<ShapeError>(out.count == count, "spherical: the output must have as many elements as an input");
  require<ShapeError>(n_columns > 0 && count % n_columns == 0,
      "spherical: " + std::to_string(count) + " elements are no whole rows of " + std::to_string(n_columns));
  return count;
}

std::size_t runs_of(std::size_t count, std::size_t size) {
  return (count + size - 1) / size;
}

template <class Term>
void chunk_products_of(
    const Family& family, std::size_t chunk, std::span<double> out, const Execution& execution) {
  const std::size_t count = family.w[0].count;
  const std::size_t n = family.w.size();
  for_blocks(runs_of(count, chunk), execution, [&](std::size_t run) {
    Panel panel(family);
    PairSums<Term> pairs(n);
    add_run(panel, pairs, run * chunk, std::min(count, (run + 1) * chunk));
    for (std::size_t k = 0; k < n * n; ++k) {
      out[run * n * n + k] = pairs.total(std::min(k / n, k % n), std::max(k / n, k % n));
    }
  });
}

/// Adds one stretch of a row to the products of its columns, which begin at `sums` and lie n_columns apart.
void add_columns(Widened<double>& values, const Family& family, std::size_t start, std::size_t count,
    double* sums, std::size_t n_columns) {
  const std::size_t n = family.w.size();
  const double* base = family.base == nullptr ? nullptr : values.read(n, *family.base, start, count);
  for (std::size_t j = 0; j < n; ++j) {
    if (base == nullptr) {
      values.read(j, family.w[j], start, count);
    } else {
      values.read_less(j, family.w[j], start, count, base);
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i; j < n; ++j, sums += n_columns) {
      const double* left = values.row(i);
      const double* right = values.row(j);
      for (std::size_t x = 0; x < count; ++x) {
        sums[x] += left[x] * right[x];
      }
    }
  }
}

/// out = base + Σ_j a_j (w_j - base) over stretches of one tensor, a coefficient for each stretch.
template <class Real>
class Combiner {
 public:
  Combiner(const Buffer& out, const Family& family)
      : out_(out), family_(family), values_(3), inputs_(family.w.size()) {}

  void combine(std::size_t start, std::size_t stop, const std::vector<double>& a) {
    for (std::size_t x = start; x < stop; x += kWideBlock) {
      combine_block(x, std::min(kWideBlock, stop - x), a);
    }
  }

 private:
  void combine_block(std::size_t start, std::size_t count, const std::vector<double>& a) {
    const bool deltas = family_.base != nullptr;
    const Real* base = deltas ? values_.read(0, *family_.base, start, count) : nullptr;
    Real* sums = values_.row(2);
    std::fill_n(sums, count, Real{0});
    for (std::size_t j = 0; j < inputs_; ++j) {
      if (a[j] == 0.0) {
        continue;
      }
      const Real* values = deltas ? values_.read_less(1, family_.w[j], start, count, base)
                                  : values_.read(1, family_.w[j], start, count);
      const auto factor = static_cast<Real>(a[j]);
      for (std::size_t x = 0; x < count; ++x) {
        sums[x] += factor * values[x];
      }
    }
    if (deltas) {
      add_deltas(base, sums, sums, count);
    }
    narrow<Real>(out_.element, sums, out_.at(start), count);
  }

  const Buffer& out_;
  const Family& family_;
  Widened<Real> values_;
  std::size_t inputs_;
};

/// For every row: its inner products, what `coefficients(products, a)` makes of them, and the sum.
template <class Real, class Term, class Find>
void combine_rows_with(const Buffer& out, const Family& family, std::size_t n_columns,
    const Execution& execution, const Find& coefficients) {
  const std::size_t n = family.w.size();
  const std::size_t n_rows = out.count / n_columns;
  const std::size_t at_once = std::max<std::size_t>(1, kWideChunk / n_columns);
  for_blocks(runs_of(n_rows, at_once), execution, [&](std::size_t run) {
    Panel panel(family);
    PairSums<Term> pairs(n);
    Combiner<Real> combiner(out, family);
    std::vector<double> products(n * n);
    std::vector<double> a(n);
    const std::size_t stop = std::min(n_rows, (run + 1) * at_once);
    for (std::size_t row = run * at_once; row < stop; ++row) {
      pairs.clear();
      add_run(panel, pairs, row * n_columns, (row + 1) * n_columns);
      for (std::size_t k = 0; k < n * n; ++k) {
        products[k] = pairs.total(std::min(k / n, k % n), std::max(k / n, k % n));
      }
      coefficients(products, a);
      combiner.combine(row * n_columns, (row + 1) * n_columns, a);
    }
  });
}

template <class Find>
void combine_rows(const Buffer& out, const Family& family, std::size_t n_columns, const Execution& execution,
    const Find& coefficients) {
  if (any_f64(all_of(family)) || is_f64(out)) {
    combine_rows_with<double, Product>(out, family, n_columns, execution, coefficients);
  } else if (products_are_exact(family)) {
    combine_rows_with<float, ExactProduct>(out, family, n_columns, execution, coefficients);
  } else {
    combine_rows_with<float, Product>(out, family, n_columns, execution, coefficients);
  }
}

/// One stretch of a row whose columns have coefficients of their own.
template <class Real>
void mix_stretch(Widened<Real>& values, const Buffer& out, const Family& family, const Real* a,
    std::size_t n_columns, std::size_t start, std::size_t count) {
  const bool deltas = family.base != nullptr;
  const Real* base = deltas ? values.read(0, *family.base, start, count) : nullptr;
  Real* sums = values.row(2);
  std::fill_n(sums, count, Real{0});
  for (std::size_t j = 0; j < family.w.size(); ++j) {
    const Real* value = deltas ? values.read_less(1, family.w[j], start, count, base)
                               : values.read(1, family.w[j], start, count);
    const Real* factor = a + j * n_columns;
    for (std::size_t x = 0; x < count; ++x) {
      const Real term = factor[x] * value[x];
      sums[x] += factor[x] == Real{0} ? Real{0} : term;
    }
  }
  if (deltas) {
    add_deltas(base, sums, sums, count);
  }
  narrow<Real>(out.element, sums, out.at(start), count);
}

template <class Real>
void mix_columns_as(const Buffer& out, const Family& family, std::span<const double> a, std::size_t n_columns,
    const Execution& execution) {
  std::vector<Real> factors(a.size());
  std::transform(a.begin(), a.end(), factors.begin(), [](double x) { return static_cast<Real>(x); });
  const std::size_t at_once = std::max<std::size_t>(1, kWideChunk / n_columns);
  const std::size_t n_rows = out.count / n_columns;
  for_blocks(runs_of(n_rows, at_once), execution, [&](std::size_t run) {
    Widened<Real> values(3);
    for (std::size_t row = run * at_once; row < std::min(n_rows, (run + 1) * at_once); ++row) {
      for (std::size_t x = 0; x < n_columns; x += kWideBlock) {
        mix_stretch<Real>(values, out, family, factors.data() + x, n_columns, row * n_columns + x,
            std::min(kWideBlock, n_columns - x));
      }
    }
  });
}

}  // namespace

void chunk_products(
    const Family& family, std::size_t chunk, std::span<double> out, const Execution& execution) {
  const std::size_t count = check(family);
  require<ShapeError>(chunk > 0 && out.size() == runs_of(count, chunk) * family.w.size() * family.w.size(),
      "spherical: the output must be (chunks, n, n), got " + std::to_string(out.size()) + " numbers");
  const Family unshifted{family.w, family.base, {}};
  if (products_are_exact(unshifted)) {
    chunk_products_of<ExactProduct>(unshifted, chunk, out, execution);
  } else {
    chunk_products_of<Product>(unshifted, chunk, out, execution);
  }
}

void column_products(const Family& family, std::size_t n_columns, std::size_t n_rows_at_once,
    std::span<double> out, const Execution& execution) {
  const std::size_t count = check(family);
  const std::size_t n_pairs = family.w.size() * (family.w.size() + 1) / 2;
  require<ShapeError>(n_columns > 0 && count % n_columns == 0 && n_rows_at_once > 0,
      "spherical: " + std::to_string(count) + " elements are no whole rows of " + std::to_string(n_columns));
  const std::size_t n_rows = count / n_columns;
  const std::size_t n_runs = runs_of(n_rows, n_rows_at_once);
  require<ShapeError>(out.size() == n_runs * n_pairs * n_columns,
      "spherical: the output must be (runs, pairs, columns), got " + std::to_string(out.size()) + " numbers");
  std::fill(out.begin(), out.end(), 0.0);
  const std::size_t n_stretches = runs_of(n_columns, kWideBlock);
  for_blocks(n_runs * n_stretches, execution, [&](std::size_t block) {
    Widened<double> values(family.w.size() + 1);
    const std::size_t run = block / n_stretches;
    const std::size_t first = block % n_stretches * kWideBlock;
    const std::size_t width = std::min(kWideBlock, n_columns - first);
    double* sums = out.data() + run * n_pairs * n_columns + first;
    for (std::size_t row = run * n_rows_at_once; row < std::min(n_rows, (run + 1) * n_rows_at_once); ++row) {
      add_columns(values, family, row * n_columns + first, width, sums, n_columns);
    }
  });
}

Coefficients spherical_coefficients(double first_squared, double product, double second_squared, double t) {
  if (!std::isfinite(first_squared) || !std::isfinite(product) || !std::isfinite(second_squared)) {
    return {kNan, kNan};
  }
  const double first = std::sqrt(first_squared);
  const double second = std::sqrt(second_squared);
  const double scale =
      (first < kSmallestNorm ? kSmallestNorm : first) * (second < kSmallestNorm ? kSmallestNorm : second);
  const double cosine = std::clamp(product / scale, -1.0, 1.0);
  if (1.0 - cosine * cosine <= kOneLine) {
    return {1.0 - t, t};
  }
  const double angle = elementary::acos(cosine);
  const double sine = elementary::sin(angle);
  return {elementary::sin((1.0 - t) * angle) / sine, elementary::sin(t * angle) / sine};
}

double stock_ratio(std::span<const double> products, std::size_t n) {
  require<ShapeError>(n >= 2 && products.size() == n * n, "spherical: needs n >= 2 and (n, n) products");
  if (!std::all_of(products.begin(), products.end(), [](double x) { return std::isfinite(x); })) {
    return kNan;
  }
  double sum = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    const double norm = std::sqrt(products[i * n + i]);
    for (std::size_t j = i + 1; j < n; ++j) {
      const double scale = norm * std::sqrt(products[j * n + j]);
      sum +=
          std::clamp(products[i * n + j] / (scale < kSmallestProduct ? kSmallestProduct : scale), -1.0, 1.0);
    }
  }
  const auto count = static_cast<double>(n);
  const double cosine = sum / (count * (count - 1.0) / 2.0);
  const double divisor = 1.0 + (count - 1.0) * cosine;
  return std::fabs(divisor) < kSingular ? 0.0 : count * cosine / divisor;
}

void nuslerp_rows(
    const Buffer& out, const Family& family, std::size_t n_columns, double t, const Execution& execution) {
  check(out, family, n_columns);
  require<ShapeError>(family.w.size() == 2, "spherical: interpolates two tensors");
  combine_rows(
      out, family, n_columns, execution, [t](const std::vector<double>& products, std::vector<double>& a) {
        const Coefficients found = spherical_coefficients(products[0], products[1], products[3], t);
        a[0] = found.first;
        a[1] = found.second;
      });
}

void stock_rows(const Buffer& out, const Family& family, std::size_t n_columns, const Execution& execution) {
  check(out, family, n_columns);
  require<ShapeError>(
      family.w.size() >= 2 && family.base != nullptr, "spherical: needs two models and a base");
  combine_rows(
      out, family, n_columns, execution, [](const std::vector<double>& products, std::vector<double>& a) {
        std::fill(a.begin(), a.end(), stock_ratio(products, a.size()) / static_cast<double>(a.size()));
      });
}

void mix_columns(const Buffer& out, const Family& family, std::span<const double> a, std::size_t n_columns,
    const Execution& execution) {
  check(out, family, n_columns);
  require<ShapeError>(a.size() == family.w.size() * n_columns,
      "spherical: needs (n, n_columns) coefficients, got " + std::to_string(a.size()));
  if (any_f64(all_of(family)) || is_f64(out)) {
    mix_columns_as<double>(out, family, a, n_columns, execution);
  } else {
    mix_columns_as<float>(out, family, a, n_columns, execution);
  }
}

}  // namespace weightshare

#include "weightshare/similarity.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "lanes.hpp"
#include "weightshare/error.hpp"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace weightshare {
namespace {

constexpr std::size_t kLanes = 4;  // fixed, so that sums do not depend on the instruction set
constexpr std::size_t kVectors = kLanes / kWidth<double>;
constexpr std::size_t kBlock = 256;                    // elements of each tensor in the first-level cache
constexpr std::size_t kChunk = std::size_t{1} << 17U;  // elements summed apart, whatever the threads
constexpr std::size_t kRows = 2;
constexpr std::size_t kColumns = 4;

using Lanes = Vector<double>[kVectors];

std::size_t padded(std::size_t n) {
  return (n + kColumns - 1) / kColumns * kColumns;
}

std::size_t check(const Family& family) {
  require<ShapeError>(!family.w.empty(), "similarity: needs at least one tensor");
  const std::size_t count = family.w[0].count;
  bool fits = family.base == nullptr || family.base->count == count;
  for (const ConstBuffer& tensor : family.w) {
    fits = fits && tensor.count == count;
  }
  require<ShapeError>(fits, "similarity: all tensors and the base must have the same number of elements");
  require<ShapeError>(family.shift.empty() || family.shift.size() == family.w.size(),
      "similarity: needs one shift for each tensor");
  return count;
}

void check_pairs(const Family& family, std::size_t n_out) {
  require<ShapeError>(n_out == family.w.size() * family.w.size(),
      "similarity: the output must be (n, n), got " + std::to_string(n_out) + " numbers");
}

/// Blocks of all tensors of a family as float64, zero-padded to whole tiles.
class Panel {
 public:
  explicit Panel(const Family& family)
      : family_(family), values_(padded(family.w.size()) * kBlock), base_(kBlock) {}

  /// Reads `count` elements from `start`; returns the count rounded up to whole lanes.
  std::size_t read(std::size_t start, std::size_t count) {
    const std::size_t whole = (count + kLanes - 1) / kLanes * kLanes;
    if (family_.base != nullptr) {
      widen<double>(family_.base->element, family_.base->at(start), base_.data(), count);
    }
    for (std::size_t j = 0; j < family_.w.size(); ++j) {
      double* values = row(j);
      widen<double>(family_.w[j].element, family_.w[j].at(start), values, count);
      if (family_.base != nullptr) {
        std::transform(values, values + count, base_.data(), values, std::minus<>());
      }
      if (!family_.shift.empty()) {
        const double shift = family_.shift[j];
        std::for_each(values, values + count, [shift](double& value) { value -= shift; });
      }
      std::fill(values + count, values + whole, 0.0);
    }
    return whole;
  }

  double* row(std::size_t j) { return values_.data() + j * kBlock; }

 private:
  const Family& family_;
  std::vector<double> values_;
  std::vector<double> base_;
};

/// sum += x y. The product of two numbers that were float32 is exact in float64, so there a fused
/// multiply-add gives the bits of a multiplication and an addition.
template <bool exact>
void add_product(Vector<double>& sum, const Vector<double>& x, const Vector<double>& y) {
#if defined(__FMA__)
  if constexpr (exact) {
    sum = _mm256_fmadd_pd(x, y, sum);
    return;
  }
#endif
  sum += x * y;
}

struct ExactProduct {
  static void add(Vector<double>& sum, const Vector<double>& x, const Vector<double>& y) {
    add_product<true>(sum, x, y);
  }
};
struct Product {
  static void add(Vector<double>& sum, const Vector<double>& x, const Vector<double>& y) {
    add_product<false>(sum, x, y);
  }
};
struct SquaredDifference {
  static void add(Vector<double>& sum, const Vector<double>& x, const Vector<double>& y) {
    const Vector<double> difference = x - y;
    sum += difference * difference;
  }
};

/// Sums over one run of elements for all pairs i <= j, four lanes each.
template <class Term>
class PairSums {
 public:
  explicit PairSums(std::size_t n) : n_(n), stride_(padded(n)), lanes_(stride_ * stride_ * kLanes) {}

  void clear() { std::fill(lanes_.begin(), lanes_.end(), 0.0); }

  void add(Panel& panel, std::size_t count) {
    for (std::size_t i = 0; i < n_; i += kRows) {
      for (std::size_t j = i / kColumns * kColumns; j < n_; j += kColumns) {
        add_tile(panel, i, j, count);
      }
    }
  }

  double total(std::size_t i, std::size_t j) const {
    const double* lane = lanes_.data() + (i * stride_ + j) * kLanes;
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
  }

 private:
  void add_tile(Panel& panel, std::size_t i, std::size_t j, std::size_t count) {
    Lanes sum[kRows][kColumns];
    for (std::size_t r = 0; r < kRows; ++r) {
      for (std::size_t c = 0; c < kColumns; ++c) {
        for (std::size_t v = 0; v < kVectors; ++v) {
          load<double>(sum[r][c][v], at(i + r, j + c) + v * kWidth<double>);
        }
      }
    }
    for (std::size_t x = 0; x < count; x += kLanes) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        add_terms(panel, i, j, x + v * kWidth<double>, v, sum);
      }
    }
    for (std::size_t r = 0; r < kRows; ++r) {
      for (std::size_t c = 0; c < kColumns; ++c) {
        for (std::size_t v = 0; v < kVectors; ++v) {
          store<double>(at(i + r, j + c) + v * kWidth<double>, sum[r][c][v]);
        }
      }
    }
  }

  static void add_terms(Panel& panel, std::size_t i, std::size_t j, std::size_t x, std::size_t v,
      Lanes (&sum)[kRows][kColumns]) {
    Vector<double> left[kRows];
    for (std::size_t r = 0; r < kRows; ++r) {
      load<double>(left[r], panel.row(i + r) + x);
    }
    for (std::size_t c = 0; c < kColumns; ++c) {
      Vector<double> right;
      load<double>(right, panel.row(j + c) + x);
      for (std::size_t r = 0; r < kRows; ++r) {
        Term::add(sum[r][c][v], left[r], right);
      }
    }
  }

  double* at(std::size_t i, std::size_t j) { return lanes_.data() + (i * stride_ + j) * kLanes; }

  std::size_t n_;
  std::size_t stride_;
  std::vector<double> lanes_;
};

std::size_t chunks_of(std::size_t count, std::size_t size) {
  return (count + size - 1) / size;
}

/// out = Σ over chunks of what `sum_chunk` leaves in its part, added in the order of the chunks.
template <class Number, class SumChunk>
void sum_over_chunks(
    std::size_t n_chunks, std::span<Number> out, const Execution& execution, const SumChunk& sum_chunk) {
  std::vector<Number> parts(n_chunks * out.size());
  for_blocks(n_chunks, execution, [&](std::size_t chunk) {
    sum_chunk(chunk, std::span<Number>(parts).subspan(chunk * out.size(), out.size()));
  });
  std::fill(out.begin(), out.end(), Number{0});
  for (std::size_t k = 0; k < parts.size(); ++k) {
    out[k % out.size()] += parts[k];
  }
}

template <class Term>
void add_run(Panel& panel, PairSums<Term>& pairs, std::size_t start, std::size_t stop) {
  for (std::size_t x = start; x < stop; x += kBlock) {
    pairs.add(panel, panel.read(x, std::min(kBlock, stop - x)));
  }
}

template <class Term>
void sum_pairs(const Family& family, std::span<double> out, const Execution& execution) {
  const std::size_t count = check(family);
  const std::size_t n = family.w.size();
  check_pairs(family, out.size());
  sum_over_chunks(chunks_of(count, kChunk), out, execution, [&](std::size_t chunk, std::span<double> part) {
    Panel panel(family);
    PairSums<Term> pairs(n);
    add_run(panel, pairs, chunk * kChunk, std::min(count, (chunk + 1) * kChunk));
    for (std::size_t k = 0; k < n * n; ++k) {
      part[k] = pairs.total(std::min(k / n, k % n), std::max(k / n, k % n));
    }
  });
}

bool products_are_exact(const Family& family) {
  return family.base == nullptr && family.shift.empty() &&
         std::none_of(family.w.begin(), family.w.end(),
             [](const ConstBuffer& tensor) { return tensor.element == Element::f64; });
}

template <class Term>
void add_row_cosines(const PairSums<Term>& pairs, std::size_t n, std::span<double> part) {
  for (std::size_t i = 0; i < n; ++i) {
    const double norm = std::sqrt(pairs.total(i, i));
    part[i * n + i] += norm == 0.0 ? 0.0 : norm / norm;  // a row that is not finite gives NaN
    for (std::size_t j = i + 1; j < n; ++j) {
      const double scale = norm * std::sqrt(pairs.total(j, j));
      const double cosine = scale > 0.0 ? std::clamp(pairs.total(i, j) / scale, -1.0, 1.0) : 0.0;
      part[i * n + j] += cosine;
      part[j * n + i] += cosine;
    }
  }
}

template <class Term>
void sum_row_cosines(
    const Family& family, std::size_t n_columns, std::span<double> out, const Execution& execution) {
  const std::size_t count = check(family);
  const std::size_t n = family.w.size();
  check_pairs(family, out.size());
  require<ShapeError>(n_columns > 0 && count % n_columns == 0,
      "similarity: " + std::to_string(count) + " elements are no whole rows of " + std::to_string(n_columns));
  const std::size_t n_rows = count / n_columns;
  const std::size_t rows_at_once = std::max<std::size_t>(1, kChunk / n_columns);
  sum_over_chunks(
      chunks_of(n_rows, rows_at_once), out, execution, [&](std::size_t chunk, std::span<double> part) {
        Panel panel(family);
        PairSums<Term> pairs(n);
        const std::size_t stop = std::min(n_rows, (chunk + 1) * rows_at_once);
        for (std::size_t row = chunk * rows_at_once; row < stop; ++row) {
          pairs.clear();
          add_run(panel, pairs, row * n_columns, (row + 1) * n_columns);
          add_row_cosines(pairs, n, part);
        }
      });
}

/// For 64 elements of one tensor, which are above and which are below zero.
struct Signs {
  std::uint64_t above = 0;
  std::uint64_t below = 0;
};

Signs signs_of(const double* values, std::size_t count) {
  Signs signs;
  for (std::size_t x = 0; x < count; ++x) {
    signs.above |= static_cast<std::uint64_t>(values[x] > 0.0) << x;
    signs.below |= static_cast<std::uint64_t>(values[x] < 0.0) << x;
  }
  return signs;
}

/// part holds (n, n) counts of equal signs, then (n, n) counts of both non-zero.
void add_sign_counts(const std::vector<Signs>& signs, std::span<std::int64_t> part) {
  const std::size_t n = signs.size();
  for (std::size_t k = 0; k < n * n; ++k) {
    const Signs& x = signs[k / n];
    const Signs& y = signs[k % n];
    part[k] += std::popcount((x.above & y.above) | (x.below & y.below));
    part[n * n + k] += std::popcount((x.above | x.below) & (y.above | y.below));
  }
}

}  // namespace

void sums(const Family& family, std::span<double> out, const Execution& execution) {
  const std::size_t count = check(family);
  require<ShapeError>(out.size() == family.w.size(), "similarity: needs one sum for each tensor");
  sum_over_chunks(chunks_of(count, kChunk), out, execution, [&](std::size_t chunk, std::span<double> part) {
    Panel panel(family);
    const std::size_t stop = std::min(count, (chunk + 1) * kChunk);
    for (std::size_t x = chunk * kChunk; x < stop; x += kBlock) {
      const std::size_t whole = panel.read(x, std::min(kBlock, stop - x));
      for (std::size_t j = 0; j < part.size(); ++j) {
        double lane[kLanes] = {};
        for (std::size_t k = 0; k < whole; ++k) {
          lane[k % kLanes] += panel.row(j)[k];
        }
        part[j] += (lane[0] + lane[1]) + (lane[2] + lane[3]);
      }
    }
  });
}

void inner_products(const Family& family, std::span<double> out, const Execution& execution) {
  if (products_are_exact(family)) {
    sum_pairs<ExactProduct>(family, out, execution);
  } else {
    sum_pairs<Product>(family, out, execution);
  }
}

void squared_distances(const Family& family, std::span<double> out, const Execution& execution) {
  sum_pairs<SquaredDifference>(Family{family.w, nullptr, {}}, out, execution);
}

void count_signs(const Family& family, std::span<std::int64_t> same, std::span<std::int64_t> both,
    const Execution& execution) {
  const Family unshifted{family.w, family.base, {}};
  const std::size_t count = check(unshifted);
  check_pairs(family, same.size());
  check_pairs(family, both.size());
  std::vector<std::int64_t> totals(2 * same.size());
  sum_over_chunks(chunks_of(count, kChunk), std::span(totals), execution,
      [&](std::size_t chunk, std::span<std::int64_t> part) {
        Panel panel(unshifted);
        std::vector<Signs> signs(family.w.size());
        const std::size_t stop = std::min(count, (chunk + 1) * kChunk);
        for (std::size_t x = chunk * kChunk; x < stop; x += 64) {
          const std::size_t length = std::min<std::size_t>(64, stop - x);
          panel.read(x, length);
          for (std::size_t j = 0; j < signs.size(); ++j) {
            signs[j] = signs_of(panel.row(j), length);
          }
          add_sign_counts(signs, part);
        }
      });
  std::copy_n(totals.begin(), same.size(), same.begin());
  std::copy_n(totals.begin() + static_cast<std::ptrdiff_t>(same.size()), both.size(), both.begin());
}

void row_cosine_sums(
    const Family& family, std::size_t n_columns, std::span<double> out, const Execution& execution) {
  if (products_are_exact(family)) {
    sum_row_cosines<ExactProduct>(family, n_columns, out, execution);
  } else {
    sum_row_cosines<Product>(family, n_columns, out, execution);
  }
}

}  // namespace weightshare

#include "weightshare/similarity.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "pair_sums.hpp"
#include "weightshare/error.hpp"

namespace weightshare {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 17U;  // elements summed apart, whatever the threads

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
    for (std::size_t x = chunk * kChunk; x < stop; x += kPairBlock) {
      const std::size_t whole = panel.read(x, std::min(kPairBlock, stop - x));
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

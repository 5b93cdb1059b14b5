#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "lanes.hpp"
#include "weightshare/similarity.hpp"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace weightshare {

constexpr std::size_t kLanes = 4;  // fixed, so that sums do not depend on the instruction set
constexpr std::size_t kVectors = kLanes / kWidth<double>;
constexpr std::size_t kPairBlock = 256;  // elements of each tensor in the first-level cache
constexpr std::size_t kRows = 2;
constexpr std::size_t kColumns = 4;

using Lanes = Vector<double>[kVectors];

inline std::size_t padded(std::size_t n) {
  return (n + kColumns - 1) / kColumns * kColumns;
}

/// Blocks of all tensors of a family as float64, zero-padded to whole tiles.
class Panel {
 public:
  explicit Panel(const Family& family)
      : family_(family), values_(padded(family.w.size()) * kPairBlock), base_(kPairBlock) {}

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

  double* row(std::size_t j) { return values_.data() + j * kPairBlock; }

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

template <class Term>
void add_run(Panel& panel, PairSums<Term>& pairs, std::size_t start, std::size_t stop) {
  for (std::size_t x = start; x < stop; x += kPairBlock) {
    pairs.add(panel, panel.read(x, std::min(kPairBlock, stop - x)));
  }
}

inline bool products_are_exact(const Family& family) {
  return family.base == nullptr && family.shift.empty() &&
         std::none_of(family.w.begin(), family.w.end(),
             [](const ConstBuffer& tensor) { return tensor.element == Element::f64; });
}

}  // namespace weightshare

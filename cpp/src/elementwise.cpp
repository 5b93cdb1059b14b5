#include "weightshare/elementwise.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "widened.hpp"

namespace weightshare {
namespace {

constexpr double kSmallestStep = 1e-6;

std::vector<ConstBuffer> joined(std::span<const ConstBuffer> w, std::initializer_list<ConstBuffer> more) {
  std::vector<ConstBuffer> all(w.begin(), w.end());
  all.insert(all.end(), more);
  return all;
}

void check_numbers(std::size_t found, std::size_t expected) {
  require<ShapeError>(found == expected, "elementwise: needs one number for each tensor");
}

/// Calls rule(Real{}) with the arithmetic that the buffers ask for.
template <class Rule>
void with_arithmetic(std::span<const ConstBuffer> buffers, const Rule& rule) {
  if (any_f64(buffers)) {
    rule(double{});
  } else {
    rule(float{});
  }
}

/// The base, the task vectors and some rows of results of one block. Row 0 is the base, row 1 + j is τ_j.
template <class Real>
class Deltas {
 public:
  Deltas(std::span<const ConstBuffer> w, const ConstBuffer& base, std::size_t n_results)
      : w_(w), base_(base), rows_(1 + w.size() + n_results) {}

  void read(std::size_t start, std::size_t count) {
    const Real* base = rows_.read(0, base_, start, count);
    for (std::size_t j = 0; j < w_.size(); ++j) {
      rows_.read_less(1 + j, w_[j], start, count, base);
    }
  }

  Real* base() { return rows_.row(0); }
  Real* delta(std::size_t j) { return rows_.row(1 + j); }
  Real* result(std::size_t k) { return rows_.row(1 + w_.size() + k); }

  /// out = base + result 0.
  void put(const Buffer& out, std::size_t start, std::size_t count) {
    add_deltas(base(), result(0), result(0), count);
    narrow<Real>(out.element, result(0), out.at(start), count);
  }

 private:
  std::span<const ConstBuffer> w_;
  const ConstBuffer& base_;
  Widened<Real> rows_;
};

/// Neither |delta| <= epsilon nor NaN hides: a NaN is active, so that it is seen in the result.
template <class Real>
bool active(Real delta, Real epsilon) {
  return !(std::fabs(delta) <= epsilon);
}

template <class Real>
void nearswap_block(Deltas<Real>& block, const ConstBuffer& w, const Buffer& out, Real t, std::size_t start,
    std::size_t count) {
  const auto smallest = static_cast<Real>(kSmallestStep);
  const Real* base = block.base();
  const Real* delta = block.delta(0);
  Real* result = block.result(0);
  Real* whole = block.result(1);
  widen<Real>(w.element, w.at(start), whole, count);
  for (std::size_t x = 0; x < count; ++x) {
    const Real size = std::fabs(delta[x]);
    const Real share = t / (size < smallest ? smallest : size);
    const Real moved = base[x] + share * delta[x];
    const bool stays = (share <= Real{0}) | (size == Real{0});  // -0 + 0 would be 0
    const Real inside = stays ? base[x] : moved;
    result[x] = share >= Real{1} ? whole[x] : inside;
  }
  narrow<Real>(out.element, result, out.at(start), count);
}

/// result 0 = Σ active τ, result 1 = how many are active, result 2 = the last active one's factor.
template <class Real>
void add_active(Deltas<Real>& block, std::size_t j, Real epsilon, Real factor, std::size_t count) {
  const Real* delta = block.delta(j);
  Real* sum = block.result(0);
  Real* number = block.result(1);
  Real* last = block.result(2);
  for (std::size_t x = 0; x < count; ++x) {
    const bool on = active(delta[x], epsilon);
    sum[x] += on ? delta[x] : Real{0};
    number[x] += on ? Real{1} : Real{0};
    last[x] = on ? factor : last[x];
  }
}

template <class Real>
void mean_of_active_block(
    Deltas<Real>& block, Real epsilon, std::span<const double> alone, std::size_t count) {
  for (std::size_t k = 0; k < 3; ++k) {
    std::fill_n(block.result(k), count, Real{0});
  }
  for (std::size_t j = 0; j < alone.size(); ++j) {
    add_active(block, j, epsilon, static_cast<Real>(alone[j]), count);
  }
  Real* sum = block.result(0);
  const Real* number = block.result(1);
  const Real* last = block.result(2);
  for (std::size_t x = 0; x < count; ++x) {
    const Real mean = sum[x] / (number[x] > Real{1} ? number[x] : Real{1});
    const Real single = sum[x] * last[x];
    sum[x] = number[x] == Real{1} ? single : mean;
  }
}

template <class Real>
void count_active_block(
    Deltas<Real>& block, std::size_t n, Real epsilon, std::size_t count, std::int64_t* shared) {
  Real* number = block.result(0);
  std::fill_n(number, count, Real{0});
  for (std::size_t j = 0; j < n; ++j) {
    const Real* delta = block.delta(j);
    for (std::size_t x = 0; x < count; ++x) {
      number[x] += active(delta[x], epsilon) ? Real{1} : Real{0};
    }
  }
  for (std::size_t j = 0; j < n; ++j) {
    const Real* delta = block.delta(j);
    std::int32_t together = 0;
    std::int32_t apart = 0;
    for (std::size_t x = 0; x < count; ++x) {
      const bool on = active(delta[x], epsilon);
      together += static_cast<std::int32_t>(on && number[x] > Real{1});
      apart += static_cast<std::int32_t>(on && number[x] == Real{1});
    }
    shared[j] += together;
    shared[n + j] += apart;
  }
}

template <class Real>
void largest_delta_block(Deltas<Real>& block, std::size_t n, Real strength, std::size_t count) {
  Real* best = block.result(0);
  Real* size = block.result(1);
  std::fill_n(best, count, Real{0});
  std::fill_n(size, count, Real{0});
  for (std::size_t j = 0; j < n; ++j) {
    const Real* delta = block.delta(j);
    for (std::size_t x = 0; x < count; ++x) {
      const Real magnitude = std::fabs(delta[x]);
      const bool take = magnitude > size[x] || magnitude != magnitude;  // nothing is above NaN
      best[x] = take ? delta[x] : best[x];
      size[x] = take ? magnitude : size[x];
    }
  }
  for (std::size_t x = 0; x < count; ++x) {
    best[x] *= strength;
  }
}

template <class Real>
void agreed_sum_block(
    Deltas<Real>& block, std::span<const double> threshold, Real k, Real strength, std::size_t count) {
  Real* sum = block.result(0);
  Real* votes = block.result(1);
  std::fill_n(sum, count, Real{0});
  std::fill_n(votes, count, Real{0});
  for (std::size_t j = 0; j < threshold.size(); ++j) {
    const Real* delta = block.delta(j);
    for (std::size_t x = 0; x < count; ++x) {
      sum[x] += delta[x];
    }
  }
  for (std::size_t j = 0; j < threshold.size(); ++j) {
    const Real* delta = block.delta(j);
    const auto least = static_cast<Real>(threshold[j]);
    for (std::size_t x = 0; x < count; ++x) {
      const bool holds = std::fabs(delta[x]) >= least * std::fabs(sum[x] - delta[x]);
      votes[x] += holds ? Real{1} : Real{0};
    }
  }
  for (std::size_t x = 0; x < count; ++x) {
    const Real scaled = strength * sum[x];
    sum[x] = votes[x] >= k || sum[x] != sum[x] ? scaled : Real{0};
  }
}

void weighted_mean_block(Widened<double>& rows, const Buffer& out, std::span<const ConstBuffer> w,
    std::span<const ConstBuffer> fisher, std::span<const double> a, double epsilon, std::size_t start,
    std::size_t count) {
  double* sum = rows.row(2);
  double* total = rows.row(3);
  std::fill_n(sum, count, 0.0);
  std::fill_n(total, count, 0.0);
  for (std::size_t j = 0; j < w.size(); ++j) {
    if (a[j] == 0.0) {
      continue;
    }
    const double* value = rows.read(0, w[j], start, count);
    const double* information = rows.read(1, fisher[j], start, count);
    for (std::size_t x = 0; x < count; ++x) {
      const double counted = information[x] < 0.0 ? 0.0 : information[x];
      const double share = a[j] * (counted + epsilon);
      sum[x] += share * value[x];
      total[x] += share;
    }
  }
  for (std::size_t x = 0; x < count; ++x) {
    sum[x] /= total[x];
  }
  narrow<double>(out.element, sum, out.at(start), count);
}

/// Reads every block of deltas, lets `rule(block, count)` fill result 0, and writes base + that.
template <class Real, class Rule>
void write_deltas(const Buffer& out, std::span<const ConstBuffer> w, const ConstBuffer& base,
    std::size_t n_results, const Execution& execution, const Rule& rule) {
  for_wide_blocks(
      out.count, execution, [&] { return Deltas<Real>(w, base, n_results); },
      [&](Deltas<Real>& block, std::size_t start, std::size_t count) {
        block.read(start, count);
        rule(block, count);
        block.put(out, start, count);
      });
}

}  // namespace

void nearswap(
    const Buffer& out, const ConstBuffer& w, const ConstBuffer& base, double t, const Execution& execution) {
  const auto all = joined({}, {out, w, base});
  equal_count(all, "elementwise");
  with_arithmetic(all, [&](auto zero) {
    using Real = decltype(zero);
    for_wide_blocks(
        out.count, execution, [&] { return Deltas<Real>({&w, 1}, base, 2); },
        [&](Deltas<Real>& block, std::size_t start, std::size_t count) {
          block.read(start, count);
          nearswap_block<Real>(block, w, out, static_cast<Real>(t), start, count);
        });
  });
}

void count_active(std::span<const ConstBuffer> w, const ConstBuffer& base, double epsilon,
    std::span<std::int64_t> counts, const Execution& execution) {
  const auto all = joined(w, {base});
  const std::size_t total = equal_count(all, "elementwise");
  const std::size_t n = w.size();
  check_numbers(counts.size(), 2 * n);
  const std::size_t n_chunks = (total + kWideChunk - 1) / kWideChunk;
  std::vector<std::int64_t> parts(n_chunks * 2 * n);
  with_arithmetic(all, [&](auto zero) {
    using Real = decltype(zero);
    for_wide_blocks(
        total, execution, [&] { return Deltas<Real>(w, base, 1); },
        [&](Deltas<Real>& block, std::size_t start, std::size_t count) {
          block.read(start, count);
          count_active_block<Real>(
              block, n, static_cast<Real>(epsilon), count, parts.data() + start / kWideChunk * 2 * n);
        });
  });
  std::fill(counts.begin(), counts.end(), 0);
  for (std::size_t k = 0; k < parts.size(); ++k) {
    counts[k % (2 * n)] += parts[k];
  }
}

void mean_of_active(const Buffer& out, std::span<const ConstBuffer> w, const ConstBuffer& base,
    double epsilon, std::span<const double> alone, const Execution& execution) {
  const auto all = joined(w, {base, out});
  equal_count(all, "elementwise");
  check_numbers(alone.size(), w.size());
  with_arithmetic(all, [&](auto zero) {
    using Real = decltype(zero);
    write_deltas<Real>(out, w, base, 3, execution, [&](Deltas<Real>& block, std::size_t count) {
      mean_of_active_block<Real>(block, static_cast<Real>(epsilon), alone, count);
    });
  });
}

void largest_delta(const Buffer& out, std::span<const ConstBuffer> w, const ConstBuffer& base,
    double strength, const Execution& execution) {
  const auto all = joined(w, {base, out});
  equal_count(all, "elementwise");
  with_arithmetic(all, [&](auto zero) {
    using Real = decltype(zero);
    write_deltas<Real>(out, w, base, 2, execution, [&](Deltas<Real>& block, std::size_t count) {
      largest_delta_block<Real>(block, w.size(), static_cast<Real>(strength), count);
    });
  });
}

void agreed_sum(const Buffer& out, std::span<const ConstBuffer> w, const ConstBuffer& base,
    std::span<const double> threshold, double k, double strength, const Execution& execution) {
  const auto all = joined(w, {base, out});
  equal_count(all, "elementwise");
  check_numbers(threshold.size(), w.size());
  with_arithmetic(all, [&](auto zero) {
    using Real = decltype(zero);
    write_deltas<Real>(out, w, base, 2, execution, [&](Deltas<Real>& block, std::size_t count) {
      agreed_sum_block<Real>(block, threshold, static_cast<Real>(k), static_cast<Real>(strength), count);
    });
  });
}

void weighted_mean(const Buffer& out, std::span<const ConstBuffer> w, std::span<const ConstBuffer> fisher,
    std::span<const double> a, double epsilon, const Execution& execution) {
  equal_count(joined(w, {out}), "elementwise");
  equal_count(joined(fisher, {out}), "elementwise");
  check_numbers(fisher.size(), w.size());
  check_numbers(a.size(), w.size());
  for_wide_blocks(
      out.count, execution, [] { return Widened<double>(4); },
      [&](Widened<double>& rows, std::size_t start, std::size_t count) {
        weighted_mean_block(rows, out, w, fisher, a, epsilon, start, count);
      });
}

}  // namespace weightshare

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "deltas.hpp"

namespace weightshare {

/// Keeps the elements of rows at random, by a probability that grows with the rank of their magnitude.
///
/// Element i is kept when its word is below low + step * rank. Few words leave that open once a histogram
/// has told between which ranks an element lies; only those are ranked exactly.
template <class Real>
class RowRanks {
 public:
  using Key = Bits<Real>;

  /// Writes 1 or 0 to `kept` for each of n elements, from their keys and random words.
  void keep(const Key* keys, const std::uint32_t* words, std::size_t n, double least, double most,
      std::uint8_t* kept) {
    constexpr double kWords = 4294967296.0;
    low_ = n == 1 ? (least + most) / 2 * kWords : least * kWords;
    step_ = n == 1 ? 0.0 : (most - least) * kWords / static_cast<double>(n - 1);
    const std::uint64_t sure = whole_above(low_);
    const std::uint64_t never = std::max(sure, whole_above(bound(n - 1)));
    for (std::size_t i = 0; i < n; ++i) {
      kept[i] = words[i] < sure ? 1 : 0;
    }
    if (sure == never) {
      return;
    }
    count(keys, n);
    find_open(words, n, sure, never);
    decide(words, kept);
    if (!unsettled_.empty()) {
      rank(keys, n);
      for (const std::uint32_t i : unsettled_) {
        kept[i] = words[i] < bound(rank_[i]) ? 1 : 0;
      }
    }
  }

 private:
  static constexpr int kMantissa = sizeof(Real) == 4 ? 23 : 52;
  static constexpr int kOctaves = 16;        // below the row's greatest; what is smaller shares one bin
  static constexpr int kFinest = 8;          // bits of the mantissa that tell bins apart, in long rows
  static constexpr std::size_t kSmall = 24;  // a bin that insertion sorts

  /// The least integer that is not below a number from 0 to 2^32.
  static std::uint64_t whole_above(double value) {
    const auto whole = static_cast<std::uint64_t>(std::clamp(value, 0.0, 4294967296.0));
    return static_cast<double>(whole) < value ? std::min(whole + 1, std::uint64_t{1} << 32U) : whole;
  }

  double bound(std::size_t rank) const { return low_ + step_ * static_cast<double>(rank); }

  std::size_t bin_of(Key key) const {
    const auto bin = static_cast<std::ptrdiff_t>(key >> shift_) - least_;
    return bin > 0 ? static_cast<std::size_t>(bin) : 0;
  }

  /// below_[b] = how many elements lie in lower bins than b.
  void count(const Key* keys, std::size_t n) {
    Key greatest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      greatest = keys[i] > greatest ? keys[i] : greatest;
    }
    int fine = kFinest;
    while (fine > 2 && (std::size_t{kOctaves} << static_cast<unsigned>(fine)) > 2 * n) {
      --fine;
    }
    const std::size_t bins = std::size_t{kOctaves} << static_cast<unsigned>(fine);
    shift_ = kMantissa - fine;
    least_ = static_cast<std::ptrdiff_t>(greatest >> shift_) - static_cast<std::ptrdiff_t>(bins) + 1;
    below_.assign(bins + 1, 0);
    bins_.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t bin = bin_of(keys[i]);
      bins_[i] = static_cast<std::uint16_t>(bin);
      ++below_[bin + 1];
    }
    for (std::size_t b = 0; b < bins; ++b) {
      below_[b + 1] += below_[b];
    }
  }

  /// The elements whose words neither keep nor drop them whatever their rank.
  void find_open(const std::uint32_t* words, std::size_t n, std::uint64_t sure, std::uint64_t never) {
    const auto first = static_cast<std::uint32_t>(sure);
    const auto span = static_cast<std::uint32_t>(never - sure);
    open_.resize(n);
    n_open_ = 0;
    for (std::size_t i = 0; i < n; ++i) {
      open_[n_open_] = static_cast<std::uint32_t>(i);
      n_open_ += words[i] - first < span ? 1U : 0U;
    }
  }

  void decide(const std::uint32_t* words, std::uint8_t* kept) {
    std::size_t n_unsettled = 0;
    unsettled_.resize(n_open_ + 1);
    for (std::size_t k = 0; k < n_open_; ++k) {
      const std::uint32_t i = open_[k];
      const std::size_t bin = bins_[i];
      const auto word = static_cast<double>(words[i]);
      const bool surely = word < bound(below_[bin]);
      const bool perhaps = word < bound(below_[bin + 1] - 1);
      kept[i] = surely ? 1 : 0;
      unsettled_[n_unsettled] = i;
      n_unsettled += static_cast<std::size_t>(perhaps) & static_cast<std::size_t>(!surely);
    }
    unsettled_.resize(n_unsettled);
  }

  /// rank_[i] of every element in the bins of the unsettled ones.
  void rank(const Key* keys, std::size_t n) {
    wanted_.assign(below_.size(), 0);
    for (const std::uint32_t i : unsettled_) {
      wanted_[bins_[i]] = 1;
    }
    next_ = below_;
    order_.resize(n);
    rank_.resize(n);
    for (std::size_t i = n; i-- > 0;) {  // from the last, since of equal elements the earlier ranks higher
      order_[next_[bins_[i]]++] = static_cast<std::uint32_t>(i);
    }
    for (std::size_t bin = 0; bin + 1 < below_.size(); ++bin) {
      if (wanted_[bin] != 0) {
        sort_bin(keys, below_[bin], below_[bin + 1]);
      }
    }
  }

  void sort_bin(const Key* keys, std::size_t begin, std::size_t end) {
    std::uint32_t* const first = order_.data() + begin;
    std::uint32_t* const last = order_.data() + end;
    const auto less = [keys](std::uint32_t a, std::uint32_t b) { return keys[a] < keys[b]; };
    if (end - begin > kSmall && !std::is_sorted(first, last, less)) {
      std::stable_sort(first, last, less);
    } else {
      for (std::uint32_t* place = first; place != last; ++place) {
        std::rotate(std::upper_bound(first, place, *place, less), place, place + 1);
      }
    }
    for (std::size_t r = begin; r < end; ++r) {
      rank_[order_[r]] = static_cast<std::uint32_t>(r);
    }
  }

  double low_ = 0.0;
  double step_ = 0.0;
  int shift_ = 0;
  std::ptrdiff_t least_ = 0;
  std::size_t n_open_ = 0;
  std::vector<std::uint32_t> below_;
  std::vector<std::uint32_t> next_;
  std::vector<std::uint8_t> wanted_;
  std::vector<std::uint16_t> bins_;
  std::vector<std::uint32_t> open_;
  std::vector<std::uint32_t> unsettled_;
  std::vector<std::uint32_t> order_;
  std::vector<std::uint32_t> rank_;
};

}  // namespace weightshare

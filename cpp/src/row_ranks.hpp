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
    const auto last = static_cast<std::uint32_t>(std::max<std::uint64_t>(sure, 1) - 1);
    const std::uint8_t any = sure > 0 ? 1 : 0;
    for (std::size_t i = 0; i < n; ++i) {
      kept[i] = words[i] <= last ? any : 0;
    }
    if (sure == never) {
      return;
    }
    count(keys, n);
    find_open(words, n, sure, never);
    decide(words, kept);
    if (!unsettled_.empty()) {
      settle(keys, words, n, kept);
    }
  }

 private:
  static constexpr int kMantissa = sizeof(Real) == 4 ? 23 : 52;
  static constexpr int kOctaves = 16;      // below the row's greatest; what is smaller shares one bin
  static constexpr int kFinest = 8;        // bits of the mantissa that tell bins apart, in long rows
  static constexpr std::size_t kFew = 96;  // elements that are ranked one by one, without sorting

  /// The least integer that is not below a number from 0 to 2^32.
  static std::uint64_t whole_above(double value) {
    const auto whole = static_cast<std::uint64_t>(std::clamp(value, 0.0, 4294967296.0));
    return static_cast<double>(whole) < value ? std::min(whole + 1, std::uint64_t{1} << 32U) : whole;
  }

  double bound(std::size_t rank) const { return low_ + step_ * static_cast<double>(rank); }

  /// below_[b] = how many elements lie in lower bins than b.
  void count(const Key* keys, std::size_t n) {
    Key greatest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      greatest = keys[i] > greatest ? keys[i] : greatest;
    }
    int fine = kFinest;
    while (fine > 2 && (std::size_t{kOctaves} << static_cast<unsigned>(fine)) > n / 2) {
      --fine;
    }
    const std::size_t bins = std::size_t{kOctaves} << static_cast<unsigned>(fine);
    shift_ = kMantissa - fine;
    least_ = (greatest >> shift_) - static_cast<Key>(bins) + 1;
    below_.assign(bins + 1, 0);
    bins_.resize(n);
    const Key shift = shift_;  // not members in the loop, which could not be vectorised then
    const Key least = least_;
    for (std::size_t i = 0; i < n; ++i) {
      bins_[i] = static_cast<std::uint16_t>(std::max((keys[i] >> shift) - least, Key{0}));
    }
    std::uint32_t* const below = below_.data();
    for (std::size_t i = 0; i < n; ++i) {
      ++below[bins_[i] + std::size_t{1}];
    }
    std::uint32_t so_far = 0;
    for (std::size_t b = 1; b <= bins; ++b) {
      so_far += below[b];
      below[b] = so_far;
    }
  }

  /// The elements whose words neither keep nor drop them whatever their rank.
  void find_open(const std::uint32_t* words, std::size_t n, std::uint64_t sure, std::uint64_t never) {
    const auto first = static_cast<std::uint32_t>(sure);
    const auto span = static_cast<std::uint32_t>(never - sure);
    open_.resize(n);
    std::uint32_t* const open = open_.data();
    std::size_t found = 0;
    for (std::size_t i = 0; i < n; ++i) {
      open[found] = static_cast<std::uint32_t>(i);
      found += words[i] - first < span ? 1U : 0U;
    }
    n_open_ = found;
  }

  void decide(const std::uint32_t* words, std::uint8_t* kept) {
    unsettled_.resize(n_open_ + 1);
    // What the loop reads is not read through members, which a store to `kept` might change.
    std::uint32_t* const unsettled = unsettled_.data();
    const std::uint32_t* const open = open_.data();
    const std::uint32_t* const below = below_.data();
    const std::uint16_t* const bins = bins_.data();
    const double low = low_;
    const double step = step_;
    std::size_t n_unsettled = 0;
    for (std::size_t k = 0, n = n_open_; k < n; ++k) {
      const std::uint32_t i = open[k];
      const std::size_t bin = bins[i];
      const auto word = static_cast<double>(words[i]);
      const bool surely = word < low + step * static_cast<double>(below[bin]);
      const bool perhaps = word < low + step * static_cast<double>(below[bin + 1] - 1);
      kept[i] = surely ? 1 : 0;
      unsettled[n_unsettled] = i;
      n_unsettled += static_cast<std::size_t>(perhaps) & static_cast<std::size_t>(!surely);
    }
    unsettled_.resize(n_unsettled);
  }

  /// Ranks the unsettled elements, among those of their bins.
  void settle(const Key* keys, const std::uint32_t* words, std::size_t n, std::uint8_t* kept) {
    find_members(keys, n);
    const bool few = unsettled_.size() <= kFew;
    if (!few) {
      sort_bins(keys);
    }
    for (const std::uint32_t i : unsettled_) {
      const std::size_t rank = few ? rank_of(keys[i], i, bins_[i]) : rank_[i];
      kept[i] = words[i] < bound(rank) ? 1 : 0;
    }
    for (const std::uint32_t i : unsettled_) {
      wanted_[bins_[i]] = 0;
    }
  }

  /// The elements of all bins with an unsettled one, and their keys, in order.
  void find_members(const Key* keys, std::size_t n) {
    wanted_.resize(std::max(wanted_.size(), below_.size()), 0);
    for (const std::uint32_t i : unsettled_) {
      wanted_[bins_[i]] = 1;
    }
    members_.resize(n + 1);
    member_keys_.resize(n + 1);
    std::uint32_t* const members = members_.data();  // pointers and a count of its own: kept in registers
    Key* const member_keys = member_keys_.data();
    const std::uint8_t* const wanted = wanted_.data();
    const std::uint16_t* const bins = bins_.data();
    std::size_t found = 0;
    for (std::size_t i = 0; i < n; ++i) {
      members[found] = static_cast<std::uint32_t>(i);
      member_keys[found] = keys[i];
      found += wanted[bins[i]];
    }
    n_members_ = found;
  }

  /// Of equal elements the earlier ranks higher.
  std::size_t rank_of(Key key, std::uint32_t element, std::uint32_t bin) const {
    const Key* const members = member_keys_.data();
    const auto after =
        static_cast<std::size_t>(std::upper_bound(members_.begin(),
                                     members_.begin() + static_cast<std::ptrdiff_t>(n_members_), element) -
                                 members_.begin());
    const Key low = bin == 0 ? 0 : (static_cast<Key>(bin) + least_) << shift_;
    std::uint32_t lower = 0;
    for (std::size_t m = 0; m < after; ++m) {
      lower += static_cast<std::uint32_t>((members[m] >= low) & (members[m] < key));
    }
    for (std::size_t m = after; m < n_members_; ++m) {
      lower += static_cast<std::uint32_t>((members[m] >= low) & (members[m] <= key));
    }
    return below_[bin] + std::size_t{lower};
  }

  /// rank_[i] of all members.
  void sort_bins(const Key* keys) {
    rank_.resize(bins_.size());
    order_.resize(bins_.size());
    end_ = below_;
    for (std::size_t m = n_members_; m-- > 0;) {  // from the last, so that equal elements are in order
      order_[end_[bins_[members_[m]]]++] = members_[m];
    }
    for (std::size_t bin = 0; bin + 1 < below_.size(); ++bin) {
      if (wanted_[bin] != 0) {
        sort_bin(keys, bin);
      }
    }
  }

  void sort_bin(const Key* keys, std::size_t bin) {
    std::uint32_t* const first = order_.data() + below_[bin];
    std::uint32_t* const last = order_.data() + below_[bin + 1];
    const auto less = [keys](std::uint32_t a, std::uint32_t b) { return keys[a] < keys[b]; };
    if (!std::is_sorted(first, last, less)) {
      std::stable_sort(first, last, less);
    }
    for (std::uint32_t* place = first; place != last; ++place) {
      rank_[*place] = below_[bin] + static_cast<std::uint32_t>(place - first);
    }
  }

  double low_ = 0.0;
  double step_ = 0.0;
  int shift_ = 0;
  Key least_ = 0;
  std::size_t n_open_ = 0;
  std::vector<std::uint32_t> below_;
  std::size_t n_members_ = 0;
  std::vector<std::uint32_t> end_;
  std::vector<std::uint8_t> wanted_;  // whether a bin holds an unsettled element; 0 between rows
  std::vector<std::uint32_t> members_;
  std::vector<Key> member_keys_;
  std::vector<std::uint16_t> bins_;
  std::vector<std::uint32_t> open_;
  std::vector<std::uint32_t> unsettled_;
  std::vector<std::uint32_t> order_;
  std::vector<std::uint32_t> rank_;
};

}  // namespace weightshare

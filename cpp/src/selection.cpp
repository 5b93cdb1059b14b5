#include "weightshare/selection.hpp"

#include <algorithm>
#include <mutex>
#include <string>

#include "deltas.hpp"
#include "packed.hpp"
#include "weightshare/error.hpp"

namespace weightshare {
namespace {

constexpr std::size_t kStretch = std::size_t{1} << 20U;  // elements of a histogram of its own
constexpr std::size_t kTurns = 2;

template <class Real>
constexpr int kLevels = sizeof(Real) == 4 ? 2 : 4;

/// Bits below the digit of a level; the last digit has 15 bits and the others 16.
template <class Real>
constexpr int shift_of(int level) {
  return level == kLevels<Real> - 1 ? 0 : (kLevels<Real> - 1 - level) * 16 - 1;
}

template <class Real>
std::size_t digit_of(Bits<Real> key, int level) {
  const auto mask = static_cast<Bits<Real>>(level == kLevels<Real> - 1 ? 0x7fff : 0xffff);
  return static_cast<std::size_t>((key >> shift_of<Real>(level)) & mask);
}

void check(const Rankable& tensors) {
  require<ShapeError>(!tensors.w.empty(), "selection: needs at least one tensor");
  const std::size_t count = tensors.w[0].count;
  bool fits = tensors.base == nullptr || tensors.base->count == count;
  for (const ConstBuffer& tensor : tensors.w) {
    fits = fits && tensor.count == count;
  }
  require<ShapeError>(fits, "selection: all tensors and the base must have the same number of elements");
}

/// Blocks of keys of a stretch, one ranking after the other.
template <class Real>
class KeyReader {
 public:
  static constexpr std::size_t kBlock = Deltas<Real>::kBlock;

  explicit KeyReader(const Rankable& tensors) : tensors_(tensors), deltas_(tensors.w, tensors.base) {}

  /// visit(ranking, keys, start, count) for every block of [start, stop).
  template <class Visit>
  void read(std::size_t start, std::size_t stop, const Visit& visit) {
    for (std::size_t x = start; x < stop; x += kBlock) {
      const std::size_t count = std::min(kBlock, stop - x);
      deltas_.read(x, count);
      for (std::size_t k = 0; k < tensors_.rankings(); ++k) {
        if (tensors_.quantity == Quantity::variance) {
          deltas_.variance_keys(keys_, sums_, count);
        } else {
          deltas_.keys(k, keys_, count);
        }
        visit(k, static_cast<const Bits<Real>*>(keys_), x, count);
      }
    }
  }

 private:
  Rankable tensors_;
  Deltas<Real> deltas_;
  Bits<Real> keys_[kBlock];
  Real sums_[kBlock];
};

/// found(x) for every key with those leading bits; count <= the block of a reader.
template <class Real, class Found>
void for_matches(
    const Bits<Real>* keys, std::size_t count, int shift, Bits<Real> prefix, const Found& found) {
  std::uint8_t same[KeyReader<Real>::kBlock];
  for (std::size_t x = 0; x < count; ++x) {
    same[x] = static_cast<std::uint8_t>((keys[x] >> shift) == prefix);
  }
  for_flags(same, count, found);
}

/// Counts in several histograms in turn: equal neighbours would wait for one another in one of them.
template <class Key>
void count_first(const Key* keys, std::size_t count, int shift, std::int64_t* counts, std::size_t stride) {
  std::uint32_t zeros = 0;
  for (std::size_t x = 0; x < count; ++x) {
    zeros += keys[x] == 0 ? 1U : 0U;
  }
  counts[kDigits] += zeros;
  std::size_t x = 0;
  for (; x + kTurns <= count; x += kTurns) {
    for (std::size_t turn = 0; turn < kTurns; ++turn) {
      ++counts[turn * stride + static_cast<std::size_t>(keys[x + turn] >> shift)];
    }
  }
  for (; x < count; ++x) {
    ++counts[static_cast<std::size_t>(keys[x] >> shift)];
  }
}

/// Histograms of which each thread that counts takes one for a while; made once and summed once.
class Histograms {
 public:
  explicit Histograms(std::size_t size) : size_(size) {}

  class Lease {
   public:
    explicit Lease(Histograms& owner) : owner_(owner), counts_(owner.take()) {}
    ~Lease() { owner_.give_back(std::move(counts_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    std::int64_t* counts() { return counts_.data(); }

   private:
    Histograms& owner_;
    std::vector<std::int64_t> counts_;
  };

  /// Adds all of them, and the turns of each, up.
  void add_to(std::span<std::int64_t> counts) const {
    for (const std::vector<std::int64_t>& one : idle_) {
      for (std::size_t i = 0; i < size_; i += counts.size()) {
        for (std::size_t k = 0; k < counts.size(); ++k) {
          counts[k] += one[i + k];
        }
      }
    }
  }

 private:
  std::vector<std::int64_t> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) {
      idle_.reserve(++made_);
      return std::vector<std::int64_t>(size_);
    }
    std::vector<std::int64_t> counts = std::move(idle_.back());
    idle_.pop_back();
    return counts;
  }

  void give_back(std::vector<std::int64_t> counts) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(counts));  // room was reserved
  }

  std::size_t size_;
  std::size_t made_ = 0;
  std::mutex mutex_;
  std::vector<std::vector<std::int64_t>> idle_;
};

template <class Real>
void count_as(std::span<std::int64_t> counts, const Rankable& tensors, int level,
    std::span<const std::int64_t> prefixes, const Execution& execution) {
  require<ArgumentError>(level >= 0 && level < kLevels<Real>,
      "level: expected 0 to " + std::to_string(kLevels<Real> - 1) + ", got " + std::to_string(level));
  const std::size_t total = tensors.w[0].count;
  Histograms histograms(counts.size() * (level == 0 ? kTurns : 1));
  for_blocks((total + kStretch - 1) / kStretch, execution, [&](std::size_t stretch) {
    Histograms::Lease lease(histograms);
    KeyReader<Real> reader(tensors);
    reader.read(stretch * kStretch, std::min(total, (stretch + 1) * kStretch),
        [&](std::size_t k, const Bits<Real>* keys, std::size_t, std::size_t count) {
          std::int64_t* const mine = lease.counts() + k * kHistogram;
          if (level == 0) {
            return count_first(keys, count, shift_of<Real>(0), mine, counts.size());
          }
          for_matches<Real>(keys, count, shift_of<Real>(level - 1), static_cast<Bits<Real>>(prefixes[k]),
              [&](std::size_t x) { ++mine[digit_of<Real>(keys[x], level)]; });
        });
  });
  histograms.add_to(counts);
}

using Parts = std::vector<Gathered>;

template <class Real>
Parts gather_as(
    const Rankable& tensors, int level, std::span<const Wanted> wanted, const Execution& execution) {
  const std::size_t total = tensors.w[0].count;
  std::vector<Parts> parts((total + kStretch - 1) / kStretch, Parts(wanted.size()));
  for_blocks(parts.size(), execution, [&](std::size_t stretch) {
    KeyReader<Real> reader(tensors);
    reader.read(stretch * kStretch, std::min(total, (stretch + 1) * kStretch),
        [&](std::size_t k, const Bits<Real>* keys, std::size_t start, std::size_t count) {
          for (std::size_t i = 0; i < wanted.size(); ++i) {
            Gathered& found = parts[stretch][i];
            const auto prefix = static_cast<Bits<Real>>(wanted[i].prefix);
            std::int64_t match_keys[KeyReader<Real>::kBlock];
            std::int64_t match_places[KeyReader<Real>::kBlock];
            std::size_t n = 0;
            for_matches<Real>(
                keys, wanted[i].ranking == k ? count : 0, shift_of<Real>(level), prefix, [&](std::size_t x) {
                  match_keys[n] = keys[x];
                  match_places[n++] = static_cast<std::int64_t>(start + x);
                });
            found.keys.insert(found.keys.end(), match_keys, match_keys + n);
            found.places.insert(found.places.end(), match_places, match_places + n);
          }
        });
  });
  if (parts.size() == 1) {
    return std::move(parts[0]);
  }
  Parts all(wanted.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::size_t size = 0;
    for (const Parts& part : parts) {
      size += part[i].keys.size();
    }
    all[i].keys.reserve(size);
    all[i].places.reserve(size);
    for (Parts& part : parts) {
      const Gathered one = std::move(part[i]);  // freed when it has been copied
      all[i].keys.insert(all[i].keys.end(), one.keys.begin(), one.keys.end());
      all[i].places.insert(all[i].places.end(), one.places.begin(), one.places.end());
    }
  }
  return all;
}

template <class Real>
void mark_as(
    std::span<std::uint8_t> bits, const Rankable& tensor, std::int64_t key, const Execution& execution) {
  const std::size_t total = tensor.w[0].count;
  std::fill(bits.begin(), bits.end(), std::uint8_t{0});
  for_blocks((total + kStretch - 1) / kStretch, execution, [&](std::size_t stretch) {
    KeyReader<Real> reader(tensor);
    reader.read(stretch * kStretch, std::min(total, (stretch + 1) * kStretch),
        [&](std::size_t, const Bits<Real>* keys, std::size_t start, std::size_t count) {
          std::uint8_t same[KeyReader<Real>::kBlock];
          for (std::size_t x = 0; x < count; ++x) {
            same[x] = static_cast<std::uint8_t>(keys[x] == static_cast<Bits<Real>>(key));
          }
          pack_flags(same, count, bits.data() + start / 8);
        });
  });
}

}  // namespace

void count_digits(std::span<std::int64_t> counts, const Rankable& tensors, int level,
    std::span<const std::int64_t> prefixes, const Execution& execution) {
  check(tensors);
  require<ShapeError>(
      counts.size() == tensors.rankings() * kHistogram && prefixes.size() == tensors.rankings(),
      "selection: needs one histogram and one prefix for each ranking");
  if (tensors.wide) {
    return count_as<double>(counts, tensors, level, prefixes, execution);
  }
  count_as<float>(counts, tensors, level, prefixes, execution);
}

std::vector<Gathered> gather_digits(
    const Rankable& tensors, int level, std::span<const Wanted> wanted, const Execution& execution) {
  check(tensors);
  for (const Wanted& one : wanted) {
    require<ArgumentError>(one.ranking < tensors.rankings(), "which: expected 0 to " +
                                                                 std::to_string(tensors.rankings() - 1) +
                                                                 ", got " + std::to_string(one.ranking));
  }
  require<ArgumentError>(level >= -1 && level < (tensors.wide ? 4 : 2), "level: there is no such digit");
  return tensors.wide ? gather_as<double>(tensors, level, wanted, execution)
                      : gather_as<float>(tensors, level, wanted, execution);
}

void mark_key(
    std::span<std::uint8_t> bits, const Rankable& tensor, std::int64_t key, const Execution& execution) {
  check(tensor);
  require<ShapeError>(tensor.rankings() == 1 && bits.size() == (tensor.w[0].count + 7) / 8,
      "selection: marks one ranking at a time, one bit for each element");
  if (tensor.wide) {
    return mark_as<double>(bits, tensor, key, execution);
  }
  mark_as<float>(bits, tensor, key, execution);
}

}  // namespace weightshare

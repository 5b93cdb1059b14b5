#include "weightshare/sparsity.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "deltas.hpp"
#include "masking.hpp"
#include "packed.hpp"
#include "row_ranks.hpp"
#include "weightshare/error.hpp"
#include "weightshare/random.hpp"

namespace weightshare {
namespace {

constexpr std::size_t kLanes = 8;

/// The blocks of a chunk, masked.
template <class Real>
class Masked {
 public:
  static constexpr std::size_t kBlock = Deltas<Real>::kBlock;

  explicit Masked(const TaskVectors& vectors)
      : vectors_(vectors), deltas_(vectors.w, vectors.base), rows_(vectors.w.size()) {}

  Deltas<Real>& deltas() { return deltas_; }

  /// From now on tells which elements the masks of kind `ranked` and `random` keep.
  void tell(std::span<std::uint8_t> bits) { told_ = bits; }

  /// To be called before the blocks of the chunk [start, stop) are masked.
  void enter(std::size_t start, std::size_t stop) {
    chunk_ = start;
    for (std::size_t j = 0; j < rows_.size(); ++j) {
      if (vectors_.masks[j].keep == Keep::ranked) {
        rank_rows(j, start, stop);
        pack(j, rows_[j].data(), start, stop - start);
      }
    }
  }

  /// Zeroes what the masks drop of the block that `deltas` last read.
  void mask(std::size_t start, std::size_t count) {
    bool shared = false;
    for (std::size_t j = 0; j < rows_.size(); ++j) {
      const Mask& mask = vectors_.masks[j];
      if (mask.keep == Keep::variance) {
        if (!shared) {
          deltas_.variance_keys(keys_, sums_, count);
        }
        shared = true;
        keep_ranks(j, mask, start, count);
      } else {
        mask_one(j, mask, start, count);
      }
    }
  }

 private:
  void mask_one(std::size_t j, const Mask& mask, std::size_t start, std::size_t count) {
    Real* const values = deltas_.of(j);
    switch (mask.keep) {
      case Keep::all:
      case Keep::variance:
        return;
      case Keep::none:
        std::fill_n(values, count, Real{0});
        return;
      case Keep::magnitude:
      case Keep::band:
        deltas_.keys(j, keys_, count);
        return keep_ranks(j, mask, start, count);
      case Keep::random:
        return keep_random(j, mask, start, count);
      case Keep::held:
        return keep_bits(values, mask.bits + start / 8, count);
      case Keep::ranked:
        for (std::size_t x = 0; x < count; ++x) {
          const Bits<Real> kept = -static_cast<Bits<Real>>(rows_[j][start - chunk_ + x]);
          values[x] = masked_by<Real>(values[x], kept, 0);
        }
    }
  }

  void pack(std::size_t j, const std::uint8_t* flags, std::size_t start, std::size_t count) {
    if (!told_.empty()) {
      pack_flags(flags, count, told_.data() + j * (told_.size() / rows_.size()) + start / 8);
    }
  }

  void keep_random(std::size_t j, const Mask& mask, std::size_t start, std::size_t count) {
    if (mask.bound < std::int64_t{1} << 32U) {
      random_words(mask.stream, vectors_.start + start, {words_, count});
      keep_below(deltas_.of(j), words_, count, static_cast<std::uint32_t>(mask.bound));
    }
    if (!told_.empty()) {
      std::uint8_t flags[kBlock];
      for (std::size_t x = 0; x < count; ++x) {
        flags[x] = static_cast<std::uint8_t>(static_cast<std::int64_t>(words_[x]) < mask.bound);
      }
      pack(j, flags, start, count);
    }
  }

  /// Masks by keys_, in stretches between the places where equal keys begin to be dropped.
  void keep_ranks(std::size_t j, const Mask& mask, std::size_t start, std::size_t count) {
    constexpr Bits<Real> kAny = std::numeric_limits<Bits<Real>>::max();
    const auto place = static_cast<std::int64_t>(vectors_.start + start);
    const auto within = [&](std::int64_t cutoff) {
      return static_cast<std::size_t>(
          std::clamp(cutoff - place, std::int64_t{0}, static_cast<std::int64_t>(count)));
    };
    const bool band = mask.keep == Keep::band;
    const std::size_t low = within(mask.cutoff);
    const std::size_t high = band ? within(mask.top_cutoff) : 0;
    const std::array<std::size_t, 4> ends{0, std::min(low, high), std::max(low, high), count};
    for (std::size_t part = 0; part < 3; ++part) {
      const std::size_t begin = ends[part];
      const auto key = static_cast<Bits<Real>>(mask.key);
      const auto top = static_cast<Bits<Real>>(mask.top_key);
      keep_between<Real>(deltas_.of(j) + begin, keys_ + begin, ends[part + 1] - begin,
          begin < low ? key - 1 : key, !band ? kAny : (begin < high ? top - 1 : top));
    }
  }

  void rank_rows(std::size_t j, std::size_t start, std::size_t stop) {
    const Mask& mask = vectors_.masks[j];
    const std::size_t row = vectors_.row;
    rows_[j].resize(stop - start);
    row_keys_.resize(row);
    row_words_.resize(row);
    Deltas<Real> one(vectors_.w.subspan(j, 1), vectors_.base);
    for (std::size_t x = start; x < stop; x += row) {
      const std::size_t length = std::min(row, stop - x);
      for (std::size_t done = 0; done < length; done += kBlock) {
        const std::size_t count = std::min(kBlock, length - done);
        one.read(x + done, count);
        one.keys(0, row_keys_.data() + done, count);
      }
      random_words(mask.stream, vectors_.start + x, {row_words_.data(), length});
      ranks_.keep(
          row_keys_.data(), row_words_.data(), length, mask.least, mask.most, rows_[j].data() + (x - start));
    }
  }

  const TaskVectors& vectors_;
  Deltas<Real> deltas_;
  std::vector<std::vector<std::uint8_t>> rows_;
  std::span<std::uint8_t> told_;
  std::vector<Bits<Real>> row_keys_;
  std::vector<std::uint32_t> row_words_;
  RowRanks<Real> ranks_;
  std::size_t chunk_ = 0;
  Bits<Real> keys_[kBlock];
  Real sums_[kBlock];
  std::uint32_t words_[kBlock];
};

void check(const TaskVectors& vectors) {
  const std::size_t n = vectors.w.size();
  require<ShapeError>(
      n > 0 && vectors.masks.size() == n, "sparsity: needs one mask for each of 1 or more tensors");
  const std::size_t count = vectors.w[0].count;
  bool fits = vectors.base == nullptr || vectors.base->count == count;
  for (const ConstBuffer& tensor : vectors.w) {
    fits = fits && tensor.count == count;
  }
  require<ShapeError>(fits, "sparsity: all tensors and the base must have the same number of elements");
  require<ArgumentError>(vectors.row > 0 && vectors.chunk > 0, "sparsity: rows and chunks need an element");
  bool whole = true;
  for (const Mask& mask : vectors.masks) {
    whole = whole && (mask.keep != Keep::ranked ||
                         (vectors.chunk % vectors.row == 0 && vectors.start % vectors.row == 0 &&
                             (count % vectors.row == 0)));
  }
  require<ShapeError>(
      whole, "sparsity: ranks need whole rows of " + std::to_string(vectors.row) + " elements");
}

/// Sums by lane; x counts from the start of the chunk, which is a multiple of kLanes from every block.
template <int power, class Real>
void add_powers(std::array<double, kLanes>& sums, const Real* values, std::size_t count) {
  std::size_t x = 0;
  for (; x + kLanes <= count; x += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const auto value = static_cast<double>(values[x + lane]);
      sums[lane] += power == 1 ? std::fabs(value) : value * value;
    }
  }
  for (; x < count; ++x) {
    const auto value = static_cast<double>(values[x]);
    sums[x % kLanes] += power == 1 ? std::fabs(value) : value * value;
  }
}

double total(const std::array<double, kLanes>& sums) {
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

template <class Real, int power>
void norms_as(std::span<double> all, std::span<double> kept, const TaskVectors& vectors,
    std::span<std::uint8_t> bits, const Execution& execution) {
  const std::size_t count = vectors.w[0].count;
  const std::size_t n = vectors.w.size();
  for_blocks((count + vectors.chunk - 1) / vectors.chunk, execution, [&](std::size_t chunk) {
    const std::size_t start = chunk * vectors.chunk;
    const std::size_t stop = std::min(count, start + vectors.chunk);
    const auto masked = std::make_unique<Masked<Real>>(vectors);
    std::vector<std::array<double, kLanes>> sums(2 * n);
    masked->tell(bits);
    masked->enter(start, stop);
    for (std::size_t x = start; x < stop; x += masked->kBlock) {
      const std::size_t length = std::min(masked->kBlock, stop - x);
      masked->deltas().read(x, length);
      for (std::size_t j = 0; j < n; ++j) {
        add_powers<power, Real>(sums[j], masked->deltas().of(j), length);
      }
      masked->mask(x, length);
      for (std::size_t j = 0; j < n; ++j) {
        add_powers<power, Real>(sums[n + j], masked->deltas().of(j), length);
      }
    }
    for (std::size_t j = 0; j < n; ++j) {
      all[chunk * n + j] = total(sums[j]);
      kept[chunk * n + j] = total(sums[n + j]);
    }
  });
}

/// The sum over one block, in place of scratch that the caller owns.
template <class Real>
class Sum {
 public:
  static constexpr std::size_t kBlock = Deltas<Real>::kBlock;

  explicit Sum(const Ballot& ballot) : ballot_(ballot), divide_(!ballot.weights.empty()) {}

  const Real* of(const Deltas<Real>& deltas, std::size_t count) {
    std::fill_n(sums_, count, Real{0});
    if (ballot_.votes.empty()) {
      for (std::size_t j = 0; j < deltas.size(); ++j) {
        add(deltas.of(j), static_cast<Real>(ballot_.coefficients[j] * ballot_.strength), count);
      }
    } else if (deltas.size() == 2) {
      return divide_ ? elect_two<true>(deltas, count) : elect_two<false>(deltas, count);
    } else {
      elect(deltas, count);
      finish(count);
    }
    add_base(deltas.base(), count);
    return sums_;
  }

 private:
  void add(const Real* values, Real factor, std::size_t count) {
    for (std::size_t x = 0; x < count; ++x) {
      sums_[x] += factor * values[x];
    }
  }

  void elect(const Deltas<Real>& deltas, std::size_t count) {
    std::fill_n(tally_, count, Real{0});
    std::fill_n(divisors_, count, Real{0});
    for (std::size_t j = 0; j < deltas.size(); ++j) {
      const Real* const values = deltas.of(j);
      const auto vote = static_cast<Real>(ballot_.votes[j]);
      for (std::size_t x = 0; x < count; ++x) {
        tally_[x] += vote * values[x];
      }
    }
    for (std::size_t x = 0; x < count; ++x) {
      flips_[x] = -static_cast<Bits<Real>>(tally_[x] < Real{0}) & kSign;
    }
    for (std::size_t j = 0; j < deltas.size(); ++j) {
      const Real* const values = deltas.of(j);
      const auto vote = static_cast<Real>(ballot_.votes[j]);
      const auto factor = static_cast<Real>(ballot_.coefficients[j]);
      const Real weight = divide_ ? static_cast<Real>(ballot_.weights[j]) : Real{0};
      for (std::size_t x = 0; x < count; ++x) {
        const Real turned = masked_by<Real>(vote * values[x], kAll, flips_[x]);
        const auto agrees = -static_cast<Bits<Real>>(turned > Real{0});
        sums_[x] += masked_by<Real>(factor * values[x], agrees, 0);
        divisors_[x] += masked_by<Real>(weight, agrees, 0);
      }
    }
  }

  /// What `elect`, `finish` and `add_base` do, operation by operation, without a stop in memory.
  template <bool divide>
  const Real* elect_two(const Deltas<Real>& deltas, std::size_t count) {
    const auto of = [](std::span<const double> numbers, std::size_t j) {
      return numbers.empty() ? Real{0} : static_cast<Real>(numbers[j]);
    };
    const Real vote[2] = {of(ballot_.votes, 0), of(ballot_.votes, 1)};
    const Real factor[2] = {of(ballot_.coefficients, 0), of(ballot_.coefficients, 1)};
    const Real weight[2] = {of(ballot_.weights, 0), of(ballot_.weights, 1)};
    const auto strength = static_cast<Real>(ballot_.strength);
    const auto tiny = static_cast<Real>(ballot_.tiny);
    const auto instead = static_cast<Real>(ballot_.instead);
    const Real* const first = deltas.of(0);
    const Real* const second = deltas.of(1);
    const Real* const base = deltas.base();
    for (std::size_t x = 0; x < count; ++x) {
      const Real votes[2] = {vote[0] * first[x], vote[1] * second[x]};
      const Real tally = votes[0] + votes[1];
      const Bits<Real> flip = -static_cast<Bits<Real>>(tally < Real{0}) & kSign;
      const auto here = -static_cast<Bits<Real>>(masked_by<Real>(votes[0], kAll, flip) > Real{0});
      const auto there = -static_cast<Bits<Real>>(masked_by<Real>(votes[1], kAll, flip) > Real{0});
      Real sum =
          masked_by<Real>(factor[0] * first[x], here, 0) + masked_by<Real>(factor[1] * second[x], there, 0);
      sum = tally == tally ? sum : tally;
      if constexpr (divide) {
        const Real total = masked_by<Real>(weight[0], here, 0) + masked_by<Real>(weight[1], there, 0);
        sum /= std::fabs(total) <= tiny ? instead : total;
      }
      sum *= strength;
      sums_[x] = sum == Real{0} ? base[x] : base[x] + sum;
    }
    return sums_;
  }

  void finish(std::size_t count) {
    const auto strength = static_cast<Real>(ballot_.strength);
    const auto tiny = static_cast<Real>(ballot_.tiny);
    const auto instead = static_cast<Real>(ballot_.instead);
    for (std::size_t x = 0; x < count; ++x) {
      const Real sum = tally_[x] == tally_[x] ? sums_[x] : tally_[x];  // a NaN among the votes shows
      const Real divisor = std::fabs(divisors_[x]) <= tiny ? instead : divisors_[x];
      sums_[x] = strength * (divide_ ? sum / divisor : sum);
    }
  }

  /// A sum of zero keeps the base as it is, the sign of a zero included.
  void add_base(const Real* base, std::size_t count) {
    for (std::size_t x = 0; x < count; ++x) {
      const Real moved = base[x] + sums_[x];
      sums_[x] = sums_[x] == Real{0} ? base[x] : moved;
    }
  }

  static constexpr Bits<Real> kAll = -1;
  static constexpr Bits<Real> kSign = std::numeric_limits<Bits<Real>>::min();

  const Ballot& ballot_;
  bool divide_;
  Bits<Real> flips_[kBlock];
  Real sums_[kBlock];
  Real tally_[kBlock];
  Real divisors_[kBlock];
};

template <class Real>
void sum_as(const Buffer& out, const TaskVectors& vectors, const Ballot& ballot, const Execution& execution) {
  const std::size_t count = out.count;
  for_blocks((count + vectors.chunk - 1) / vectors.chunk, execution, [&](std::size_t chunk) {
    const std::size_t start = chunk * vectors.chunk;
    const std::size_t stop = std::min(count, start + vectors.chunk);
    const auto masked = std::make_unique<Masked<Real>>(vectors);
    const auto sum = std::make_unique<Sum<Real>>(ballot);
    masked->enter(start, stop);
    for (std::size_t x = start; x < stop; x += masked->kBlock) {
      const std::size_t length = std::min(masked->kBlock, stop - x);
      masked->deltas().read(x, length);
      masked->mask(x, length);
      narrow<Real>(out.element, sum->of(masked->deltas(), length), out.at(x), length);
    }
  });
}

}  // namespace

void chunk_norms(std::span<double> all, std::span<double> kept, const TaskVectors& vectors, int power,
    std::span<std::uint8_t> bits, const Execution& execution) {
  check(vectors);
  const std::size_t bytes = (vectors.w[0].count + 7) / 8;
  require<ShapeError>(bits.empty() || (bits.size() == bytes * vectors.w.size() && vectors.chunk % 8 == 0),
      "sparsity: needs a bit for each element of each tensor, and chunks of whole bytes");
  const std::size_t chunks = (vectors.w[0].count + vectors.chunk - 1) / vectors.chunk;
  require<ShapeError>(all.size() == chunks * vectors.w.size() && kept.size() == all.size(),
      "sparsity: needs one norm for each chunk of each tensor");
  require<ArgumentError>(power == 1 || power == 2, "power: expected 1 or 2, got " + std::to_string(power));
  if (vectors.wide) {
    return power == 1 ? norms_as<double, 1>(all, kept, vectors, bits, execution)
                      : norms_as<double, 2>(all, kept, vectors, bits, execution);
  }
  power == 1 ? norms_as<float, 1>(all, kept, vectors, bits, execution)
             : norms_as<float, 2>(all, kept, vectors, bits, execution);
}

void sum_task_vectors(
    const Buffer& out, const TaskVectors& vectors, const Ballot& ballot, const Execution& execution) {
  check(vectors);
  const std::size_t n = vectors.w.size();
  require<ShapeError>(vectors.base != nullptr && out.count == vectors.w[0].count,
      "sparsity: the sum needs a base, and an output of the same number of elements");
  require<ShapeError>(ballot.coefficients.size() == n && (ballot.votes.empty() || ballot.votes.size() == n) &&
                          (ballot.weights.empty() || ballot.weights.size() == n),
      "sparsity: needs one coefficient, vote and weight for each tensor");
  require<ArgumentError>(ballot.weights.empty() || !ballot.votes.empty(),
      "sparsity: without an election, divide the coefficients");
  if (vectors.wide) {
    return sum_as<double>(out, vectors, ballot, execution);
  }
  sum_as<float>(out, vectors, ballot, execution);
}

}  // namespace weightshare

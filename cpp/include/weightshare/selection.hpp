#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "weightshare/buffer.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

/// What elements are ranked by: the magnitude of w_j - base, for each tensor apart, or the population
/// variance over the tensors of w_j - base, one for all of them.
enum class Quantity : std::uint8_t { magnitude, variance };

/// Tensors of one count whose elements are ranked.
struct Rankable {
  std::span<const ConstBuffer> w;
  const ConstBuffer* base = nullptr;  ///< nullptr means that nothing is subtracted
  Quantity quantity = Quantity::magnitude;
  bool wide = false;  ///< whether to compute in float64, or in float32

  std::size_t rankings() const { return quantity == Quantity::magnitude ? w.size() : 1; }
};

/// The key of an element is the bit pattern of its quantity, so greater keys are greater quantities; NaN is
/// above infinity. Keys have 31 bits, or 63 in float64. Digits are read from the top: level 0 is bits 30..15
/// and level 1 bits 14..0 in float32; levels 0 to 3 are bits 62..47, 46..31, 30..15, 14..0 in float64.
constexpr std::size_t kDigits = std::size_t{1} << 16U;
constexpr std::size_t kHistogram = kDigits + 1;

/// Adds to counts[ranking * kHistogram + digit] the number of elements of each digit at a level, among those
/// whose digits above it are `prefixes[ranking]`; at kDigits, at level 0, the number whose key is zero.
/// Sums of integers: the same however tensors are cut, whatever the threads.
void count_digits(std::span<std::int64_t> counts, const Rankable& tensors, int level,
    std::span<const std::int64_t> prefixes, const Execution& execution);

/// Elements of one ranking whose digits down to a level are `prefix`. At level -1, prefix 0 is every element.
struct Wanted {
  std::size_t ranking = 0;
  std::int64_t prefix = 0;
};

/// The keys of the elements that are wanted, and their places, in order; one answer for each wish.
struct Gathered {
  std::vector<std::int64_t> keys;
  std::vector<std::int64_t> places;
};
std::vector<Gathered> gather_digits(
    const Rankable& tensors, int level, std::span<const Wanted> wanted, const Execution& execution);

/// Sets bit x % 8 of bits[x / 8] where element x has that key, and clears the others.
void mark_key(
    std::span<std::uint8_t> bits, const Rankable& tensor, std::int64_t key, const Execution& execution);

}  // namespace weightshare

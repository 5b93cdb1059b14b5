#include "weightshare/integrity.hpp"

#include <algorithm>
#include <cstring>

namespace weightshare {
namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr std::size_t kWord = sizeof(std::uint64_t);
constexpr std::size_t kBlock = 4096;

/// An odd number that is different for every place of a word and looks random.
inline std::uint64_t key(std::uint64_t place) {
  std::uint64_t x = (place + 1) * 0x9E3779B97F4A7C15U;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93U;
  x ^= x >> 32;
  return x | 1U;
}

inline Wide term(std::uint64_t word, std::uint64_t place) {
  return static_cast<Wide>(word) * key(place);
}

inline std::uint64_t load_word(const std::byte* data) {
  std::uint64_t word = 0;
  std::memcpy(&word, data, kWord);
  return word;
}

/// A word of which only `count` bytes are known, the first of them at byte `place` of the word.
std::uint64_t load_part(const std::byte* data, std::size_t place, std::size_t count) {
  std::uint64_t word = 0;
  if (count > 0) {  // an empty stretch may have no address
    std::memcpy(reinterpret_cast<std::byte*>(&word) + place, data, count);
  }
  return word;
}

Wide whole_words(const std::byte* data, std::size_t count, std::uint64_t place) {
  Wide sums[4] = {0, 0, 0, 0};
  std::size_t k = 0;
  for (; k + 4 <= count; k += 4) {
    for (std::size_t lane = 0; lane < 4; ++lane) {
      sums[lane] += term(load_word(data + (k + lane) * kWord), place + k + lane);
    }
  }
  for (; k < count; ++k) {
    sums[0] += term(load_word(data + k * kWord), place + k);
  }
  return sums[0] + sums[1] + sums[2] + sums[3];
}

/// Counts numbers by their bits without the sign: at infinity, and above, where NaN is.
template <class Bits>
NonFinite count_bits(const void* data, std::size_t count, Bits infinity) {
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;
  const Bits* bits = static_cast<const Bits*>(data);
  NonFinite found;
  for (std::size_t start = 0; start < count; start += kBlock) {
    const std::size_t end = std::min(count, start + kBlock);
    Bits largest = 0;
    for (std::size_t k = start; k < end; ++k) {
      largest = std::max(largest, static_cast<Bits>(bits[k] & kMagnitude));
    }
    if (largest < infinity) {
      continue;
    }
    for (std::size_t k = start; k < end; ++k) {
      const Bits magnitude = bits[k] & kMagnitude;
      found.infinite += magnitude == infinity;
      found.nan += magnitude > infinity;
    }
  }
  return found;
}

}  // namespace

Digest operator+(const Digest& first, const Digest& second) {
  const std::uint64_t low = first.low + second.low;
  return {low, first.high + second.high + (low < first.low)};
}

Digest digest(std::span<const std::byte> data, std::uint64_t start) {
  Wide sum = 0;
  const std::byte* next = data.data();
  std::size_t left = data.size();
  std::uint64_t place = start / kWord;
  const std::size_t within = start % kWord;
  if (within != 0) {
    const std::size_t count = std::min(kWord - within, left);
    sum += term(load_part(next, within, count), place);
    next += count;
    left -= count;
    ++place;
  }
  sum += whole_words(next, left / kWord, place);
  if (left % kWord != 0) {
    const std::size_t whole = left / kWord;
    sum += term(load_part(next + whole * kWord, 0, left % kWord), place + whole);
  }
  return {static_cast<std::uint64_t>(sum), static_cast<std::uint64_t>(sum >> 64)};
}

NonFinite count_nonfinite(const ConstBuffer& values) {
  switch (values.element) {
    case Element::f16:
      return count_bits<std::uint16_t>(values.data, values.count, 0x7C00U);
    case Element::bf16:
      return count_bits<std::uint16_t>(values.data, values.count, 0x7F80U);
    case Element::f32:
      return count_bits<std::uint32_t>(values.data, values.count, 0x7F800000U);
    case Element::f64:
      break;
  }
  return count_bits<std::uint64_t>(values.data, values.count, 0x7FF0000000000000U);
}

}  // namespace weightshare

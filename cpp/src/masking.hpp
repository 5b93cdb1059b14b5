#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "deltas.hpp"

namespace weightshare {

/// The value with only the bits of `kept`, then with the bits of `flipped` turned over.
template <class Real>
inline Real masked_by(Real value, Bits<Real> kept, Bits<Real> flipped) {
  return std::bit_cast<Real>((std::bit_cast<Bits<Real>>(value) & kept) ^ flipped);
}

/// Zeroes what does not lie in (above, top], keys being integers.
template <class Real>
void keep_between(Real* values, const Bits<Real>* keys, std::size_t count, Bits<Real> above, Bits<Real> top) {
  for (std::size_t x = 0; x < count; ++x) {
    const Bits<Real> kept = -static_cast<Bits<Real>>((keys[x] > above) & (keys[x] <= top));
    values[x] = masked_by<Real>(values[x], kept, 0);
  }
}

template <class Real, class Word>
void keep_below(Real* values, const Word* words, std::size_t count, Word bound) {
  for (std::size_t x = 0; x < count; ++x) {
    const Bits<Real> kept = -static_cast<Bits<Real>>(words[x] < bound);
    values[x] = masked_by<Real>(values[x], kept, 0);
  }
}

template <class Real>
void keep_bits(Real* values, const std::uint8_t* bits, std::size_t count) {
  constexpr Bits<Real> kPlaces[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  std::size_t x = 0;
  for (; x + 8 <= count; x += 8) {
    const Bits<Real> byte = bits[x / 8];
    for (std::size_t bit = 0; bit < 8; ++bit) {
      values[x + bit] =
          masked_by<Real>(values[x + bit], -static_cast<Bits<Real>>((byte & kPlaces[bit]) != 0), 0);
    }
  }
  for (; x < count; ++x) {
    values[x] = masked_by<Real>(values[x], -static_cast<Bits<Real>>((bits[x / 8] >> (x % 8)) & 1), 0);
  }
}

}  // namespace weightshare

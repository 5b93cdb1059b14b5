#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace weightshare {

/// Packs flags that are 0 or 1 into bits, lowest first; `bits` has (count + 7) / 8 bytes.
inline void pack_flags(const std::uint8_t* flags, std::size_t count, std::uint8_t* bits) {
  constexpr std::uint64_t kToTop = 0x0102040810204080U;  // brings bit 0 of byte i to bit 56 + i
  std::size_t x = 0;
  if constexpr (std::endian::native == std::endian::little) {
    for (; x + 8 <= count; x += 8) {
      std::uint64_t eight = 0;
      std::memcpy(&eight, flags + x, sizeof(eight));
      bits[x / 8] = static_cast<std::uint8_t>((eight * kToTop) >> 56U);
    }
  }
  for (; x < count; x += 8) {
    unsigned byte = 0;
    for (std::size_t bit = 0; bit < 8 && x + bit < count; ++bit) {
      byte |= static_cast<unsigned>(flags[x + bit]) << bit;
    }
    bits[x / 8] = static_cast<std::uint8_t>(byte);
  }
}

/// found(x) for every flag that is set; flags are told from 0 eight at a time.
template <class Found>
void for_flags(const std::uint8_t* flags, std::size_t count, const Found& found) {
  std::size_t x = 0;
  if constexpr (std::endian::native == std::endian::little) {
    for (; x + 8 <= count; x += 8) {
      std::uint64_t eight = 0;
      std::memcpy(&eight, flags + x, sizeof(eight));
      for (; eight != 0; eight &= eight - 1) {
        found(x + static_cast<std::size_t>(std::countr_zero(eight)) / 8);
      }
    }
  }
  for (; x < count; ++x) {
    if (flags[x] != 0) {
      found(x);
    }
  }
}

}  // namespace weightshare

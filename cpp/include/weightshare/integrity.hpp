#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "weightshare/buffer.hpp"

namespace weightshare {

/// A checksum of 128 bits. Those of the stretches of a tensor, added, are that of the tensor.
struct Digest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  bool operator==(const Digest&) const = default;
};

Digest operator+(const Digest& first, const Digest& second);

/// The checksum of bytes that begin at byte `start` of their tensor: the sum over little-endian words of
/// 8 bytes of word times key, modulo 2^128, where the key is an odd hash of the word's place. Any one
/// changed word changes it, and stretches may be cut anywhere. It finds damage, not malice.
Digest digest(std::span<const std::byte> data, std::uint64_t start);

/// How many elements are no finite numbers.
struct NonFinite {
  std::size_t nan = 0;
  std::size_t infinite = 0;
};

NonFinite count_nonfinite(const ConstBuffer& values);

}  // namespace weightshare

#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace weightshare {

/// Philox4x32-10: four random words from a counter and a key.
///
/// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
std::array<std::uint32_t, 4> philox(const std::array<std::uint32_t, 4>& counter, std::uint64_t key);

/// Fills `out` with the words [start, start + out.size()) of the stream that `key` names.
///
/// Word i is word i % 4 of the counter i / 4, so any stretch of a stream can be made by itself.
void random_words(std::uint64_t key, std::uint64_t start, std::span<std::uint32_t> out);

}  // namespace weightshare

#include "weightshare/random.hpp"

#include <array>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

using namespace weightshare;

namespace {

using Words = std::array<std::uint32_t, 4>;

std::vector<std::uint32_t> stretch(std::uint64_t key, std::uint64_t start, std::size_t count) {
  std::vector<std::uint32_t> words(count);
  random_words(key, start, words);
  return words;
}

}  // namespace

TEST_CASE("the generator gives the known answers of Random123") {
  constexpr std::uint32_t kOnes = 0xFFFFFFFFU;
  CHECK(philox({0, 0, 0, 0}, 0) == Words{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U});
  CHECK(philox({kOnes, kOnes, kOnes, kOnes}, ~std::uint64_t{0}) ==
        Words{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU});
  CHECK(philox({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, 0x299f31d0a4093822U) ==
        Words{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U});
}

TEST_CASE("word i of a stream is word i % 4 of the counter i / 4") {
  constexpr std::uint64_t kKey = 0x0123456789abcdefU;
  const std::vector<std::uint32_t> words = stretch(kKey, 0, 1003);
  for (std::size_t i = 0; i < words.size(); ++i) {
    CHECK(words[i] == philox({static_cast<std::uint32_t>(i / 4), 0, 0, 0}, kKey)[i % 4]);
  }
}

TEST_CASE("any stretch of a stream can be made by itself, past 2^32 counters too") {
  constexpr std::uint64_t kKey = 77;
  for (const std::uint64_t from : {std::uint64_t{0}, (std::uint64_t{1} << 34U) - 40}) {
    const std::vector<std::uint32_t> whole = stretch(kKey, from, 200);
    for (std::size_t start = 0; start < 24; ++start) {
      for (const std::size_t count : {0U, 1U, 2U, 5U, 16U, 31U, 64U, 101U}) {
        const std::vector<std::uint32_t> part = stretch(kKey, from + start, count);
        const auto first = whole.begin() + static_cast<std::ptrdiff_t>(start);
        CHECK(part == std::vector<std::uint32_t>(first, first + static_cast<std::ptrdiff_t>(count)));
      }
    }
  }
  const std::uint64_t counter = (std::uint64_t{1} << 32U) + 5;
  CHECK(stretch(kKey, 4 * counter, 1)[0] == philox({5, 1, 0, 0}, kKey)[0]);
}

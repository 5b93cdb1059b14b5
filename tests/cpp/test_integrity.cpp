#include "weightshare/integrity.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

using namespace weightshare;

namespace {

__extension__ typedef unsigned __int128 Wide;

std::vector<std::byte> pattern(std::size_t count) {
  std::vector<std::byte> data(count);
  for (std::size_t k = 0; k < count; ++k) {
    data[k] = static_cast<std::byte>((k * k * 31 + k * 7 + 3) % 256);
  }
  return data;
}

std::uint64_t key(std::uint64_t place) {
  std::uint64_t x = (place + 1) * 0x9E3779B97F4A7C15U;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93U;
  x ^= x >> 32;
  return x | 1U;
}

/// The formula, byte by byte.
Digest expected(const std::vector<std::byte>& data, std::uint64_t start) {
  Wide sum = 0;
  for (std::size_t k = 0; k < data.size(); ++k) {
    const std::uint64_t at = start + k;
    const std::uint64_t shifted = std::to_integer<std::uint64_t>(data[k]) << (8 * (at % 8));
    sum += static_cast<Wide>(shifted) * key(at / 8);
  }
  return {static_cast<std::uint64_t>(sum), static_cast<std::uint64_t>(sum >> 64)};
}

}  // namespace

TEST_CASE("a digest is the sum of words times keys, wherever it begins and however long it is") {
  for (const std::size_t count : {0U, 1U, 7U, 8U, 9U, 31U, 32U, 33U, 64U, 1001U}) {
    for (const std::uint64_t start : {0U, 1U, 5U, 8U, 15U, 64U}) {
      const std::vector<std::byte> data = pattern(count);
      CHECK(digest(data, start) == expected(data, start));
    }
  }
}

TEST_CASE("digests of the parts add up to that of the whole") {
  const std::vector<std::byte> data = pattern(1003);
  const std::span<const std::byte> all(data);
  const Digest whole = digest(all, 0);
  for (std::size_t cut = 0; cut <= data.size(); cut += 13) {
    CHECK(digest(all.first(cut), 0) + digest(all.subspan(cut), cut) == whole);
  }
}

TEST_CASE("one flipped bit, two flipped signs and two swapped words change a digest") {
  std::vector<std::byte> data = pattern(256);
  const Digest whole = digest(data, 0);
  for (std::size_t bit = 0; bit < 8 * data.size(); ++bit) {
    const std::byte mask = static_cast<std::byte>(1U << (bit % 8));
    data[bit / 8] ^= mask;
    CHECK_FALSE(digest(data, 0) == whole);
    data[bit / 8] ^= mask;
  }
  data[7] ^= std::byte{0x80};
  data[15] ^= std::byte{0x80};
  CHECK_FALSE(digest(data, 0) == whole);
  data = pattern(256);
  std::swap_ranges(data.begin(), data.begin() + 8, data.begin() + 64);
  CHECK_FALSE(digest(data, 0) == whole);
}

TEST_CASE("NaN and infinity of both signs are counted, in every element") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const double largest = std::numeric_limits<double>::max();
  std::vector<double> wide(5000, 1.0);
  wide[0] = nan;
  wide[17] = -infinity;
  wide[4095] = infinity;
  wide[4096] = -nan;
  wide[4999] = nan;
  wide[5] = largest;
  for (const Element element : {Element::f16, Element::bf16, Element::f32, Element::f64}) {
    std::vector<double> values = wide;
    if (element != Element::f64) {
      values[5] = 2.0;
    }
    std::vector<std::byte> stored(values.size() * size_of(element));
    narrow<double>(element, values.data(), stored.data(), values.size());
    const NonFinite found = count_nonfinite({stored.data(), values.size(), element});
    CHECK(found.nan == 3);
    CHECK(found.infinite == 2);
  }
  CHECK(count_nonfinite({nullptr, 0, Element::f32}).nan == 0);
}

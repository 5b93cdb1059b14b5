#include "weightshare/selection.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"

using namespace weightshare;

namespace {

std::vector<float> numbers(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t k = 0; k < count; ++k) {
    values[k] = static_cast<float>(static_cast<int>(k * 2654435761U % 1999) - 999) / 64.0F;
  }
  return values;
}

ConstBuffer view(const std::vector<float>& values) {
  return {values.data(), values.size(), Element::f32};
}

std::int64_t key_of(float value) {
  return std::bit_cast<std::int32_t>(std::fabs(value));
}

}  // namespace

TEST_CASE("digits are counted once each, among the elements of a prefix") {
  const std::vector<float> values = numbers(2500001);
  const ConstBuffer w = view(values);
  std::vector<std::int64_t> first(kHistogram);
  std::vector<std::int64_t> threaded(kHistogram);
  const std::vector<std::int64_t> none{0};
  count_digits(first, {{&w, 1}}, 0, none, {1, {}});
  count_digits(threaded, {{&w, 1}}, 0, none, {3, {}});
  CHECK(first == threaded);
  std::vector<std::int64_t> expected(kHistogram);
  const std::int64_t prefix = key_of(2.5F) >> 15;
  std::vector<std::int64_t> expected_below(kHistogram);
  for (const float value : values) {
    ++expected[static_cast<std::size_t>(key_of(value) >> 15)];
    expected[kDigits] += value == 0.0F ? 1 : 0;
    if (key_of(value) >> 15 == prefix) {
      ++expected_below[static_cast<std::size_t>(key_of(value) & 0x7fff)];
    }
  }
  CHECK(first == expected);
  std::vector<std::int64_t> below(kHistogram);
  count_digits(below, {{&w, 1}}, 1, {&prefix, 1}, {2, {}});
  CHECK(below == expected_below);
}

TEST_CASE("what is gathered and marked are the elements of a prefix and of a key, in order") {
  const std::vector<float> values = numbers(1100003);
  const ConstBuffer w = view(values);
  const std::int64_t key = key_of(1.25F);
  const Wanted wish{0, key >> 15};
  const Gathered found = gather_digits({{&w, 1}}, 0, {&wish, 1}, {2, {}})[0];
  std::vector<std::uint8_t> bits((values.size() + 7) / 8, 0xff);
  mark_key(bits, {{&w, 1}}, key, {2, {}});
  std::size_t next = 0;
  bool agree = true;
  for (std::size_t x = 0; x < values.size(); ++x) {
    if (key_of(values[x]) >> 15 == key >> 15) {
      agree = agree && next < found.places.size() && found.places[next] == static_cast<std::int64_t>(x) &&
              found.keys[next] == key_of(values[x]);
      ++next;
    }
    agree = agree && ((bits[x / 8] >> (x % 8)) & 1) == (key_of(values[x]) == key ? 1 : 0);
  }
  CHECK(agree);
  CHECK(next == found.places.size());
}

TEST_CASE("every NaN has one key, above infinity") {
  const float quiet = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> values{std::bit_cast<float>(0xffffffffU), quiet, -quiet,
      std::numeric_limits<float>::infinity(), std::bit_cast<float>(0x7f800001U)};
  const ConstBuffer w = view(values);
  const Wanted wish{0, std::bit_cast<std::int32_t>(quiet)};
  const Gathered found = gather_digits({{&w, 1}}, 1, {&wish, 1}, {1, {}})[0];
  CHECK(found.places == std::vector<std::int64_t>{0, 1, 2, 4});
  CHECK(found.keys[0] > key_of(values[3]));
}

TEST_CASE("variances are ranked over all tensors, in double when told") {
  const std::vector<float> a{1.0F, 2.0F, 3.0F};
  const std::vector<float> b{1.0F, 4.0F, 7.0F};
  const std::vector<float> base{5.0F, 5.0F, 5.0F};
  const ConstBuffer w[2] = {view(a), view(b)};
  const ConstBuffer from = view(base);
  std::vector<std::uint8_t> bits(1);
  mark_key(bits, {w, &from, Quantity::variance}, key_of(1.0F), {1, {}});
  CHECK(bits[0] == 2);
  mark_key(bits, {w, &from, Quantity::variance, true}, std::bit_cast<std::int64_t>(4.0), {1, {}});
  CHECK(bits[0] == 4);
}

TEST_CASE("what does not fit is refused") {
  const std::vector<float> values = numbers(10);
  const ConstBuffer w = view(values);
  const ConstBuffer shorter{values.data(), 9, Element::f32};
  std::vector<std::int64_t> counts(kHistogram);
  const std::vector<std::int64_t> none{0};
  CHECK_THROWS_AS(count_digits(counts, {{&w, 1}, &shorter}, 0, none, {}), ShapeError);
  CHECK_THROWS_AS(count_digits(counts, {{&w, 1}}, 2, none, {}), ArgumentError);
  CHECK_THROWS_AS(count_digits(counts, {}, 0, none, {}), ShapeError);
  const Wanted wish[2] = {{0, 0}, {1, 0}};
  CHECK_THROWS_AS(gather_digits({{&w, 1}}, -2, {wish, 1}, {}), ArgumentError);
  CHECK_THROWS_AS(gather_digits({{&w, 1}}, 0, wish, {}), ArgumentError);
  CHECK(gather_digits({{&w, 1}}, -1, {wish, 1}, {})[0].keys.size() == 10);
}

#include "weightshare/element.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

using namespace weightshare;

namespace {

float widened(Element element, std::uint16_t bits) {
  float value = 0;
  widen<float>(element, &bits, &value, 1);
  return value;
}

template <class Real>
std::uint16_t narrowed(Element element, Real value) {
  std::uint16_t bits = 0;
  narrow<Real>(element, &value, &bits, 1);
  return bits;
}

bool is_nan(Element element, std::uint16_t bits) {
  const unsigned infinity = element == Element::f16 ? 0x7c00U : 0x7f80U;
  return (bits & 0x7fffU) > infinity;
}

}  // namespace

TEST_CASE("every 16-bit number survives widening and narrowing, and NaN stays NaN") {
  for (const Element element : {Element::f16, Element::bf16}) {
    for (unsigned bits = 0; bits < 0x10000U; ++bits) {
      const auto code = static_cast<std::uint16_t>(bits);
      const float value = widened(element, code);
      if (is_nan(element, code)) {
        CHECK(std::isnan(value));
        CHECK(is_nan(element, narrowed(element, value)));
      } else {
        CHECK(narrowed(element, value) == code);
        CHECK(narrowed(element, static_cast<double>(value)) == code);
      }
    }
  }
}

TEST_CASE("long runs give the same bits as one number at a time") {
  std::vector<std::uint16_t> codes(0x10000);
  for (unsigned bits = 0; bits < codes.size(); ++bits) {
    codes[bits] = static_cast<std::uint16_t>(bits);
  }
  for (const Element element : {Element::f16, Element::bf16}) {
    std::vector<float> values(codes.size());
    std::vector<std::uint16_t> back(codes.size());
    widen<float>(element, codes.data(), values.data(), codes.size());
    narrow<float>(element, values.data(), back.data(), codes.size());
    for (std::size_t k = 0; k < codes.size(); ++k) {
      CHECK(std::bit_cast<std::uint32_t>(values[k]) ==
            std::bit_cast<std::uint32_t>(widened(element, codes[k])));
      CHECK(back[k] == narrowed(element, values[k]));
    }
  }
}

TEST_CASE("narrowing takes the nearest of two neighbours, the even one at the middle") {
  for (const Element element : {Element::f16, Element::bf16}) {
    const unsigned infinity = element == Element::f16 ? 0x7c00U : 0x7f80U;
    for (unsigned low = 0; low + 1 < infinity; ++low) {
      const double a = static_cast<double>(widened(element, static_cast<std::uint16_t>(low)));
      const double b = static_cast<double>(widened(element, static_cast<std::uint16_t>(low + 1)));
      const double middle = a + (b - a) / 2;
      CHECK(narrowed(element, middle) == (low % 2 == 0 ? low : low + 1));
      CHECK(narrowed(element, std::nextafter(middle, a)) == low);
      CHECK(narrowed(element, std::nextafter(middle, b)) == low + 1);
      CHECK(narrowed(element, static_cast<float>(middle)) == (low % 2 == 0 ? low : low + 1));
    }
  }
}

TEST_CASE("what is too large becomes infinity, with its sign") {
  CHECK(narrowed(Element::f16, 65519.0F) == 0x7bff);
  CHECK(narrowed(Element::f16, 65520.0F) == 0x7c00);
  CHECK(narrowed(Element::f16, -1e30F) == 0xfc00);
  CHECK(narrowed(Element::bf16, std::numeric_limits<float>::max()) == 0x7f80);
  CHECK(narrowed(Element::bf16, -1e300) == 0xff80);
  CHECK(narrowed(Element::f16, std::numeric_limits<double>::infinity()) == 0x7c00);
}

#include "weightshare/spherical.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"

using namespace weightshare;

namespace {

struct Tensors {
  Tensors(std::size_t n, std::size_t count) : values(n, std::vector<float>(count)), out(count) {
    std::uint32_t state = 7;
    for (auto& tensor : values) {
      for (float& value : tensor) {
        state = state * 1664525U + 1013904223U;
        value = static_cast<float>(state >> 8U) / 8388608.0F - 1.0F;
      }
      views.push_back({tensor.data(), tensor.size(), Element::f32});
    }
  }
  Buffer target() { return {out.data(), out.size(), Element::f32}; }
  double product(std::size_t i, std::size_t j, std::size_t start, std::size_t stop, std::size_t step) const {
    double sum = 0;
    for (std::size_t x = start; x < stop; x += step) {
      sum += static_cast<double>(values[i][x]) * static_cast<double>(values[j][x]);
    }
    return sum;
  }
  std::vector<std::vector<float>> values;
  std::vector<float> out;
  std::vector<ConstBuffer> views;
};

}  // namespace

TEST_CASE("products are taken chunk by chunk, the last one shorter, free of the thread count") {
  const Tensors tensors(2, 1000);
  std::vector<double> one(4 * 4);
  std::vector<double> two(4 * 4);
  chunk_products({tensors.views, nullptr, {}}, 300, one, {1, {}});
  chunk_products({tensors.views, nullptr, {}}, 300, two, {3, {}});
  CHECK(one == two);
  for (std::size_t chunk = 0; chunk < 4; ++chunk) {
    const std::size_t stop = chunk == 3 ? 1000 : 300 * (chunk + 1);
    CHECK(one[4 * chunk + 1] == doctest::Approx(tensors.product(0, 1, 300 * chunk, stop, 1)));
    CHECK(one[4 * chunk + 3] == doctest::Approx(tensors.product(1, 1, 300 * chunk, stop, 1)));
  }
}

TEST_CASE("products by column are sums over runs of rows") {
  const Tensors tensors(2, 7 * 600);
  std::vector<double> sums(3 * 3 * 600);
  column_products({tensors.views, nullptr, {}}, 600, 3, sums, {2, {}});
  for (const std::size_t x : {0U, 511U, 512U, 599U}) {
    CHECK(sums[600 + x] == doctest::Approx(tensors.product(0, 1, x, 3 * 600, 600)));
    CHECK(sums[2 * 1800 + x] == doctest::Approx(tensors.product(0, 0, 6 * 600 + x, 4200, 600)));
  }
}

TEST_CASE("right angles, equal, opposite and missing vectors have the coefficients of the formula") {
  const Coefficients right = spherical_coefficients(4.0, 0.0, 9.0, 0.25);
  CHECK(right.first == doctest::Approx(std::sin(0.75 * std::acos(0.0))));
  CHECK(right.second == doctest::Approx(std::sin(0.25 * std::acos(0.0))));
  for (const double product : {6.0, -6.0}) {
    const Coefficients line = spherical_coefficients(4.0, product, 9.0, 0.25);
    CHECK(line.first == 0.75);
    CHECK(line.second == 0.25);
  }
  const Coefficients none = spherical_coefficients(0.0, 0.0, 1.0, 0.5);
  CHECK(none.second == doctest::Approx(std::sqrt(0.5)));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(std::isnan(spherical_coefficients(nan, nan, 1.0, 0.5).first));
  CHECK(std::isnan(spherical_coefficients(infinity, 0.0, 1.0, 0.5).second));
  CHECK(std::isnan(stock_ratio(std::vector<double>{infinity, 0, 0, 1}, 2)));
}

TEST_CASE(
    "model stock goes nowhere for orthogonal deltas, to the mean for equal ones, and is safe at its pole") {
  CHECK(stock_ratio(std::vector<double>{1, 0, 0, 1}, 2) == 0.0);
  CHECK(stock_ratio(std::vector<double>{1, 1, 1, 1}, 2) == 1.0);
  CHECK(stock_ratio(std::vector<double>{1, -1, -1, 1}, 2) == 0.0);
  CHECK(stock_ratio(std::vector<double>{1, 0.5, 0.5, 1}, 2) == doctest::Approx(2 * 0.5 / 1.5));
  CHECK_THROWS_AS(stock_ratio(std::vector<double>{1}, 1), ShapeError);
}

TEST_CASE("rows are interpolated each at its own angle") {
  Tensors tensors(2, 5 * 700);
  nuslerp_rows(tensors.target(), {tensors.views, nullptr, {}}, 700, 0.3, {2, {}});
  for (const std::size_t row : {0U, 4U}) {
    const std::size_t start = row * 700;
    const Coefficients found = spherical_coefficients(tensors.product(0, 0, start, start + 700, 1),
        tensors.product(0, 1, start, start + 700, 1), tensors.product(1, 1, start, start + 700, 1), 0.3);
    const double expected = found.first * static_cast<double>(tensors.values[0][start + 600]) +
                            found.second * static_cast<double>(tensors.values[1][start + 600]);
    CHECK(static_cast<double>(tensors.out[start + 600]) == doctest::Approx(expected).epsilon(1e-5));
  }
}

TEST_CASE("columns are mixed with coefficients of their own, and 0 leaves even NaN out") {
  Tensors tensors(2, 6);
  tensors.values[1][1] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<double> a{1, 2, 0.5, 3, 0, 0};
  mix_columns(tensors.target(), {tensors.views, nullptr, {}}, a, 3, {1, {}});
  CHECK(tensors.out[0] == tensors.values[0][0] + 3 * tensors.values[1][0]);
  CHECK(tensors.out[1] == 2 * tensors.values[0][1]);
  CHECK(tensors.out[5] == 0.5F * tensors.values[0][5]);
}

TEST_CASE("what does not fit is refused") {
  Tensors tensors(2, 10);
  const Family family{tensors.views, nullptr, {}};
  std::vector<double> out(3);
  CHECK_THROWS_AS(chunk_products(family, 5, out, {1, {}}), ShapeError);
  CHECK_THROWS_AS(column_products(family, 3, 1, out, {1, {}}), ShapeError);
  CHECK_THROWS_AS(nuslerp_rows(tensors.target(), family, 3, 0.5, {1, {}}), ShapeError);
  CHECK_THROWS_AS(stock_rows(tensors.target(), family, 5, {1, {}}), ShapeError);
  CHECK_THROWS_AS(mix_columns(tensors.target(), family, out, 5, {1, {}}), ShapeError);
}

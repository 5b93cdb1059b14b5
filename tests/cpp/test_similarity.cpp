#include "weightshare/similarity.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"

using namespace weightshare;

namespace {

struct Tensors {
  Tensors(std::size_t n, std::size_t count) : values(n, std::vector<float>(count)) {
    std::uint32_t state = 1;
    for (auto& tensor : values) {
      for (float& value : tensor) {
        state = state * 1664525U + 1013904223U;
        value = static_cast<float>(state >> 8U) / 8388608.0F - 1.0F;
      }
    }
    for (const auto& tensor : values) {
      views.push_back({tensor.data(), tensor.size(), Element::f32});
    }
  }
  double product(std::size_t i, std::size_t j) const {
    long double sum = 0;
    for (std::size_t x = 0; x < values[i].size(); ++x) {
      sum += static_cast<long double>(values[i][x]) * static_cast<long double>(values[j][x]);
    }
    return static_cast<double>(sum);
  }
  std::vector<std::vector<float>> values;
  std::vector<ConstBuffer> views;
};

}  // namespace

TEST_CASE("inner products are those of long double to 1e-13, symmetric, and free of the thread count") {
  for (const std::size_t n : {1U, 2U, 3U, 8U}) {
    for (const std::size_t count : {1U, 255U, 257U, 300001U}) {
      const Tensors tensors(n, count);
      std::vector<double> one(n * n);
      std::vector<double> two(n * n);
      inner_products({tensors.views, nullptr, {}}, one, {1, {}});
      inner_products({tensors.views, nullptr, {}}, two, {2, {}});
      CHECK(one == two);
      for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
          CHECK(std::abs(one[i * n + j] - tensors.product(i, j)) < 1e-13 * static_cast<double>(count));
          CHECK(one[i * n + j] == one[j * n + i]);
        }
      }
    }
  }
}

TEST_CASE("the shift and the base are subtracted") {
  const Tensors tensors(3, 1000);
  const std::vector<double> shift{0.5, 0.5};
  const std::vector<ConstBuffer> two{tensors.views[0], tensors.views[1]};
  std::vector<double> products(4);
  inner_products({two, &tensors.views[2], shift}, products, {1, {}});
  double expected = 0;
  for (std::size_t x = 0; x < 1000; ++x) {
    const double base = static_cast<double>(tensors.values[2][x]) + 0.5;
    expected += (static_cast<double>(tensors.values[0][x]) - base) *
                (static_cast<double>(tensors.values[1][x]) - base);
  }
  CHECK(products[1] == doctest::Approx(expected).epsilon(1e-12));
}

TEST_CASE("distances of near-equal tensors do not cancel") {
  std::vector<std::vector<double>> values{std::vector<double>(1000, 1e6), std::vector<double>(1000, 1e6)};
  values[1][3] += 1e-6;
  const double gap = values[1][3] - values[0][3];
  const std::vector<ConstBuffer> views{
      {values[0].data(), 1000, Element::f64}, {values[1].data(), 1000, Element::f64}};
  std::vector<double> squares(4);
  squared_distances({views, nullptr, {}}, squares, {1, {}});
  CHECK(squares[1] == gap * gap);
  CHECK(squares[0] == 0.0);
}

TEST_CASE("signs are counted where both are non-zero, and NaN counts as zero") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x{1, -1, 0, 2, nan, -3};
  const std::vector<float> y{2, 1, 5, 0, 1, -1};
  const std::vector<ConstBuffer> views{{x.data(), 6, Element::f32}, {y.data(), 6, Element::f32}};
  std::vector<std::int64_t> same(4);
  std::vector<std::int64_t> both(4);
  count_signs({views, nullptr, {}}, same, both, {1, {}});
  CHECK(same == std::vector<std::int64_t>{4, 2, 2, 5});
  CHECK(both == std::vector<std::int64_t>{4, 3, 3, 5});
}

TEST_CASE("row cosines are summed row by row; a row of zeros adds nothing") {
  const std::vector<float> x{3, 4, 0, 0, 1, 0};
  const std::vector<float> y{4, 3, 1, 1, -2, 0};
  const std::vector<ConstBuffer> views{{x.data(), 6, Element::f32}, {y.data(), 6, Element::f32}};
  std::vector<double> sums(4);
  row_cosine_sums({views, nullptr, {}}, 2, sums, {2, {}});
  CHECK(sums[0] == 2.0);
  CHECK(sums[1] == doctest::Approx(0.96 - 1.0));
  CHECK(sums[3] == 3.0);
}

TEST_CASE("sums add up every element once") {
  const Tensors tensors(2, 300001);
  std::vector<double> totals(2);
  sums({tensors.views, nullptr, {}}, totals, {2, {}});
  long double expected = 0;
  for (const float value : tensors.values[1]) {
    expected += static_cast<long double>(value);
  }
  CHECK(totals[1] == doctest::Approx(static_cast<double>(expected)).epsilon(1e-10));
}

TEST_CASE("tensors of different counts are refused") {
  const Tensors tensors(2, 10);
  const std::vector<ConstBuffer> ragged{tensors.views[0], {tensors.views[1].data, 9, Element::f32}};
  std::vector<double> out(4);
  CHECK_THROWS_AS(inner_products({ragged, nullptr, {}}, out, {1, {}}), ShapeError);
  CHECK_THROWS_AS(row_cosine_sums({tensors.views, nullptr, {}}, 3, out, {1, {}}), ShapeError);
  out.pop_back();
  CHECK_THROWS_AS(inner_products({tensors.views, nullptr, {}}, out, {1, {}}), ShapeError);
}

#include "weightshare/fusion.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"

using namespace weightshare;

namespace {

constexpr std::size_t kLong = 20000;  // longer than a row whose exponentials are kept

std::vector<double> waves(std::size_t count, double step, double height = 3.0) {
  std::vector<double> values(count);
  for (std::size_t k = 0; k < count; ++k) {
    values[k] = std::sin(step * static_cast<double>(k)) * height;
  }
  return values;
}

double divergence(const double* w, const double* base, std::size_t count) {
  long double first = 0;
  long double second = 0;
  for (std::size_t k = 0; k < count; ++k) {
    first += expl(w[k]);
    second += expl(base[k]);
  }
  long double sum = 0;
  for (std::size_t k = 0; k < count; ++k) {
    const long double p = expl(w[k]) / first + 1e-8L;
    sum += p * logl(p / (expl(base[k]) / second + 1e-8L));
  }
  return static_cast<double>(sum);
}

RowPair pair_of(const std::vector<double>& w, const std::vector<double>& base, std::size_t n_columns) {
  return {{w.data(), w.size(), Element::f64}, {base.data(), base.size(), Element::f64}, n_columns};
}

}  // namespace

TEST_CASE("the divergence of every row is that of the formula, for short rows and long ones") {
  const auto w = waves(2 * kLong, 0.7);
  const auto base = waves(2 * kLong, 0.71);
  for (const std::size_t n_columns : {std::size_t{1}, std::size_t{5}, std::size_t{800}, kLong}) {
    std::vector<double> found(2 * kLong / n_columns);
    std::vector<double> threaded(found.size());
    row_divergences(found, pair_of(w, base, n_columns), {1, {}});
    row_divergences(threaded, pair_of(w, base, n_columns), {2, {}});
    CHECK(found == threaded);
    const std::size_t last = found.size() - 1;
    CHECK(
        found[last] == doctest::Approx(divergence(&w[last * n_columns], &base[last * n_columns], n_columns)));
  }
}

TEST_CASE("small numbers, and ratios near one, take the short ways to the same divergence") {
  for (const double height : {1e-6, 0.02, 0.339, 0.341, 0.8}) {
    for (const double change : {1e-4, 0.04, 0.09, 0.11, 0.7}) {
      const auto base = waves(kLong, 0.7, height);
      auto w = waves(kLong, 0.31, height * change);
      for (std::size_t k = 0; k < w.size(); ++k) {
        w[k] += base[k];
      }
      for (const std::size_t n_columns : {std::size_t{2}, std::size_t{500}, kLong}) {
        std::vector<double> found(kLong / n_columns);
        row_divergences(found, pair_of(w, base, n_columns), {1, {}});
        // The terms cancel to the square of the change; what is left of the ones that they sum to is 1e-15.
        const double expected = divergence(w.data(), base.data(), n_columns);
        CHECK(std::fabs(found[0] - expected) <= 1e-9 * expected + 4e-15);
      }
    }
  }
}

TEST_CASE("equal rows diverge by nothing, and a NaN shows") {
  auto w = waves(10, 0.3);
  const auto base = w;
  std::vector<double> found(2);
  row_divergences(found, pair_of(w, base, 5), {1, {}});
  CHECK(found == std::vector<double>{0.0, 0.0});
  w[7] = std::numeric_limits<double>::quiet_NaN();
  row_divergences(found, pair_of(w, base, 5), {1, {}});
  CHECK(found[0] == 0.0);
  CHECK(std::isnan(found[1]));
}

TEST_CASE("importance is the difference times the row's number, and what reaches the threshold is kept") {
  const std::vector<double> w{1, 2, 3, 4};
  const std::vector<double> base{0, 2, 2, 0};
  const std::vector<double> of_rows{2.0, 0.5};
  std::vector<float> found(4);
  importance(found, pair_of(w, base, 2), of_rows, {1, {}});
  CHECK(found == std::vector<float>{2.0F, 0.0F, 0.5F, 2.0F});
  std::vector<double> out(4);
  keep_important({out.data(), 4, Element::f64}, pair_of(w, base, 2), of_rows, 2.0, {1, {}});
  CHECK(out == std::vector<double>{1, 2, 2, 4});
}

TEST_CASE("what does not fit is refused") {
  const std::vector<double> w{1, 2, 3, 4};
  std::vector<double> rows(3);
  std::vector<float> found(3);
  CHECK_THROWS_AS(row_divergences(rows, pair_of(w, w, 2), {1, {}}), ShapeError);
  CHECK_THROWS_AS(row_divergences(rows, pair_of(w, w, 3), {1, {}}), ShapeError);
  rows.resize(2);
  CHECK_THROWS_AS(importance(found, pair_of(w, w, 2), rows, {1, {}}), ShapeError);
}

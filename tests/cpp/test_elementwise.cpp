#include "weightshare/elementwise.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"

using namespace weightshare;

namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  explicit Case(std::vector<std::vector<float>> models, std::vector<float> start)
      : values(std::move(models)), origin(std::move(start)), out(origin.size()) {
    for (const auto& tensor : values) {
      w.push_back({tensor.data(), tensor.size(), Element::f32});
    }
    base = {origin.data(), origin.size(), Element::f32};
  }
  Buffer target() { return {out.data(), out.size(), Element::f32}; }
  std::vector<std::vector<float>> values;
  std::vector<float> origin;
  std::vector<float> out;
  std::vector<ConstBuffer> w;
  ConstBuffer base;
};

}  // namespace

TEST_CASE("nearswap moves by at most t, and swaps what is as near") {
  Case given({{1.0F, 3.0F, 2.25F, kNan}}, {2.0F, 2.0F, 2.0F, 2.0F});
  nearswap(given.target(), given.w[0], given.base, 0.5, {1, {}});
  CHECK(given.out[0] == 1.5F);
  CHECK(given.out[1] == 2.5F);
  CHECK(given.out[2] == 2.25F);
  CHECK(given.out[3] != given.out[3]);
  nearswap(given.target(), given.w[0], given.base, 0.0, {1, {}});
  CHECK(given.out[0] == 2.0F);
}

TEST_CASE("active deltas are counted and averaged, one alone times its factor") {
  Case given({{1.0F, 0.0F, 2.0F, 0.0F}, {3.0F, 4.0F, 0.0F, 0.0F}}, {0.0F, 0.0F, 0.0F, -0.0F});
  std::vector<std::int64_t> counts(4);
  count_active(given.w, given.base, 1e-5, counts, {2, {}});
  CHECK(counts == std::vector<std::int64_t>{1, 1, 1, 1});
  mean_of_active(given.target(), given.w, given.base, 1e-5, std::vector<double>{10, 100}, {1, {}});
  CHECK(given.out == std::vector<float>{2.0F, 400.0F, 20.0F, 0.0F});
  CHECK(std::signbit(given.out[3]));
}

TEST_CASE("counts are those of one thread for every number of threads") {
  std::vector<float> values(200003);
  for (std::size_t k = 0; k < values.size(); ++k) {
    values[k] = static_cast<float>(k % 7) - 3.0F;
  }
  Case given({values, std::vector<float>(values.size(), 1.0F)}, std::vector<float>(values.size(), 0.0F));
  std::vector<std::int64_t> one(4);
  std::vector<std::int64_t> three(4);
  count_active(given.w, given.base, 0.0, one, {1, {}});
  count_active(given.w, given.base, 0.0, three, {3, {}});
  CHECK(one == three);
  CHECK(one[1] + one[3] == 200003);
}

TEST_CASE("the largest delta wins, the first of equal ones, and NaN is seen") {
  Case given({{1.0F, -5.0F, 2.0F, kNan}, {-3.0F, 4.0F, -2.0F, 9.0F}}, {0.0F, 0.0F, 0.0F, 0.0F});
  largest_delta(given.target(), given.w, given.base, 0.5, {1, {}});
  CHECK(given.out[0] == -1.5F);
  CHECK(given.out[1] == -2.5F);
  CHECK(given.out[2] == 1.0F);
  CHECK(given.out[3] != given.out[3]);
}

TEST_CASE("the sum is kept where enough masks hold") {
  Case given({{1.0F, 6.0F, kNan}, {1.0F, 5.5F, 1.0F}}, {0.0F, 5.0F, 0.0F});
  agreed_sum(given.target(), given.w, given.base, std::vector<double>{1.2, 1.2}, 2, 2.0, {1, {}});
  CHECK(given.out[0] == 0.0F);
  agreed_sum(given.target(), given.w, given.base, std::vector<double>{1.0, 0.5}, 2, 2.0, {1, {}});
  CHECK(given.out[0] == 4.0F);
  CHECK(given.out[1] == 8.0F);
  CHECK(given.out[2] != given.out[2]);
}

TEST_CASE("information weighs, negative information counts as none") {
  Case given({{1.0F, 1.0F}, {3.0F, 3.0F}}, {0.0F, 0.0F});
  const std::vector<double> first{3.0, -1.0};
  const std::vector<double> second{1.0, 1.0};
  const std::vector<ConstBuffer> fisher{{first.data(), 2, Element::f64}, {second.data(), 2, Element::f64}};
  weighted_mean(given.target(), given.w, fisher, std::vector<double>{1, 1}, 1e-12, {1, {}});
  CHECK(given.out[0] == doctest::Approx(1.5));
  CHECK(given.out[1] == doctest::Approx(3.0));
}

TEST_CASE("what does not fit is refused") {
  Case given({{1.0F, 2.0F}}, {1.0F, 2.0F});
  const std::vector<double> two{1, 1};
  std::vector<std::int64_t> counts(4);
  CHECK_THROWS_AS(count_active(given.w, given.base, 0, counts, {1, {}}), ShapeError);
  CHECK_THROWS_AS(mean_of_active(given.target(), given.w, given.base, 0, two, {1, {}}), ShapeError);
  CHECK_THROWS_AS(agreed_sum(given.target(), given.w, given.base, two, 1, 1, {1, {}}), ShapeError);
  CHECK_THROWS_AS(weighted_mean(given.target(), given.w, given.w, two, 0, {1, {}}), ShapeError);
  given.base.count = 1;
  CHECK_THROWS_AS(nearswap(given.target(), given.w[0], given.base, 1, {1, {}}), ShapeError);
  CHECK_THROWS_AS(largest_delta(given.target(), given.w, given.base, 1, {1, {}}), ShapeError);
}

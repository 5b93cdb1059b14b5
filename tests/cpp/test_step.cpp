#include "weightshare/step.hpp"

#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"

using namespace weightshare;

namespace {

template <class Real>
constexpr Element kElement = sizeof(Real) == 4 ? Element::f32 : Element::f64;

template <class Real>
void check_steps(const Step& step, std::size_t count) {
  std::vector<Real> w(count);
  std::vector<Real> g(count);
  std::vector<Real> v(count, Real{0});
  for (std::size_t x = 0; x < count; ++x) {
    w[x] = static_cast<Real>(x % 31) - Real{15};
    g[x] = Real{1} / static_cast<Real>(1 + x % 17);
  }
  std::vector<Real> expected = w;
  std::vector<Real> velocity(count, Real{0});
  const auto rate = static_cast<Real>(step.rate);
  const auto momentum = static_cast<Real>(step.momentum);
  const auto kept = static_cast<Real>(1.0 - step.rate * step.weight_decay);
  for (int k = 0; k < 3; ++k) {
    const Buffer moving = step.momentum == 0.0 ? Buffer{} : Buffer{v.data(), count, kElement<Real>};
    sgd_step({w.data(), count, kElement<Real>}, {g.data(), count, kElement<Real>}, moving, step, {2, {}});
    for (std::size_t x = 0; x < count; ++x) {
      velocity[x] = momentum * velocity[x] + g[x];
      const Real ahead = g[x] + momentum * velocity[x];
      expected[x] = kept * expected[x] - rate * (step.nesterov ? ahead : velocity[x]);
    }
  }
  CHECK(w == expected);
}

}  // namespace

TEST_CASE("three steps equal the written-out rule, bit for bit") {
  for (const std::size_t count : {1U, 100U, 70001U}) {
    for (const Step& step : {Step{0.1, 0.0, 0.0, false}, Step{0.1, 0.9, 0.0, false},
             Step{0.1, 0.9, 0.0, true}, Step{0.1, 0.9, 0.01, true}, Step{0.1, 0.0, 0.5, false}}) {
      check_steps<float>(step, count);
      check_steps<double>(step, count);
    }
  }
}

TEST_CASE("bfloat16 weights move by a float32 rule and are rounded once") {
  std::vector<std::uint16_t> w{0x3f80, 0xc000};  // 1 and -2
  const std::vector<float> g{0.5F, 1.0F};
  sgd_step({w.data(), 2, Element::bf16}, {g.data(), 2, Element::f32}, {}, {0.5, 0.0, 0.0, false}, {1, {}});
  CHECK(w == std::vector<std::uint16_t>{0x3f40, 0xc020});  // 0.75 and -2.5
}

TEST_CASE("a velocity or gradient that does not fit is refused") {
  std::vector<float> w(4);
  std::vector<float> g(4);
  std::vector<double> wide(4);
  const Buffer params{w.data(), 4, Element::f32};
  const ConstBuffer grads{g.data(), 4, Element::f32};
  const Step momentum{0.1, 0.9, 0.0, false};
  CHECK_THROWS_AS(sgd_step(params, {g.data(), 3, Element::f32}, {}, {0.1}, {1, {}}), ShapeError);
  CHECK_THROWS_AS(sgd_step(params, grads, {}, momentum, {1, {}}), ShapeError);
  CHECK_THROWS_AS(sgd_step(params, grads, {wide.data(), 4, Element::f64}, momentum, {1, {}}), ElementError);
}

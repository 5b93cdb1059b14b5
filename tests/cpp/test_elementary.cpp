#include "weightshare/elementary.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

using namespace weightshare;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kPi = 0x1.921fb54442d18p+1;

/// Numbers in [0, 1) from a generator that is the same everywhere.
class Uniform {
 public:
  double next() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return static_cast<double>(state_ >> 11U) * 0x1p-53;
  }

 private:
  std::uint64_t state_ = 1;
};

/// How many units in the last place of the exact value lie between it and what was found.
double ulps(double found, long double exact) {
  const auto nearest = static_cast<double>(exact);
  if (!(std::fabs(nearest) < kInfinity) || nearest == 0.0) {
    return found == nearest || (found != found && nearest != nearest) ? 0.0 : kInfinity;
  }
  const double size = std::fabs(nearest);
  return static_cast<double>(std::fabs(static_cast<long double>(found) - exact) /
                             (static_cast<long double>(std::nextafter(size, kInfinity)) - size));
}

}  // namespace

TEST_CASE("exp and log are within two units in the last place of long double") {
  Uniform uniform;
  double worst_exp = 0;
  double worst_log = 0;
  for (int k = 0; k < 300000; ++k) {
    const double u = 2.0 * uniform.next() - 1.0;
    for (const double x : {u * 745.0, u, u * 0x1p-30}) {
      worst_exp = std::fmax(worst_exp, ulps(elementary::exp(x), expl(x)));
    }
    for (const double x : {std::exp2(u * 1074.0), 1.0 + u, 1.0 + u * 0x1p-20}) {
      worst_log = std::fmax(worst_log, x == 0.0 ? 0.0 : ulps(elementary::log(x), logl(x)));
    }
  }
  CHECK(worst_exp < 2.0);
  CHECK(worst_log < 2.0);
}

TEST_CASE("sin and cos are within two units, for the largest numbers and beside multiples of pi/2 too") {
  Uniform uniform;
  double worst = 0;
  for (int k = 0; k < 200000; ++k) {
    const double u = 2.0 * uniform.next() - 1.0;
    const double sign = u < 0 ? -1.0 : 1.0;
    const double multiple = std::nextafter(static_cast<double>(k) * (kPi / 2), u * 1e300);
    for (const double x : {u * 7.0, sign * std::exp2(std::fabs(u) * 1023.0), u * 0x1p-20, multiple}) {
      worst = std::fmax(worst, ulps(elementary::sin(x), sinl(x)));
      worst = std::fmax(worst, ulps(elementary::cos(x), cosl(x)));
    }
  }
  CHECK(worst < 2.0);
  // of all doubles the one closest to a multiple of pi/2
  CHECK(elementary::cos(6381956970095103.0 * 0x1p797) == -4.68716592425462761112e-19);
}

TEST_CASE("acos is within two units, at both ends too") {
  Uniform uniform;
  double worst = 0;
  for (int k = 0; k < 300000; ++k) {
    const double u = 2.0 * uniform.next() - 1.0;
    const double sign = u < 0 ? -1.0 : 1.0;
    for (const double x : {u, sign * (1.0 - std::exp2(-53.0 * std::fabs(u))), u * 0x1p-20}) {
      worst = std::fmax(worst, ulps(elementary::acos(x), acosl(x)));
    }
  }
  CHECK(worst < 2.0);
  CHECK(elementary::acos(1.0) == 0.0);
  CHECK(elementary::acos(-1.0) == kPi);
  CHECK(elementary::acos(0.0) == kPi / 2);
}

TEST_CASE("numbers at the edge are what IEEE 754 says") {
  CHECK(elementary::exp(0.0) == 1.0);
  CHECK(elementary::exp(710.0) == kInfinity);
  CHECK(elementary::exp(kInfinity) == kInfinity);
  CHECK(elementary::exp(-kInfinity) == 0.0);
  CHECK(elementary::exp(-746.0) == 0.0);
  CHECK(elementary::exp(-745.0) == 0x1p-1074);
  CHECK(elementary::log(0.0) == -kInfinity);
  CHECK(elementary::log(1.0) == 0.0);
  CHECK(elementary::log(kInfinity) == kInfinity);
  CHECK(elementary::log(0x1p-1074) == doctest::Approx(-1074 * 0.6931471805599453));
  CHECK(std::signbit(elementary::sin(-0.0)));
  CHECK(elementary::cos(0.0) == 1.0);
  for (const double found :
      {elementary::exp(kNan), elementary::log(kNan), elementary::log(-1.0), elementary::log(-kInfinity),
          elementary::sin(kNan), elementary::sin(kInfinity), elementary::cos(-kInfinity),
          elementary::acos(kNan), elementary::acos(1.0000000000000002), elementary::acos(-kInfinity)}) {
    CHECK(found != found);
  }
}

TEST_CASE("a span is computed in vectors to the bits of its numbers alone") {
  Uniform uniform;
  for (const std::size_t count : {1U, 3U, 4U, 7U, 1001U}) {
    std::vector<double> x(count);
    for (double& value : x) {
      value = 1400.0 * uniform.next() - 700.0;
    }
    std::vector<double> powers = x;
    elementary::exp(powers);
    std::vector<double> back = powers;
    elementary::log(back);
    for (std::size_t k = 0; k < count; ++k) {
      CHECK(std::bit_cast<std::uint64_t>(powers[k]) == std::bit_cast<std::uint64_t>(elementary::exp(x[k])));
      CHECK(
          std::bit_cast<std::uint64_t>(back[k]) == std::bit_cast<std::uint64_t>(elementary::log(powers[k])));
    }
  }
}

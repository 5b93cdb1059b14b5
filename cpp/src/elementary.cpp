#include "weightshare/elementary.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace weightshare::elementary {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kMagic = 0x1.8p52;  // adding it rounds to a whole number, which is then in the low bits
constexpr double kLn2High = 0x1.62e42p-1;  // its low bits are zero: k kLn2High is exact
constexpr double kLn2Low = 0x1.fdf473de6af28p-22;
constexpr double kHalfPi = 0x1.921fb54442d18p+0;
constexpr double kHalfPiLow = 0x1.1a62633145c07p-54;
constexpr double kQuarterPi = 0x1.921fb54442d18p-1;

constexpr double factorial(int n) {
  return n < 2 ? 1.0 : n * factorial(n - 1);
}

/// c[0] + x c[1] + x² c[2] + ...
template <std::size_t n>
double polynomial(const std::array<double, n>& c, double x) {
  double sum = c[n - 1];
  for (std::size_t k = n - 1; k > 0; --k) {
    sum = sum * x + c[k - 1];
  }
  return sum;
}

/// 1/2!, 1/3!, ...: exp(r) = 1 + r + r² times this; what is left out is below 2^-57 for |r| <= ln 2 / 2.
constexpr auto kExp = [] {
  std::array<double, 12> c{};
  for (int k = 0; k < 12; ++k) {
    c[static_cast<std::size_t>(k)] = 1.0 / factorial(k + 2);
  }
  return c;
}();

/// 2/3, 2/5, ...: log((1 + s) / (1 - s)) = 2 s + s s² times this.
constexpr auto kLog = [] {
  std::array<double, 10> c{};
  for (int k = 0; k < 10; ++k) {
    c[static_cast<std::size_t>(k)] = 2.0 / (2 * k + 3);
  }
  return c;
}();

/// sin(r) = r + r³ times this in r², cos(r) = 1 - r²/2 + r⁴ times that in r².
constexpr auto kSin = [] {
  std::array<double, 8> c{};
  for (int k = 0; k < 8; ++k) {
    c[static_cast<std::size_t>(k)] = (k % 2 == 0 ? -1.0 : 1.0) / factorial(2 * k + 3);
  }
  return c;
}();
constexpr auto kCos = [] {
  std::array<double, 8> c{};
  for (int k = 0; k < 8; ++k) {
    c[static_cast<std::size_t>(k)] = (k % 2 == 0 ? 1.0 : -1.0) / factorial(2 * k + 4);
  }
  return c;
}();

/// 1/6, 3/40, ...: asin(x) = x + x x² times this in x², for x² <= 1/4.
constexpr auto kAsin = [] {
  std::array<double, 26> c{};
  double last = 1.0;
  for (int n = 1; n <= 26; ++n) {
    last = last * (2.0 * n - 1.0) / (2.0 * n);
    c[static_cast<std::size_t>(n - 1)] = last / (2.0 * n + 1.0);
  }
  return c;
}();

/// 2^k for a whole k in [-1022, 1023]. The shift drops all of the number but its low bits.
double power_of_two(double k) {
  constexpr std::uint64_t kOne = 0x3ff0000000000000U;
  return std::bit_cast<double>((std::bit_cast<std::uint64_t>(k + kMagic) << 52U) + kOne);
}

// Without branches, so that loops over them become vectors.
inline double exp_of(double x) {
  x = x > 710.0 ? 710.0 : x;
  x = x < -746.0 ? -746.0 : x;
  const double k = (x * 0x1.71547652b82fep+0 + kMagic) - kMagic;
  const double high = x - k * kLn2High;
  const double low = k * kLn2Low;
  const double r = high - low;
  const double lost = (high - r) - low;
  const double y = 1.0 + (r + (lost + r * r * polynomial(kExp, r)));
  const double half = (0.5 * k + kMagic) - kMagic;  // in two steps, so that subnormal results round once
  return y * power_of_two(half) * power_of_two(k - half);
}

inline double log_of(double x) {
  constexpr std::uint64_t kMantissa = 0x000fffffffffffffU;
  const bool small = x < 0x1p-1022;
  const auto bits = std::bit_cast<std::uint64_t>(small ? x * 0x1p54 : x);
  // An exponent beside the bits of 2^52 is a number, as in kMagic.
  const double biased = std::bit_cast<double>((bits >> 52U) | 0x4330000000000000U) - 0x1p52;
  const double m = std::bit_cast<double>((bits & kMantissa) | 0x3ff0000000000000U);
  const bool large = m > 0x1.6a09e667f3bcdp+0;
  const double f = (large ? 0.5 * m : m) - 1.0;
  const double k = biased - (small ? 1077.0 : 1023.0) + (large ? 1.0 : 0.0);
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double half_square = 0.5 * f * f;
  const double tail = s * (half_square + z * polynomial(kLog, z));
  const double y = k * kLn2High - ((half_square - (tail + k * kLn2Low)) - f);
  const bool finite = x < kInfinity;
  const double positive = finite ? y : x;
  const double zero_or_less = x == 0.0 ? -kInfinity : kNan;
  return x > 0.0 ? positive : zero_or_less;
}

/// The bits of 2/pi after the point, 64 zeros before them.
constexpr std::array<std::uint64_t, 22> kTwoOverPi = {0, 0xa2f9836e4e441529U, 0xfc2757d1f534ddc0U,
    0xdb6295993c439041U, 0xfe5163abdebbc561U, 0xb7246e3a424dd2e0U, 0x06492eea09d1921cU, 0xfe1deb1cb129a73eU,
    0xe88235f52ebb4484U, 0xe99c7026b45f7e41U, 0x3991d639835339f4U, 0x9c845f8bbdf9283bU, 0x1ff897ffde05980fU,
    0xef2f118b5a0a6d1fU, 0x6d367ecf27cb09b7U, 0x4f463f669e5fea2dU, 0x7527bac7ebe5f17bU, 0x3d0739f78a5292eaU,
    0x6bfb5fb11f8d5d08U, 0x56033046fc7b6babU, 0xf0cfbc209af4361dU, 0xa9e391615ee61b08U};

/// x less a multiple of pi/2: r + low in [-pi/4, pi/4], and the multiple modulo 4.
struct Reduced {
  double r;
  double low;
  unsigned quadrant;
};

/// A number of 256 bits, its highest word first.
using Wide = std::array<std::uint64_t, 4>;

/// The low 256 bits of m times the 256 bits of 2/pi that begin at bit `place` of the table.
Wide times_two_over_pi(std::uint64_t m, std::size_t place) {
  Wide product{};
  std::uint64_t carry = 0;
  for (std::size_t k = 4; k-- > 0;) {
    const std::size_t word = place / 64 + k;
    const std::size_t shift = place % 64;
    const std::uint64_t low = shift == 0 ? 0 : kTwoOverPi[word + 1] >> (64 - shift);
    const std::uint64_t window = (kTwoOverPi[word] << shift) | low;
    const auto sum = static_cast<unsigned __int128>(m) * window + carry;
    product[k] = static_cast<std::uint64_t>(sum);
    carry = static_cast<std::uint64_t>(sum >> 64U);
  }
  return product;
}

/// The 53 bits of a wide number from its bit `place` on, as a double below 2^53.
double bits_from(const Wide& number, std::size_t place) {
  const std::size_t word = place / 64;
  const std::size_t shift = place % 64;
  const std::uint64_t next = word + 1 < number.size() ? number[word + 1] : 0;
  const std::uint64_t bits = (number[word] << shift) | (shift == 0 ? 0 : next >> (64 - shift));
  return static_cast<double>(bits >> 11U);
}

/// f pi/2, both in two parts; the product of the high parts is split so that it is exact.
Reduced times_half_pi(double high, double low, unsigned quadrant) {
  constexpr double kSplit = 0x1p27 + 1.0;
  const double a = high * kSplit - (high * kSplit - high);
  const double b = kHalfPi * kSplit - (kHalfPi * kSplit - kHalfPi);
  const double product = high * kHalfPi;
  const double lost = ((a * b - product) + a * (kHalfPi - b) + (high - a) * b) + (high - a) * (kHalfPi - b);
  const double rest = lost + (high * kHalfPiLow + low * kHalfPi);
  const double r = product + rest;
  return {r, (product - r) + rest, quadrant};
}

/// Exact for every finite x (Payne and Hanek): only the bits of 2/pi that matter are multiplied.
Reduced reduce(double x) {
  if (std::fabs(x) <= kQuarterPi) {
    return {x, 0.0, 0};
  }
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const std::size_t exponent = (bits >> 52U) & 0x7ffU;
  const std::uint64_t m = (bits & 0x000fffffffffffffU) | 0x0010000000000000U;
  // x is m 2^(exponent - 1075); bits of 2/pi before this place make multiples of 4.
  Wide product = times_two_over_pi(m, 64 + exponent - 1077);
  auto quadrant = static_cast<unsigned>(product[0] >> 62U);
  product[0] &= 0x3fffffffffffffffU;
  const bool above_half = (product[0] >> 61U) != 0;
  if (above_half) {  // to the nearest multiple: 1 - fraction, one unit of the last bit left aside
    ++quadrant;
    for (std::uint64_t& word : product) {
      word = ~word;
    }
    product[0] &= 0x3fffffffffffffffU;
  }
  std::size_t place = 0;
  while (place < 128 && (product[place / 64] >> (63 - place % 64) & 1U) == 0) {
    ++place;
  }
  const auto scale = std::bit_cast<double>(static_cast<std::uint64_t>(1023 + 2 - 53 - place) << 52U);
  double high = bits_from(product, place) * scale;
  double low = bits_from(product, place + 53) * (scale * 0x1p-53);
  high = above_half ? -high : high;
  low = above_half ? -low : low;
  if (x < 0) {
    high = -high;
    low = -low;
    quadrant = 4U - quadrant;
  }
  return times_half_pi(high, low, quadrant & 3U);
}

double sin_of(const Reduced& x) {
  const double z = x.r * x.r;
  const double cube = x.r * z;
  return x.r + (x.low * (1.0 - 0.5 * z) + cube * polynomial(kSin, z));
}

double cos_of(const Reduced& x) {
  const double z = x.r * x.r;
  const double half = 0.5 * z;
  const double w = 1.0 - half;
  return w + (((1.0 - w) - half) + (z * z * polynomial(kCos, z) - x.r * x.low));
}

double in_quadrant(const Reduced& x, unsigned quadrant) {
  const double value = quadrant % 2 == 0 ? sin_of(x) : cos_of(x);
  return quadrant % 4 < 2 ? value : -value;
}

}  // namespace

double exp(double x) {
  return exp_of(x);
}

double log(double x) {
  return log_of(x);
}

double sin(double x) {
  if (std::fabs(x) < 0x1p-27) {
    return x;
  }
  if (!(std::fabs(x) < kInfinity)) {
    return kNan;
  }
  const Reduced reduced = reduce(x);
  return in_quadrant(reduced, reduced.quadrant);
}

double cos(double x) {
  if (!(std::fabs(x) < kInfinity)) {
    return kNan;
  }
  const Reduced reduced = reduce(x);
  return in_quadrant(reduced, reduced.quadrant + 1);
}

double acos(double x) {
  if (!(std::fabs(x) <= 1.0)) {
    return kNan;
  }
  if (std::fabs(x) <= 0.5) {
    const double z = x * x;
    return kHalfPi - (x - (kHalfPiLow - x * (z * polynomial(kAsin, z))));
  }
  const double z = 0.5 * (1.0 - std::fabs(x));  // acos(x) = 2 asin(sqrt(z)), or pi less that
  const double root = std::sqrt(z);
  const double rest = z * polynomial(kAsin, z) * root;
  if (x < 0.0) {
    return 2.0 * (kHalfPi - (root + (rest - kHalfPiLow)));
  }
  if (z == 0.0) {
    return 0.0;
  }
  const double high = std::bit_cast<double>(std::bit_cast<std::uint64_t>(root) & 0xffffffff00000000U);
  const double low = (z - high * high) / (root + high);
  return 2.0 * (high + (rest + low));
}

void exp(std::span<double> x) {
  for (double& value : x) {
    value = exp_of(value);
  }
}

void log(std::span<double> x) {
  for (double& value : x) {
    value = log_of(value);
  }
}

}  // namespace weightshare::elementary

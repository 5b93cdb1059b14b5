#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>

#include "weightshare/buffer.hpp"

namespace weightshare {

/// The integer of the same width as a float or double, signed since every key is below the sign bit.
template <class Real>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = std::int32_t;
};
template <>
struct BitsOf<double> {
  using type = std::int64_t;
};
template <class Real>
using Bits = typename BitsOf<Real>::type;

/// What magnitudes are ranked by: the bits without the sign, all NaN being one value above infinity.
template <class Real>
inline Bits<Real> key_of(Real value) {
  constexpr Bits<Real> kMagnitude = std::numeric_limits<Bits<Real>>::max();
  constexpr auto kInfinity = std::bit_cast<Bits<Real>>(std::numeric_limits<Real>::infinity());
  constexpr auto kNan = std::bit_cast<Bits<Real>>(std::numeric_limits<Real>::quiet_NaN());
  const Bits<Real> bits = std::bit_cast<Bits<Real>>(value) & kMagnitude;
  return bits > kInfinity ? kNan : bits;
}

/// A block of each tensor of a family, as Real, less the base; small enough for the first-level cache.
template <class Real>
class Deltas {
 public:
  static constexpr std::size_t kBlock = 512;

  Deltas(std::span<const ConstBuffer> w, const ConstBuffer* base)
      : w_(w), base_(base), values_(std::make_unique_for_overwrite<Real[]>((w.size() + 1) * kStride)) {}

  /// Reads the elements [start, start + count), count <= kBlock.
  void read(std::size_t start, std::size_t count) {
    if (base_ != nullptr) {
      widen<Real>(base_->element, base_->at(start), values_.get(), count);
    }
    for (std::size_t j = 0; j < w_.size(); ++j) {
      subtract(w_[j].element, w_[j].at(start), of(j), count);
    }
  }

  std::size_t size() const { return w_.size(); }
  Real* of(std::size_t j) { return values_.get() + (j + 1) * kStride; }
  const Real* of(std::size_t j) const { return values_.get() + (j + 1) * kStride; }
  const Real* base() const { return values_.get(); }

  void keys(std::size_t j, Bits<Real>* out, std::size_t count) const {
    const Real* const values = of(j);
    for (std::size_t x = 0; x < count; ++x) {
      out[x] = key_of(values[x]);
    }
  }

  /// Keys of the population variance over the tensors; `sums` is scratch of kBlock.
  void variance_keys(Bits<Real>* out, Real* sums, std::size_t count) const {
    if (size() == 2) {
      return variance_of_two(of(0), of(1), out, count);
    }
    const auto n = static_cast<Real>(size());
    std::fill_n(sums, count, Real{0});
    for (std::size_t j = 0; j < size(); ++j) {
      const Real* const values = of(j);
      for (std::size_t x = 0; x < count; ++x) {
        sums[x] += values[x];
      }
    }
    Real spread[kBlock] = {};
    for (std::size_t x = 0; x < count; ++x) {
      sums[x] /= n;
    }
    for (std::size_t j = 0; j < size(); ++j) {
      const Real* const values = of(j);
      for (std::size_t x = 0; x < count; ++x) {
        const Real off = values[x] - sums[x];
        spread[x] += off * off;
      }
    }
    for (std::size_t x = 0; x < count; ++x) {
      out[x] = key_of(spread[x] / n);
    }
  }

 private:
  void subtract(Element element, const void* source, Real* values, std::size_t count) const {
    const Real* const base = values_.get();
    if (base_ != nullptr && element == Element::bf16) {
      const auto* const bits = static_cast<const std::uint16_t*>(source);
      for (std::size_t x = 0; x < count; ++x) {
        const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(bits[x]) << 16U);
        values[x] = static_cast<Real>(value) - base[x];
      }
      return;
    }
    widen<Real>(element, source, values, count);
    for (std::size_t x = 0; base_ != nullptr && x < count; ++x) {
      values[x] -= base[x];
    }
  }

  /// The same bits as the general way gives: a half times x is x over two.
  static void variance_of_two(const Real* a, const Real* b, Bits<Real>* out, std::size_t count) {
    constexpr Real kHalf{0.5};
    for (std::size_t x = 0; x < count; ++x) {
      const Real mean = (a[x] + b[x]) * kHalf;
      const Real first = a[x] - mean;
      const Real second = b[x] - mean;
      out[x] = key_of((first * first + second * second) * kHalf);
    }
  }

  static constexpr std::size_t kStride = kBlock + 80;  // not a power of two, for the sake of the caches

  std::span<const ConstBuffer> w_;
  const ConstBuffer* base_;
  std::unique_ptr<Real[]> values_;
};

}  // namespace weightshare

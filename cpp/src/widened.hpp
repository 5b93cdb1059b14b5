#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "weightshare/buffer.hpp"
#include "weightshare/error.hpp"
#include "weightshare/parallel.hpp"

namespace weightshare {

constexpr std::size_t kWideBlock = 512;                    // elements of each input in the first-level cache
constexpr std::size_t kWideChunk = std::size_t{1} << 16U;  // elements that a thread takes at a time

inline bool is_f64(const ConstBuffer& buffer) {
  return buffer.element == Element::f64;
}

inline bool any_f64(std::span<const ConstBuffer> buffers) {
  return std::any_of(buffers.begin(), buffers.end(), is_f64);
}

/// Throws ShapeError unless all have as many elements as the first; returns that number.
inline std::size_t equal_count(std::span<const ConstBuffer> buffers, const std::string& room) {
  require<ShapeError>(!buffers.empty(), room + ": needs at least one tensor");
  for (const ConstBuffer& buffer : buffers) {
    require<ShapeError>(buffer.count == buffers[0].count,
        room + ": all inputs and outputs must have the same number of elements");
  }
  return buffers[0].count;
}

/// Blocks of n inputs as Real, each in memory of its own.
template <class Real>
class Widened {
 public:
  explicit Widened(std::size_t n) : values_(n * kStride) {}

  Real* row(std::size_t j) { return values_.data() + j * kStride; }

  Real* read(std::size_t j, const ConstBuffer& source, std::size_t start, std::size_t count) {
    widen<Real>(source.element, source.at(start), row(j), count);
    return row(j);
  }

  /// The same less the numbers of another row.
  Real* read_less(
      std::size_t j, const ConstBuffer& source, std::size_t start, std::size_t count, const Real* base) {
    Real* values = read(j, source, start, count);
    for (std::size_t x = 0; x < count; ++x) {
      values[x] -= base[x];
    }
    return values;
  }

 private:
  static constexpr std::size_t kStride = kWideBlock + 80;  // keeps rows out of the same lines of the cache
  std::vector<Real> values_;
};

/// Calls body(scratch, start, count) for blocks of at most kWideBlock elements that cover [0, total). Each
/// thread has a scratch of its own, made by make().
template <class Make, class Body>
void for_wide_blocks(std::size_t total, const Execution& execution, const Make& make, const Body& body) {
  for_blocks((total + kWideChunk - 1) / kWideChunk, execution, [&](std::size_t chunk) {
    auto scratch = make();
    const std::size_t stop = std::min(total, (chunk + 1) * kWideChunk);
    for (std::size_t x = chunk * kWideChunk; x < stop; x += kWideBlock) {
      body(scratch, x, std::min(kWideBlock, stop - x));
    }
  });
}

/// target = start + sums; a delta of zero keeps the start as it is, the sign of a zero included.
template <class Real>
void add_deltas(const Real* start, const Real* sums, Real* target, std::size_t count) {
  for (std::size_t x = 0; x < count; ++x) {
    const Real total = start[x] + sums[x];
    target[x] = sums[x] == Real{0} ? start[x] : total;
  }
}

}  // namespace weightshare

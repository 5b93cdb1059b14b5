#include "weightshare/mixing.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "lanes.hpp"
#include "weightshare/error.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace weightshare {
namespace {

constexpr std::size_t kLargestChunk = std::size_t{1} << 16U;    // elements that a thread takes at a time
constexpr std::size_t kChunkWork = std::size_t{1} << 25U;       // products in them, some milliseconds
constexpr std::size_t kScratchBytes = std::size_t{192} << 10U;  // stays in the second-level cache
constexpr std::size_t kLargestBlock = 512;
constexpr std::size_t kSkew = 80;  // keeps the blocks of two tensors out of the same lines of the cache
constexpr std::size_t kStreamingBytes = std::size_t{24}
                                        << 20U;  // past this the results leave the caches anyhow
constexpr std::size_t kRowsAtOnce = kVectorBytes >= 32 ? 8 : 4;
constexpr std::size_t kVectorsAtOnce = 2;

/// A row of A: its coefficients, and which of them are not zero.
template <class Real>
struct Row {
  std::vector<Real> a;
  std::vector<std::size_t> used;
  bool dense() const { return used.size() == a.size(); }
};

template <class Real>
std::vector<Row<Real>> rows_of(std::span<const double> a, std::size_t n) {
  std::vector<Row<Real>> rows(a.size() / n);
  for (std::size_t k = 0; k < a.size(); ++k) {
    Row<Real>& row = rows[k / n];
    row.a.push_back(static_cast<Real>(a[k]));
    if (a[k] != 0.0) {
      row.used.push_back(k % n);
    }
  }
  return rows;
}

/// The block of each input that is mixed now, and where its next block lies in memory.
template <class Real>
struct Inputs {
  explicit Inputs(std::size_t n) : now(n), next(n), width(n) {}
  std::size_t size() const { return now.size(); }
  std::vector<const Real*> now;
  std::vector<const std::byte*> next;
  std::vector<std::size_t> width;  // bytes of an element of each input
};

template <class Real, bool fetch>
void fetch_ahead(const Inputs<Real>& inputs, std::size_t j, std::size_t x) {
  if constexpr (fetch) {
    __builtin_prefetch(inputs.next[j] + x * inputs.width[j], 0, 2);  // into the second-level cache
  }
}

/// sums[r][x] = Σ_j a[r][j] w[j][x] for R dense rows at once, x in whole vectors. With `fetch`, asks for
/// the next blocks meanwhile, so that memory is at work while the sums are.
template <class Real, std::size_t R, bool fetch>
void combine_dense(const Row<Real>* rows, const Inputs<Real>& inputs, Real* const* sums, std::size_t count) {
  constexpr std::size_t kStep = kVectorsAtOnce * kWidth<Real>;
  const std::size_t n = inputs.size();
  const Real* const* w = inputs.now.data();
  std::vector<Real> a(n * R);  // by input, so that the coefficients of one input lie together
  Real* targets[R];
  for (std::size_t k = 0; k < a.size(); ++k) {
    a[k] = rows[k % R].a[k / R];
  }
  std::copy_n(sums, R, targets);
  for (std::size_t x = 0; x < count; x += kStep) {
    Vector<Real> sum[R][kVectorsAtOnce];
    Vector<Real> value[kVectorsAtOnce];
    fetch_ahead<Real, fetch>(inputs, 0, x);
    for (std::size_t v = 0; v < kVectorsAtOnce; ++v) {
      load<Real>(value[v], w[0] + x + v * kWidth<Real>);
      for (std::size_t r = 0; r < R; ++r) {
        sum[r][v] = a[r] * value[v];
      }
    }
    for (std::size_t j = 1; j < n; ++j) {
      fetch_ahead<Real, fetch>(inputs, j, x);
      for (std::size_t v = 0; v < kVectorsAtOnce; ++v) {
        load<Real>(value[v], w[j] + x + v * kWidth<Real>);
      }
      for (std::size_t r = 0; r < R; ++r) {
        const Vector<Real> factor = a[j * R + r] - Vector<Real>{};
        for (std::size_t v = 0; v < kVectorsAtOnce; ++v) {
          sum[r][v] += factor * value[v];
        }
      }
    }
    for (std::size_t r = 0; r < R; ++r) {
      for (std::size_t v = 0; v < kVectorsAtOnce; ++v) {
        store<Real>(targets[r] + x + v * kWidth<Real>, sum[r][v]);
      }
    }
  }
}

template <class Real>
void combine_sparse(const Row<Real>& row, const Real* const* w, Real* sums, std::size_t count) {
  if (row.used.empty()) {
    std::fill_n(sums, count, Real{0});
    return;
  }
  const Real first = row.a[row.used[0]];
  const Real* source = w[row.used[0]];
  for (std::size_t x = 0; x < count; ++x) {
    sums[x] = first * source[x];
  }
  for (std::size_t k = 1; k < row.used.size(); ++k) {
    const Real a = row.a[row.used[k]];
    source = w[row.used[k]];
    for (std::size_t x = 0; x < count; ++x) {
      sums[x] += a * source[x];
    }
  }
}

template <class Real, std::size_t R>
void combine_rows(
    const Row<Real>* rows, const Inputs<Real>& inputs, Real* const* sums, std::size_t count, bool first) {
  if (first) {
    combine_dense<Real, R, true>(rows, inputs, sums, count);
  } else {
    combine_dense<Real, R, false>(rows, inputs, sums, count);
  }
}

template <class Real>
void combine(
    std::span<const Row<Real>> rows, const Inputs<Real>& inputs, Real* const* sums, std::size_t count) {
  for (std::size_t i = 0; i < rows.size();) {
    std::size_t run = 0;
    while (run < kRowsAtOnce && i + run < rows.size() && rows[i + run].dense()) {
      ++run;
    }
    if (run == 8) {
      combine_rows<Real, 8>(&rows[i], inputs, sums + i, count, i == 0);
    } else if (run >= 4) {
      run = 4;
      combine_rows<Real, 4>(&rows[i], inputs, sums + i, count, i == 0);
    } else if (run >= 2) {
      run = 2;
      combine_rows<Real, 2>(&rows[i], inputs, sums + i, count, i == 0);
    } else if (run == 1) {
      combine_rows<Real, 1>(&rows[i], inputs, sums + i, count, i == 0);
    } else {
      run = 1;
      combine_sparse<Real>(rows[i], inputs.now.data(), sums[i], count);
    }
    i += run;
  }
}

#if defined(__AVX__)
void stream_line(const std::byte* from, std::byte* to) {
  for (int part = 0; part < 2; ++part) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to) + part,
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + part));
  }
}
#elif defined(__SSE2__)
void stream_line(const std::byte* from, std::byte* to) {
  for (int part = 0; part < 4; ++part) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to) + part,
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + part));
  }
}
#endif

/// Copies past the caches where it can: the result would only push out what is read next.
void stream(const void* source, void* target, std::size_t bytes) {
#if defined(__SSE2__)
  constexpr std::size_t kLine = 64;
  const auto misaligned = reinterpret_cast<std::uintptr_t>(target) % kLine;
  const std::size_t head = std::min(bytes, misaligned == 0 ? 0 : kLine - misaligned);
  std::memcpy(target, source, head);
  const auto* from = static_cast<const std::byte*>(source) + head;
  auto* to = static_cast<std::byte*>(target) + head;
  std::size_t left = bytes - head;
  for (; left >= kLine; left -= kLine, from += kLine, to += kLine) {
    stream_line(from, to);
  }
  std::memcpy(to, from, left);
#else
  std::memcpy(target, source, bytes);
#endif
}

void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class Real>
constexpr Element kElementOf = sizeof(Real) == 4 ? Element::f32 : Element::f64;

/// Everything about one call that does not change from block to block.
template <class Real>
class Mixer {
 public:
  Mixer(std::span<const Buffer> out, std::span<const ConstBuffer> w, std::span<const double> a,
      const Origin& origin)
      : out_(out),
        w_(w),
        base_(origin.base),
        start_(origin.start == nullptr ? origin.base : origin.start),
        rows_(rows_of<Real>(a, w.size())) {
    const std::size_t streams = out.size() + w.size() + 1;
    const std::size_t fits = kScratchBytes / sizeof(Real) / streams;
    block_ = std::clamp<std::size_t>(fits / kAlign * kAlign, kAlign, kLargestBlock);
    stride_ = block_ + kSkew;
    std::size_t bytes = 0;
    for (const Buffer& target : out) {
      bytes += target.count * size_of(target.element);
    }
    streaming_ = bytes >= kStreamingBytes;
  }

  void mix_chunk(std::size_t start, std::size_t stop) const {
    Scratch scratch(*this);
    for (std::size_t x = start, count = 0; x < stop; x += count) {
      count = std::min(x == start ? first_block(start) : block_, stop - x);
      mix_block(scratch, x, count, x + count < stop ? x + count : x);
    }
    if (streaming_) {
      finish_streaming();
    }
  }

 private:
  static constexpr std::size_t kAlign = 64;

  /// A block that ends where a line of memory of the first output does, so that no later block begins inside
  /// a line: half of it would be written past the caches and half through them.
  std::size_t first_block(std::size_t start) const {
    const auto misaligned = reinterpret_cast<std::uintptr_t>(out_[0].at(start)) % kAlign;
    return misaligned == 0 || !streaming_ ? block_ : (kAlign - misaligned) / size_of(out_[0].element);
  }

  struct Scratch {
    explicit Scratch(const Mixer& mixer)
        : inputs(std::make_unique_for_overwrite<Real[]>(mixer.w_.size() * mixer.stride_)),
          results(std::make_unique_for_overwrite<Real[]>(mixer.out_.size() * mixer.stride_)),
          base(std::make_unique_for_overwrite<Real[]>(mixer.block_)),
          w(mixer.w_.size()),
          sums(mixer.out_.size()) {
      for (std::size_t i = 0; i < sums.size(); ++i) {
        sums[i] = results.get() + i * mixer.stride_;
      }
    }
    std::unique_ptr<Real[]> inputs;
    std::unique_ptr<Real[]> results;
    std::unique_ptr<Real[]> base;
    Inputs<Real> w;
    std::vector<Real*> sums;
  };

  /// The block of every input as Real, less the base. Copied even when it is Real already: the inputs may
  /// lie a power of two apart, and would then push one another out of the same lines of the cache.
  void gather(Scratch& scratch, std::size_t start, std::size_t count, std::size_t next) const {
    if (base_ != nullptr) {
      widen<Real>(base_->element, base_->at(start), scratch.base.get(), count);
    }
    for (std::size_t j = 0; j < w_.size(); ++j) {
      Real* values = scratch.inputs.get() + j * stride_;
      widen<Real>(w_[j].element, w_[j].at(start), values, count);
      for (std::size_t x = 0; base_ != nullptr && x < count; ++x) {
        values[x] -= scratch.base[x];
      }
      scratch.w.now[j] = values;
      scratch.w.next[j] = static_cast<const std::byte*>(w_[j].at(next));
      scratch.w.width[j] = size_of(w_[j].element);
    }
  }

  void mix_block(Scratch& scratch, std::size_t start, std::size_t count, std::size_t next) const {
    gather(scratch, start, count, next);
    constexpr std::size_t kStep = kVectorsAtOnce * kWidth<Real>;
    const std::size_t padded = (count + kStep - 1) / kStep * kStep;
    combine<Real>(rows_, scratch.w, scratch.sums.data(), padded);
    if (start_ != nullptr && start_ != base_) {
      widen<Real>(start_->element, start_->at(start), scratch.base.get(), count);
    }
    for (std::size_t i = 0; i < out_.size(); ++i) {
      if (start_ != nullptr) {
        add_start(scratch.base.get(), scratch.sums[i], count);
      }
      put(out_[i], scratch.sums[i], start, count);
    }
  }

  /// A delta of zero keeps the start as it is, the sign of a zero included.
  static void add_start(const Real* start, Real* sums, std::size_t count) {
    for (std::size_t x = 0; x < count; ++x) {
      const Real total = start[x] + sums[x];
      sums[x] = sums[x] == Real{0} ? start[x] : total;
    }
  }

  void put(const Buffer& out, Real* sums, std::size_t start, std::size_t count) const {
    if (!streaming_) {
      return narrow<Real>(out.element, sums, out.at(start), count);
    }
    if (out.element != kElementOf<Real>) {
      narrow_in_place(out.element, sums, count);
    }
    stream(sums, out.at(start), count * size_of(out.element));
  }

  /// Narrows into the front of the same memory, in pieces that have been read before they are written.
  static void narrow_in_place(Element element, Real* sums, std::size_t count) {
    Real piece[kAlign];
    for (std::size_t x = 0; x < count; x += kAlign) {
      const std::size_t length = std::min(kAlign, count - x);
      std::copy_n(sums + x, length, piece);
      narrow<Real>(element, piece, reinterpret_cast<std::byte*>(sums) + x * size_of(element), length);
    }
  }

  std::span<const Buffer> out_;
  std::span<const ConstBuffer> w_;
  const ConstBuffer* base_;
  const ConstBuffer* start_;
  std::vector<Row<Real>> rows_;
  std::size_t block_ = 0;
  std::size_t stride_ = 0;
  bool streaming_ = false;
};

void check(std::span<const Buffer> out, std::span<const ConstBuffer> w, std::span<const double> a,
    const Origin& origin) {
  require<ShapeError>(!w.empty() && !out.empty(), "mix: needs at least one input and one output");
  require<ShapeError>(a.size() == out.size() * w.size(),
      "mix: " + std::to_string(out.size()) + " outputs and " + std::to_string(w.size()) +
          " inputs need as many coefficients as their product, got " + std::to_string(a.size()));
  const std::size_t count = w[0].count;
  bool fits = (origin.base == nullptr || origin.base->count == count) &&
              (origin.start == nullptr || origin.start->count == count);
  for (const ConstBuffer& source : w) {
    fits = fits && source.count == count;
  }
  for (const Buffer& target : out) {
    fits = fits && target.count == count;
  }
  require<ShapeError>(
      fits, "mix: all inputs, outputs, the base and the start must have the same number of elements");
}

template <class Real>
void mix_as(std::span<const Buffer> out, std::span<const ConstBuffer> w, std::span<const double> a,
    const Origin& origin, const Execution& execution) {
  const Mixer<Real> mixer(out, w, a, origin);
  const std::size_t count = w[0].count;
  const std::size_t size = std::clamp(kChunkWork / a.size(), kLargestBlock, kLargestChunk);
  for_blocks((count + size - 1) / size, execution,
      [&](std::size_t chunk) { mixer.mix_chunk(chunk * size, std::min(count, (chunk + 1) * size)); });
}

}  // namespace

void mix(std::span<const Buffer> out, std::span<const ConstBuffer> w, std::span<const double> a,
    const Origin& origin, const Execution& execution) {
  check(out, w, a, origin);
  const auto is_wide = [](const ConstBuffer& buffer) { return buffer.element == Element::f64; };
  const bool wide = std::any_of(w.begin(), w.end(), is_wide) ||
                    std::any_of(out.begin(), out.end(), is_wide) ||
                    (origin.base != nullptr && is_wide(*origin.base)) ||
                    (origin.start != nullptr && is_wide(*origin.start));
  if (wide) {
    mix_as<double>(out, w, a, origin, execution);
  } else {
    mix_as<float>(out, w, a, origin, execution);
  }
}

}  // namespace weightshare

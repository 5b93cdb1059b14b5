#include "weightshare/random.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "lanes.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace weightshare {
namespace {

constexpr std::uint64_t kMultiplier0 = 0xD2511F53U;
constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57U;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9U;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85U;
constexpr int kRounds = 10;

constexpr std::size_t kCounters = kVectorBytes / sizeof(std::uint64_t);
typedef std::uint64_t Words __attribute__((vector_size(kVectorBytes)));

/// The product of the low halves of each lane; what is in the high halves does not matter.
inline Words product(Words a, Words b) {
#if defined(__AVX2__)
  return reinterpret_cast<Words>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Words>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  constexpr std::uint64_t kLow = 0xFFFFFFFFU;
  return (a & kLow) * (b & kLow);
#endif
}

struct RoundKeys {
  explicit RoundKeys(std::uint64_t key) {
    auto low = static_cast<std::uint32_t>(key);
    auto high = static_cast<std::uint32_t>(key >> 32U);
    for (int round = 0; round < kRounds; ++round) {
      first[round] = Words{} + low;
      second[round] = Words{} + high;
      low += kWeyl0;
      high += kWeyl1;
    }
  }
  Words first[kRounds];
  Words second[kRounds];
};

/// The words of kCounters consecutive counters, in order. Lanes are 64 bits of which the low half counts.
inline void fill_vectors(const RoundKeys& keys, std::uint64_t counter, std::uint32_t* out) {
  constexpr std::uint64_t kLow = 0xFFFFFFFFU;
  Words c0 = Words{} + counter;
  for (std::size_t lane = 0; lane < kCounters; ++lane) {
    c0[lane] += lane;
  }
  Words c1 = c0 >> 32;
  Words c2{};
  Words c3{};
  for (int round = 0; round < kRounds; ++round) {
    const Words p0 = product(c0, Words{} + kMultiplier0);
    const Words p1 = product(c2, Words{} + kMultiplier1);
    c0 = (p1 >> 32) ^ c1 ^ keys.first[round];
    c2 = (p0 >> 32) ^ c3 ^ keys.second[round];
    c1 = p1;
    c3 = p0;
  }
  const Words front = (c0 & kLow) | (c1 << 32);
  const Words back = (c2 & kLow) | (c3 << 32);
#if defined(__AVX__)
  const Words first = __builtin_shufflevector(front, back, 0, 4, 1, 5);
  const Words second = __builtin_shufflevector(front, back, 2, 6, 3, 7);
#else
  const Words first = __builtin_shufflevector(front, back, 0, 2);
  const Words second = __builtin_shufflevector(front, back, 1, 3);
#endif
  std::memcpy(out, &first, sizeof(first));
  std::memcpy(out + 2 * kCounters, &second, sizeof(second));
}

std::array<std::uint32_t, 4> words_of_counter(std::uint64_t counter, std::uint64_t key) {
  return philox({static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32U), 0, 0}, key);
}

}  // namespace

std::array<std::uint32_t, 4> philox(const std::array<std::uint32_t, 4>& counter, std::uint64_t key) {
  std::array<std::uint32_t, 4> c = counter;
  auto low = static_cast<std::uint32_t>(key);
  auto high = static_cast<std::uint32_t>(key >> 32U);
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t p0 = kMultiplier0 * c[0];
    const std::uint64_t p1 = kMultiplier1 * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32U) ^ c[1] ^ low, static_cast<std::uint32_t>(p1),
        static_cast<std::uint32_t>(p0 >> 32U) ^ c[3] ^ high, static_cast<std::uint32_t>(p0)};
    low += kWeyl0;
    high += kWeyl1;
  }
  return c;
}

void random_words(std::uint64_t key, std::uint64_t start, std::span<std::uint32_t> out) {
  const RoundKeys keys(key);
  std::size_t done = 0;
  const auto copy_part = [&](std::size_t from, std::size_t most) {
    const std::array<std::uint32_t, 4> words = words_of_counter((start + done) / 4, key);
    const std::size_t length = std::min({out.size() - done, std::size_t{4} - from, most});
    std::copy_n(words.begin() + static_cast<std::ptrdiff_t>(from), length,
        out.begin() + static_cast<std::ptrdiff_t>(done));
    done += length;
  };
  if (start % 4 != 0 && !out.empty()) {
    copy_part(start % 4, 4);
  }
  for (; done + 4 * kCounters <= out.size(); done += 4 * kCounters) {
    fill_vectors(keys, (start + done) / 4, out.data() + done);
  }
  while (done < out.size()) {
    copy_part(0, 4);
  }
}

}  // namespace weightshare

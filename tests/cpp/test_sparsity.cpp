#include "weightshare/sparsity.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"
#include "weightshare/random.hpp"

using namespace weightshare;

namespace {

using Floats = std::vector<float>;

/// Two task vectors on a base, of few values so that many magnitudes are equal.
struct Case {
  explicit Case(std::size_t count, std::size_t row_length = 1)
      : base(count), w(2, Floats(count)), row(row_length) {
    for (std::size_t k = 0; k < count; ++k) {
      base[k] = static_cast<float>(k % 31) - 15.0F;
      for (std::size_t j = 0; j < 2; ++j) {
        const std::size_t step = k * (j == 0 ? 2654435761U : 40503U) / 8;
        w[j][k] = base[k] + (static_cast<float>(step % 21) - 10.0F) / 8.0F;
      }
    }
  }

  Floats sum(const std::vector<double>& factors, bool elect, int threads = 1) {
    Floats out(base.size());
    const std::vector<double> none;
    with(threads, [&](const TaskVectors& vectors, const Execution& how) {
      const Ballot ballot{factors, elect ? factors : none, elect ? factors : none, 0.0, 1.0, 1.0};
      sum_task_vectors({out.data(), out.size(), Element::f32}, vectors, ballot, how);
    });
    return out;
  }

  template <class Body>
  void with(int threads, const Body& body) {
    const ConstBuffer from{base.data(), base.size(), Element::f32};
    const ConstBuffer views[2] = {
        {w[0].data(), w[0].size(), Element::f32}, {w[1].data(), w[1].size(), Element::f32}};
    body(TaskVectors{views, &from, masks, 0, row, chunk}, Execution{threads, {}});
  }

  /// Which elements of the first task vector are kept, those of zero left out.
  std::vector<bool> kept() {
    const Floats out = sum({1.0, 0.0}, false);
    std::vector<bool> result(out.size());
    for (std::size_t k = 0; k < out.size(); ++k) {
      result[k] = out[k] != base[k];
    }
    return result;
  }

  float tau(std::size_t j, std::size_t k) const { return w[j][k] - base[k]; }

  Floats base;
  std::vector<Floats> w;
  std::size_t row;
  std::size_t chunk = 65536;
  std::vector<Mask> masks{2};
};

std::int64_t key_of(float value) {
  return std::bit_cast<std::int32_t>(std::fabs(value));
}

}  // namespace

TEST_CASE("a cut keeps greater magnitudes, and equal ones before a place; a band drops the top again") {
  Case made(3000);
  made.masks[0].keep = Keep::magnitude;
  made.masks[0].key = key_of(0.5F);
  made.masks[0].cutoff = 1500;
  const std::vector<bool> cut = made.kept();
  made.masks[0].keep = Keep::band;
  made.masks[0].top_key = key_of(1.0F);
  made.masks[0].top_cutoff = 700;
  const std::vector<bool> band = made.kept();
  for (std::size_t k = 0; k < 3000; ++k) {
    const float size = std::fabs(made.tau(0, k));
    const bool low = size > 0.5F || (size == 0.5F && k < 1500);
    const bool top = size > 1.0F || (size == 1.0F && k < 700);
    CHECK(cut[k] == low);
    CHECK(band[k] == (low && !top));
  }
}

TEST_CASE("random masks keep where the word of the element is below the bound") {
  Case made(5001);
  made.masks[0].keep = Keep::random;
  made.masks[0].stream = 99;
  made.masks[0].bound = std::int64_t{1} << 31U;
  std::vector<std::uint32_t> words(5001);
  random_words(99, 0, words);
  const std::vector<bool> kept = made.kept();
  for (std::size_t k = 0; k < kept.size(); ++k) {
    CHECK(kept[k] == (words[k] < (1U << 31U) && made.tau(0, k) != 0.0F));
  }
}

TEST_CASE("ranked masks keep by the exact rank in the row, of equal magnitudes the earlier the higher") {
  for (const std::size_t row : {1U, 2U, 7U, 300U, 4097U}) {
    Case made(row * 8, row);
    made.chunk = row * 8;
    made.masks[0].keep = Keep::ranked;
    made.masks[0].stream = 5;
    made.masks[0].least = 0.1;
    made.masks[0].most = 0.9;
    const std::vector<bool> kept = made.kept();
    std::vector<std::uint32_t> words(row * 8);
    random_words(5, 0, words);
    for (std::size_t start = 0; start < row * 8; start += row) {
      std::vector<std::size_t> order(row);
      std::iota(order.begin(), order.end(), start);
      std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return std::fabs(made.tau(0, a)) > std::fabs(made.tau(0, b));
      });
      for (std::size_t place = 0; place < row; ++place) {
        const std::size_t k = order[place];
        const double rank = static_cast<double>(row - 1 - place);
        const double chance = row == 1 ? 0.5 : 0.1 + 0.8 * rank / static_cast<double>(row - 1);
        const bool drawn = static_cast<double>(words[k]) < chance * 4294967296.0;
        CHECK(kept[k] == (drawn && made.tau(0, k) != 0.0F));
      }
    }
  }
}

TEST_CASE("bits that tell what ranks keep give the same sum as the ranks") {
  Case made(600 * 24, 600);
  made.chunk = 600 * 8;
  for (Mask& mask : made.masks) {
    mask.keep = Keep::ranked;
    mask.stream = 3;
    mask.least = 0.25;
    mask.most = 0.75;
  }
  const Floats ranked = made.sum({0.5, 0.25}, true);
  const std::size_t bytes = made.base.size() / 8;
  std::vector<std::uint8_t> bits(2 * bytes);
  std::vector<double> all(6);
  std::vector<double> some(6);
  made.with(2, [&](const TaskVectors& vectors, const Execution& how) {
    chunk_norms(all, some, vectors, 1, bits, how);
  });
  for (std::size_t j = 0; j < 2; ++j) {
    made.masks[j] = Mask{};
    made.masks[j].keep = Keep::held;
    made.masks[j].bits = bits.data() + j * bytes;
  }
  CHECK(made.sum({0.5, 0.25}, true) == ranked);
}

TEST_CASE("norms are sums of magnitudes or squares, before and behind the mask, for every thread count") {
  Case made(200003);
  made.masks[0].keep = Keep::none;
  std::vector<double> all[2];
  std::vector<double> some[2];
  for (const int threads : {1, 3}) {
    std::vector<double>& every = all[threads / 2];
    std::vector<double>& kept = some[threads / 2];
    every.assign(8, 0.0);
    kept.assign(8, 0.0);
    made.with(threads, [&](const TaskVectors& vectors, const Execution& how) {
      chunk_norms(every, kept, vectors, 2, {}, how);
    });
  }
  CHECK(all[0] == all[1]);
  CHECK(some[0] == some[1]);
  double expected = 0.0;
  for (std::size_t k = 0; k < made.base.size(); ++k) {
    expected += static_cast<double>(made.tau(0, k)) * static_cast<double>(made.tau(0, k));
  }
  CHECK(all[0][0] + all[0][2] + all[0][4] + all[0][6] == doctest::Approx(expected));
  CHECK(some[0][0] == 0.0);
  CHECK(some[0][1] == all[0][1]);
}

TEST_CASE("an election sums those of the elected sign, divided by their weights") {
  Case made(4000);
  const Floats out = made.sum({0.5, 0.25}, true, 2);
  for (std::size_t k = 0; k < out.size(); ++k) {
    const float votes[2] = {0.5F * made.tau(0, k), 0.25F * made.tau(1, k)};
    const bool plus = votes[0] + votes[1] >= 0.0F;
    float sum = 0.0F;
    float weight = 0.0F;
    for (std::size_t j = 0; j < 2; ++j) {
      if (plus ? votes[j] > 0.0F : votes[j] < 0.0F) {
        sum += votes[j];
        weight += j == 0 ? 0.5F : 0.25F;
      }
    }
    CHECK(out[k] == made.base[k] + (weight == 0.0F ? 0.0F : sum / weight));
  }
}

TEST_CASE("NaN among the votes shows, and is left out where it is dropped") {
  Case made(10);
  made.w[0][3] = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(made.sum({1.0, 1.0}, true)[3]));
  made.masks[0].keep = Keep::none;
  CHECK_FALSE(std::isnan(made.sum({1.0, 1.0}, true)[3]));
}

TEST_CASE("stretches that cut a row, and counts that differ, are refused") {
  Case made(100, 30);
  made.chunk = 60;
  made.masks[0].keep = Keep::ranked;
  CHECK_THROWS_AS(made.kept(), ShapeError);
  made.row = 1;
  CHECK_NOTHROW(made.kept());
  made.w[1].pop_back();
  CHECK_THROWS_AS(made.kept(), ShapeError);
}

#include "weightshare/mixing.hpp"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"

using namespace weightshare;

namespace {

using Floats = std::vector<float>;

ConstBuffer view(const Floats& values) {
  return {values.data(), values.size(), Element::f32};
}
Buffer view_to_write(Floats& values) {
  return {values.data(), values.size(), Element::f32};
}

Floats ramp(std::size_t count, float start, float step) {
  Floats values(count);
  for (std::size_t k = 0; k < count; ++k) {
    values[k] = start + step * static_cast<float>(k % 977);
  }
  return values;
}

/// n inputs and m outputs of one length, mixed by made-up coefficients.
struct Case {
  Case(std::size_t n, std::size_t m, std::size_t count) : inputs(n), outputs(m), a(n * m) {
    for (std::size_t j = 0; j < n; ++j) {
      inputs[j] = ramp(count, static_cast<float>(j) - 1.5F, 0.01F * static_cast<float>(j + 1));
    }
    for (std::size_t i = 0; i < m; ++i) {
      outputs[i].assign(count, std::numeric_limits<float>::quiet_NaN());
    }
    for (std::size_t k = 0; k < a.size(); ++k) {
      a[k] = 0.25 * static_cast<double>(k % 7) - 0.625;
    }
  }
  void run(int threads = 1) {
    std::vector<ConstBuffer> w;
    for (const Floats& input : inputs) {
      w.push_back(view(input));
    }
    std::vector<Buffer> out;
    for (Floats& output : outputs) {
      out.push_back(view_to_write(output));
    }
    mix(out, w, a, {}, {threads, {}});
  }
  std::vector<Floats> inputs;
  std::vector<Floats> outputs;
  std::vector<double> a;
};

}  // namespace

TEST_CASE("every output is the sum of the coefficients times the inputs, in order, in float32") {
  for (const std::size_t m : {1U, 2U, 3U, 4U, 5U, 9U}) {
    for (const std::size_t count : {1U, 15U, 16U, 17U, 5000U, 70001U}) {
      Case mixed(3, m, count);
      mixed.a[0] = 0.0;
      mixed.run();
      for (std::size_t i = 0; i < m; ++i) {
        for (std::size_t x = 0; x < count; x += 1 + count / 97) {
          float sum = 0.0F;
          for (std::size_t j = 0; j < 3; ++j) {
            sum = sum + static_cast<float>(mixed.a[i * 3 + j]) * mixed.inputs[j][x];
          }
          CHECK(mixed.outputs[i][x] == sum);
        }
      }
    }
  }
}

TEST_CASE("the bits do not depend on the threads, nor on whether results bypass the caches") {
  Case one(5, 4, 2000003);  // 32 MB of results: past the size where they do
  Case two(5, 4, 2000003);
  one.run(1);
  two.run(3);
  CHECK(one.outputs == two.outputs);
  Case small(5, 4, 1001);
  small.run();
  for (std::size_t x = 0; x < 977; ++x) {
    CHECK(small.outputs[3][x] == one.outputs[3][x]);
  }
}

TEST_CASE("a coefficient of one returns the tensor bit for bit, and zeros keep NaN away") {
  Case mixed(2, 1, 100);
  mixed.inputs[0][7] = -0.0F;
  mixed.inputs[1].assign(100, std::numeric_limits<float>::quiet_NaN());
  mixed.a = {1.0, 0.0};
  mixed.run();
  for (std::size_t x = 0; x < 100; ++x) {
    CHECK(std::bit_cast<std::uint32_t>(mixed.outputs[0][x]) ==
          std::bit_cast<std::uint32_t>(mixed.inputs[0][x]));
  }
}

TEST_CASE("outputs may be the inputs themselves") {
  Case apart(3, 3, 5000);
  Case in_place(3, 3, 5000);
  apart.run();
  std::vector<ConstBuffer> w;
  std::vector<Buffer> out;
  for (Floats& input : in_place.inputs) {
    w.push_back(view(input));
    out.push_back(view_to_write(input));
  }
  mix(out, w, in_place.a, {}, {2, {}});
  CHECK(in_place.inputs == apart.outputs);
}

TEST_CASE("a delta of zero gives the start back bit for bit") {
  Floats base = ramp(3000, -2.0F, 0.3F);
  base[5] = -0.0F;
  Floats start = ramp(3000, 9.0F, -0.1F);
  start[6] = -0.0F;
  const ConstBuffer from = view(base);
  const ConstBuffer onto = view(start);
  const std::vector<ConstBuffer> w{from, from};
  Floats result(3000);
  const std::vector<Buffer> out{view_to_write(result)};
  const std::vector<double> a{0.3, -1.7};
  for (const ConstBuffer* added : {&from, &onto}) {
    mix(out, w, a, {&from, added}, {1, {}});
    const auto* expected = static_cast<const float*>(added->data);
    for (std::size_t x = 0; x < result.size(); ++x) {
      CHECK(std::bit_cast<std::uint32_t>(result[x]) == std::bit_cast<std::uint32_t>(expected[x]));
    }
  }
}

TEST_CASE("elements may differ: sums are float64 when any of them is") {
  const std::vector<double> wide{1.0 + 1e-12, 2.0};
  const std::vector<std::uint16_t> half{0x3f80, 0x4000};  // 1 and 2 as bfloat16
  std::vector<double> result(2);
  const std::vector<ConstBuffer> w{{wide.data(), 2, Element::f64}, {half.data(), 2, Element::bf16}};
  const std::vector<Buffer> out{{result.data(), 2, Element::f64}};
  mix(out, w, std::vector<double>{1.0, -1.0}, {}, {1, {}});
  CHECK(result[0] == doctest::Approx(1e-12).epsilon(1e-3));
  CHECK(result[1] == 0.0);
}

TEST_CASE("sizes that do not fit are refused") {
  Case mixed(2, 2, 10);
  mixed.a.pop_back();
  CHECK_THROWS_AS(mixed.run(), ShapeError);
  Case ragged(2, 2, 10);
  ragged.inputs[1].pop_back();
  CHECK_THROWS_AS(ragged.run(), ShapeError);
  CHECK_THROWS_AS(mix({}, {}, {}, {}, {1, {}}), ShapeError);
}

#include "weightshare/network.hpp"

#include <cmath>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include "weightshare/error.hpp"

using namespace weightshare;

namespace {

/// A perceptron 3-4-2 with made-up weights, five samples and their labels.
struct Network {
  std::vector<double> first = values(12, 0.3);
  std::vector<double> first_bias = values(4, 0.1);
  std::vector<double> second = values(8, -0.4);
  std::vector<double> second_bias = values(2, 0.2);
  std::vector<double> x = values(15, 0.7);
  std::vector<std::int64_t> labels{0, 1, 1, 0, 1};
  std::vector<double> gradient = std::vector<double>(26);

  static std::vector<double> values(std::size_t count, double scale) {
    std::vector<double> made(count);
    for (std::size_t k = 0; k < count; ++k) {
      made[k] = scale * std::sin(1.0 + 2.3 * static_cast<double>(k) + scale);
    }
    return made;
  }
  double loss(Activation activation) {
    double* g = gradient.data();
    const std::vector<Dense<double>> layers{{first.data(), first_bias.data(), 3, 4, g, g + 12},
        {second.data(), second_bias.data(), 4, 2, g + 16, g + 24}};
    return loss_and_gradient<double>(layers, activation, x.data(), labels.data(), 5);
  }
};

double slope(Network& network, Activation activation, double& parameter) {
  const double kept = parameter;
  parameter = kept + 1e-6;
  const double above = network.loss(activation);
  parameter = kept - 1e-6;
  const double below = network.loss(activation);
  parameter = kept;
  return (above - below) / 2e-6;
}

}  // namespace

TEST_CASE("gradients agree with central differences for every activation") {
  for (const Activation activation :
      {Activation::identity, Activation::relu, Activation::tanh, Activation::logistic}) {
    Network network;
    network.loss(activation);
    const std::vector<double> gradient = network.gradient;
    std::vector<double> numerical;
    for (auto* part : {&network.first, &network.first_bias, &network.second, &network.second_bias}) {
      for (double& parameter : *part) {
        numerical.push_back(slope(network, activation, parameter));
      }
    }
    for (std::size_t k = 0; k < gradient.size(); ++k) {
      CHECK(std::abs(gradient[k] - numerical[k]) < 1e-8);
    }
  }
}

TEST_CASE("the loss of even logits is the logarithm of the number of classes") {
  Network network;
  network.second.assign(8, 0.0);
  network.second_bias.assign(2, 3.0);
  CHECK(network.loss(Activation::relu) == doctest::Approx(std::log(2.0)));
}

TEST_CASE("huge logits neither overflow nor give NaN") {
  Network network;
  network.second_bias = {1e300, -1e300};
  CHECK(std::isfinite(network.loss(Activation::relu)));
}

TEST_CASE("labels out of range, and layers that do not fit, are refused") {
  Network network;
  network.labels[2] = 2;
  CHECK_THROWS_AS(network.loss(Activation::relu), ArgumentError);
  network.labels[2] = -1;
  CHECK_THROWS_AS(network.loss(Activation::relu), ArgumentError);
  const std::vector<Dense<double>> layers{
      {network.first.data(), network.first_bias.data(), 3, 4, nullptr, nullptr},
      {network.second.data(), network.second_bias.data(), 3, 2, nullptr, nullptr}};
  std::vector<double> out(10);
  CHECK_THROWS_AS(forward<double>(layers, Activation::relu, network.x.data(), 5, out.data()), ShapeError);
}

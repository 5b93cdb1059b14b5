#include "weightshare/step.hpp"

#include <algorithm>
#include <array>
#include <string>

#include "weightshare/error.hpp"

namespace weightshare {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 15U;
constexpr std::size_t kBlock = 1024;

template <class Real>
constexpr Element kElementOf = sizeof(Real) == 4 ? Element::f32 : Element::f64;

template <class Real>
struct Rule {
  explicit Rule(const Step& step)
      : rate(static_cast<Real>(step.rate)),
        momentum(static_cast<Real>(step.momentum)),
        kept(static_cast<Real>(1.0 - step.rate * step.weight_decay)),
        nesterov(step.nesterov) {}
  Real rate;
  Real momentum;
  Real kept;
  bool nesterov;
};

template <class Real>
void step_plain(const Rule<Real>& rule, Real* w, const Real* g, std::size_t count) {
  for (std::size_t x = 0; x < count; ++x) {
    w[x] = rule.kept * w[x] - rule.rate * g[x];
  }
}

template <class Real, bool nesterov>
void step_with_momentum(const Rule<Real>& rule, Real* __restrict w, const Real* __restrict g,
    Real* __restrict v, std::size_t count) {
  for (std::size_t x = 0; x < count; ++x) {
    const Real velocity = rule.momentum * v[x] + g[x];
    const Real update = nesterov ? g[x] + rule.momentum * velocity : velocity;
    v[x] = velocity;
    w[x] = rule.kept * w[x] - rule.rate * update;
  }
}

template <class Real>
void step_block(const Rule<Real>& rule, Real* w, const Real* g, Real* v, std::size_t count) {
  if (rule.momentum == Real{0}) {
    step_plain(rule, w, g, count);
  } else if (rule.nesterov) {
    step_with_momentum<Real, true>(rule, w, g, v, count);
  } else {
    step_with_momentum<Real, false>(rule, w, g, v, count);
  }
}

template <class Real>
void step_run(const Rule<Real>& rule, const Buffer& w, const ConstBuffer& g, const Buffer& v,
    std::size_t start, std::size_t stop) {
  std::array<Real, kBlock> weights;
  std::array<Real, kBlock> gradient;
  for (std::size_t x = start; x < stop; x += kBlock) {
    const std::size_t count = std::min(kBlock, stop - x);
    auto* velocity = v.count == 0 ? nullptr : static_cast<Real*>(v.at(x));
    const Real* slope = static_cast<const Real*>(g.at(x));
    if (g.element != kElementOf<Real>) {
      widen<Real>(g.element, g.at(x), gradient.data(), count);
      slope = gradient.data();
    }
    if (w.element == kElementOf<Real>) {
      step_block(rule, static_cast<Real*>(w.at(x)), slope, velocity, count);
      continue;
    }
    widen<Real>(w.element, w.at(x), weights.data(), count);
    step_block(rule, weights.data(), slope, velocity, count);
    narrow<Real>(w.element, weights.data(), w.at(x), count);
  }
}

template <class Real>
void step_as(
    const Buffer& w, const ConstBuffer& g, const Buffer& v, const Step& step, const Execution& execution) {
  require<ElementError>(v.count == 0 || v.element == kElementOf<Real>,
      std::string("step: the velocity must be ") + name_of(kElementOf<Real>) + ", got " + name_of(v.element));
  const Rule<Real> rule(step);
  for_blocks((w.count + kChunk - 1) / kChunk, execution, [&](std::size_t chunk) {
    step_run(rule, w, g, v, chunk * kChunk, std::min(w.count, (chunk + 1) * kChunk));
  });
}

}  // namespace

void sgd_step(
    const Buffer& w, const ConstBuffer& g, const Buffer& v, const Step& step, const Execution& execution) {
  require<ShapeError>(g.count == w.count, "step: the gradient has " + std::to_string(g.count) +
                                              " elements, the parameters " + std::to_string(w.count));
  require<ShapeError>(v.count == w.count || (v.count == 0 && step.momentum == 0.0),
      "step: the velocity has " + std::to_string(v.count) + " elements, the parameters " +
          std::to_string(w.count));
  if (w.element == Element::f64) {
    step_as<double>(w, g, v, step, execution);
  } else {
    step_as<float>(w, g, v, step, execution);
  }
}

}  // namespace weightshare

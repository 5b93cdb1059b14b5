#pragma once

#include <cstddef>
#include <cstdint>

namespace weightshare {

/// The element types that a buffer may hold.
enum class Element : std::uint8_t { f16, bf16, f32, f64 };

/// Bytes of one element.
constexpr std::size_t size_of(Element element) {
  switch (element) {
    case Element::f16:
    case Element::bf16:
      return 2;
    case Element::f32:
      return 4;
    case Element::f64:
      break;
  }
  return 8;
}

/// NumPy's name of the element type, for messages.
const char* name_of(Element element);

/// Converts `count` elements to float or double. Exact, but for f64 to float, which rounds to nearest even.
/// NaN stays NaN; subnormal numbers are kept.
template <class Real>
void widen(Element element, const void* source, Real* target, std::size_t count);

/// Converts `count` floats or doubles to elements, each rounded once, to nearest even.
/// NaN stays NaN; what is too large becomes infinity.
template <class Real>
void narrow(Element element, const Real* source, void* target, std::size_t count);
template <>
void narrow<float>(Element element, const float* source, void* target, std::size_t count);
template <>
void narrow<double>(Element element, const double* source, void* target, std::size_t count);

}  // namespace weightshare

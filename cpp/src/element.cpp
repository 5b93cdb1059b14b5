#include "weightshare/element.hpp"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace weightshare {
namespace {

float float_of_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
}

std::uint16_t bf16_of_float(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U;
  const std::uint32_t quiet_nan = (bits >> 16U) | 0x40U;
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
  return static_cast<std::uint16_t>(is_nan ? quiet_nan : rounded);
}

float float_of_f16(std::uint16_t half) {
  constexpr std::uint32_t kRebias = (127U - 15U) << 23U;
  const std::uint32_t sign = (half & 0x8000U) << 16U;
  const std::uint32_t shifted = (half & 0x7fffU) << 13U;
  const std::uint32_t exponent = shifted & 0x0f800000U;
  const std::uint32_t normal = shifted + kRebias;
  const std::uint32_t quiet = (shifted & 0x007fffffU) != 0 ? 0x00400000U : 0U;
  const std::uint32_t infinite = (shifted + 2 * kRebias) | 0x7f800000U | quiet;
  const float subnormal = std::bit_cast<float>(normal + (1U << 23U)) - std::bit_cast<float>(113U << 23U);
  std::uint32_t bits = exponent == 0x0f800000U ? infinite : normal;
  bits = exponent == 0U ? std::bit_cast<std::uint32_t>(subnormal) : bits;
  return std::bit_cast<float>(bits | sign);
}

std::uint16_t f16_of_float(float value) {
  constexpr std::uint32_t kTooLarge = (127U + 16U) << 23U;
  constexpr std::uint32_t kMagic = ((127U - 15U) + (23U - 10U) + 1U) << 23U;
  const auto with_sign = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = with_sign & 0x80000000U;
  const std::uint32_t bits = with_sign ^ sign;
  const std::uint32_t nan = 0x7e00U | ((bits >> 13U) & 0x3ffU);
  const std::uint32_t large = bits > 0x7f800000U ? nan : 0x7c00U;
  const std::uint32_t small =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(bits) + std::bit_cast<float>(kMagic)) - kMagic;
  const std::uint32_t normal = (bits - ((127U - 15U) << 23U) + 0xfffU + ((bits >> 13U) & 1U)) >> 13U;
  std::uint32_t half = bits < (113U << 23U) ? small : normal;
  half = bits >= kTooLarge ? large : half;
  return static_cast<std::uint16_t>(half | (sign >> 16U));
}

/// Rounds to odd, so that a second rounding, to a shorter element, gives what one rounding would.
float float_rounded_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  const auto back = static_cast<double>(nearest);
  if (back == value || value != value) {
    return nearest;
  }
  const auto bits = std::bit_cast<std::uint32_t>(nearest);
  return std::bit_cast<float>((std::fabs(back) > std::fabs(value) ? bits - 1U : bits) | 1U);
}

std::size_t widen_f16_vectors(const std::uint16_t* source, float* target, std::size_t count) {
  std::size_t done = 0;
#if defined(__F16C__)
  for (; done + 8 <= count; done += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + done));
    _mm256_storeu_ps(target + done, _mm256_cvtph_ps(half));
  }
#else
  static_cast<void>(source);
  static_cast<void>(target);
  static_cast<void>(count);
#endif
  return done;
}

std::size_t narrow_f16_vectors(const float* source, std::uint16_t* target, std::size_t count) {
  std::size_t done = 0;
#if defined(__F16C__)
  for (; done + 8 <= count; done += 8) {
    const __m128i half =
        _mm256_cvtps_ph(_mm256_loadu_ps(source + done), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target + done), half);
  }
#else
  static_cast<void>(source);
  static_cast<void>(target);
  static_cast<void>(count);
#endif
  return done;
}

void widen_f16(const std::uint16_t* source, float* target, std::size_t count) {
  for (std::size_t i = widen_f16_vectors(source, target, count); i < count; ++i) {
    target[i] = float_of_f16(source[i]);
  }
}

void widen_f16(const std::uint16_t* source, double* target, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    target[i] = static_cast<double>(float_of_f16(source[i]));
  }
}

void narrow_f16(const float* source, std::uint16_t* target, std::size_t count) {
  for (std::size_t i = narrow_f16_vectors(source, target, count); i < count; ++i) {
    target[i] = f16_of_float(source[i]);
  }
}

template <class To, class From>
void convert(const From* source, To* target, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    target[i] = static_cast<To>(source[i]);
  }
}

/// Narrows doubles to 16 bits through floats that were rounded to odd.
void narrow_twice(Element element, const double* source, std::uint16_t* target, std::size_t count) {
  constexpr std::size_t kBlock = 256;
  std::array<float, kBlock> odd;
  for (std::size_t start = 0; start < count; start += kBlock) {
    const std::size_t length = count - start < kBlock ? count - start : kBlock;
    for (std::size_t i = 0; i < length; ++i) {
      odd[i] = float_rounded_to_odd(source[start + i]);
    }
    narrow<float>(element, odd.data(), target + start, length);
  }
}

}  // namespace

const char* name_of(Element element) {
  switch (element) {
    case Element::f16:
      return "float16";
    case Element::bf16:
      return "bfloat16";
    case Element::f32:
      return "float32";
    case Element::f64:
      break;
  }
  return "float64";
}

template <class Real>
void widen(Element element, const void* source, Real* target, std::size_t count) {
  switch (element) {
    case Element::f16:
      return widen_f16(static_cast<const std::uint16_t*>(source), target, count);
    case Element::bf16: {
      const auto* bits = static_cast<const std::uint16_t*>(source);
      for (std::size_t i = 0; i < count; ++i) {
        target[i] = static_cast<Real>(float_of_bf16(bits[i]));
      }
      return;
    }
    case Element::f32:
      return convert(static_cast<const float*>(source), target, count);
    case Element::f64:
      return convert(static_cast<const double*>(source), target, count);
  }
}

template <>
void narrow<float>(Element element, const float* source, void* target, std::size_t count) {
  switch (element) {
    case Element::f16:
      return narrow_f16(source, static_cast<std::uint16_t*>(target), count);
    case Element::bf16: {
      auto* bits = static_cast<std::uint16_t*>(target);
      for (std::size_t i = 0; i < count; ++i) {
        bits[i] = bf16_of_float(source[i]);
      }
      return;
    }
    case Element::f32:
      return convert(source, static_cast<float*>(target), count);
    case Element::f64:
      return convert(source, static_cast<double*>(target), count);
  }
}

template <>
void narrow<double>(Element element, const double* source, void* target, std::size_t count) {
  switch (element) {
    case Element::f16:
    case Element::bf16:
      return narrow_twice(element, source, static_cast<std::uint16_t*>(target), count);
    case Element::f32:
      return convert(source, static_cast<float*>(target), count);
    case Element::f64:
      return convert(source, static_cast<double*>(target), count);
  }
}

template void widen<float>(Element, const void*, float*, std::size_t);
template void widen<double>(Element, const void*, double*, std::size_t);

}  // namespace weightshare

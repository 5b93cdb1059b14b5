#pragma once

#include <cstddef>
#include <cstring>

namespace weightshare {

/// One vector register of floats or doubles, as wide as this instruction set has it.
#if defined(__AVX__)
constexpr std::size_t kVectorBytes = 32;
#else
constexpr std::size_t kVectorBytes = 16;
#endif

template <class Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class Real>
using Vector = typename VectorOf<Real>::type;

template <class Real>
constexpr std::size_t kWidth = kVectorBytes / sizeof(Real);

template <class Real>
inline void load(Vector<Real>& target, const Real* source) {
  std::memcpy(&target, source, kVectorBytes);
}

template <class Real>
inline void store(Real* target, const Vector<Real>& source) {
  std::memcpy(target, &source, kVectorBytes);
}

}  // namespace weightshare

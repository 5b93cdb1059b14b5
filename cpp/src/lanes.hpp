#pragma once

#include <cstddef>

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
  // dereferenced rather than copied by memcpy, which keeps gcc from holding arrays of vectors in registers
  typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(float)), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  // dereferenced rather than copied by memcpy, which keeps gcc from holding arrays of vectors in registers
  typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(double)), may_alias));
};
template <class Real>
using Vector = typename VectorOf<Real>::type;

template <class Real>
constexpr std::size_t kWidth = kVectorBytes / sizeof(Real);

template <class Real>
inline void load(Vector<Real>& target, const Real* source) {
  target = *reinterpret_cast<const typename VectorOf<Real>::unaligned*>(source);
}

template <class Real>
inline void store(Real* target, const Vector<Real>& source) {
  *reinterpret_cast<typename VectorOf<Real>::unaligned*>(target) = source;
}

}  // namespace weightshare

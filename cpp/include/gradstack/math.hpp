// Scalar side of the maths that functors are written in: the same free functions that Vec<T> has
// (cpu/simd.hpp, cpu/simd_math.hpp), for float and double, on host and device.
//
// A functor says `using namespace math;` and calls them unqualified: scalars resolve here, vectors
// by argument-dependent lookup. Host code goes through compiler builtins, which become calls of the
// C library and never instantiate an inline wrapper of <cmath> in a unit built for a newer
// instruction set.
#pragma once

#include "gradstack/config.hpp"

#if defined(__CUDACC__)
#define GS_LIBM(name) ::name
#else
#define GS_LIBM(name) __builtin_##name
#endif

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// How a loop over memory steps through values of type V: `width` values of type Scalar at a time,
// the last `n` < width of them partially. Vec<T> specialises it in cpu/simd.hpp.
template <class V> struct Lanes {
  using Scalar = V;
  static constexpr Index width = 1;
  static GS_HD GS_INLINE V load(const V* p, Index) { return *p; }
  static GS_HD GS_INLINE void store(V* p, V x, Index) { *p = x; }
};

// Smallest positive normal number; what lies below is slow on many processors.
template <class Scalar> inline constexpr double kMinNormal = 2.2250738585072014e-308;
template <> inline constexpr double kMinNormal<float> = 1.1754943508222875e-38;

namespace math {

#define GS_UNARY(name, libm)                                          \
  GS_HD GS_INLINE float name(float x) { return GS_LIBM(libm##f)(x); } \
  GS_HD GS_INLINE double name(double x) { return GS_LIBM(libm)(x); }
GS_UNARY(abs, fabs)
GS_UNARY(sqrt, sqrt)
GS_UNARY(exp, exp)
GS_UNARY(expm1, expm1)
GS_UNARY(log, log)
GS_UNARY(log1p, log1p)
GS_UNARY(tanh, tanh)
GS_UNARY(erf, erf)
GS_UNARY(erfc, erfc)
GS_UNARY(sin, sin)
GS_UNARY(cos, cos)
#undef GS_UNARY

GS_HD GS_INLINE float copysign(float x, float s) { return GS_LIBM(copysignf)(x, s); }
GS_HD GS_INLINE double copysign(double x, double s) { return GS_LIBM(copysign)(x, s); }

GS_HD GS_INLINE float select(bool m, float a, float b) { return m ? a : b; }
GS_HD GS_INLINE double select(bool m, double a, double b) { return m ? a : b; }

// x * y + z, rounded once where the instruction set has an FMA, twice elsewhere (the library call
// that emulates one costs a hundred times as much).
#if defined(__CUDACC__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
GS_HD GS_INLINE float fma(float x, float y, float z) { return GS_LIBM(fmaf)(x, y, z); }
GS_HD GS_INLINE double fma(double x, double y, double z) { return GS_LIBM(fma)(x, y, z); }
#else
GS_HD GS_INLINE float fma(float x, float y, float z) { return x * y + z; }
GS_HD GS_INLINE double fma(double x, double y, double z) { return x * y + z; }
#endif

// The second operand when either is NaN, as the vector instructions do: minimum(bound, x) keeps a
// NaN in x.
GS_HD GS_INLINE float minimum(float a, float b) { return a < b ? a : b; }
GS_HD GS_INLINE double minimum(double a, double b) { return a < b ? a : b; }
GS_HD GS_INLINE float maximum(float a, float b) { return a > b ? a : b; }
GS_HD GS_INLINE double maximum(double a, double b) { return a > b ? a : b; }

// Below: one template for scalars and vectors.

// x limited to [lo, hi]; NaN stays NaN.
template <class V> GS_HD GS_INLINE V clamp(V x, V lo, V hi) { return maximum(lo, minimum(hi, x)); }

// -1, 0 or 1; 0 for NaN.
template <class V> GS_HD GS_INLINE V sign(V x) {
  return select(x > V(0), V(1), select(x < V(0), V(-1), V(0)));
}

// p = 1 / (1 + exp(-x)) and q = 1 - p, both to full relative precision, so that p q, the derivative
// of the logistic function, is exact in both tails.
template <class V> struct Logistic { V p, q; };

template <class V> GS_HD GS_INLINE Logistic<V> logistic(V x) {
  const V e = exp(-abs(x));
  const V r = V(1) / (V(1) + e);
  const V small = e * r;
  const auto negative = x < V(0);
  return {select(negative, small, r), select(negative, r, small)};
}

template <class V> GS_HD GS_INLINE V sigmoid(V x) {
  const V e = exp(-abs(x));
  return select(x < V(0), e, V(1)) / (V(1) + e);
}

// log(1 + exp(x)) without overflow.
template <class V> GS_HD GS_INLINE V log1p_exp(V x) {
  return maximum(V(0), x) + log1p(exp(-abs(x)));
}

// x, or 0 where |x| is not a normal number: decaying averages must not end up among the denormals.
template <class V> GS_HD GS_INLINE V flush_denormal(V x) {
  return select(abs(x) < V(kMinNormal<typename Lanes<V>::Scalar>), V(0), x);
}

}  // namespace math
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

#undef GS_LIBM

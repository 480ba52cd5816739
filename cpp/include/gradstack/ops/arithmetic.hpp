// Pointwise functions that are arithmetic, and the sine.
#pragma once

#include "gradstack/ops/op.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace ops {

struct Identity {
  static constexpr OpInfo info{"identity", "Identity"};
  static constexpr const char* c = "return s;";
  static constexpr bool has_d1_from_z = true;
  GS_HD explicit Identity(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return s; }
  template <class V> GS_HD GS_INLINE V d1(V) const { return V(1); }
  template <class V> GS_HD GS_INLINE V d2(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d3(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d1_from_z(V) const { return V(1); }
};

struct Sine {
  static constexpr OpInfo info{"sine", "Sine"};
  static constexpr const char* c = "return sin(s);";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit Sine(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return sin(s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const { return cos(s); }
  template <class V> GS_HD GS_INLINE V d2(V s) const { return -sin(s); }
  template <class V> GS_HD GS_INLINE V d3(V s) const { return -cos(s); }
};

// a s + b: what `2 * x + 1` becomes while tracing.
struct Affine {
  static constexpr OpInfo info{"affine", "", 2, {{"a", 1.0}, {"b", 0.0}}};
  static constexpr const char* c = "return a * s + b;";
  static constexpr bool has_d1_from_z = true;
  GS_HD explicit Affine(const double* p) : a_(p[0]), b_(p[1]) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return V(a_) * s + V(b_); }
  template <class V> GS_HD GS_INLINE V d1(V) const { return V(a_); }
  template <class V> GS_HD GS_INLINE V d2(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d3(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d1_from_z(V) const { return V(a_); }

 private:
  double a_, b_;
};

// c / s: what `1 / x` becomes while tracing.
struct Reciprocal {
  static constexpr OpInfo info{"reciprocal", "", 1, {{"c", 1.0}}};
  static constexpr const char* c = "return c / s;";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit Reciprocal(const double* p) : c_(p[0]) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return V(c_) / s; }
  template <class V> GS_HD GS_INLINE V d1(V s) const { return V(-c_) / s / s; }
  template <class V> GS_HD GS_INLINE V d2(V s) const { return V(2 * c_) / s / s / s; }
  template <class V> GS_HD GS_INLINE V d3(V s) const { return V(-6 * c_) / s / s / s / s; }

 private:
  double c_;
};

}  // namespace ops
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

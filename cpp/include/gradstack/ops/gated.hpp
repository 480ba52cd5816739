// Pointwise functions s g(s) with a smooth gate g between 0 and 1.
#pragma once

#include "gradstack/ops/op.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace ops {

// s Phi(s), Phi the normal distribution function. phi'(s) = -s phi(s) gives the rest.
struct GELU {
  static constexpr OpInfo info{"gelu", "GELU"};
  static constexpr const char* c =
      "return (s < -40.0 ? -40.0 : s) * (0.5 * erfc(-0.70710678118654752440 * s));";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit GELU(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return maximum(V(-kFlat), s) * cdf(s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const V t = clamp(s, V(-kFlat), V(kFlat));
    return cdf(t) + t * pdf(t);
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    const V t = clamp(s, V(-kFlat), V(kFlat));
    return pdf(t) * (V(2) - t * t);
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const V t = clamp(s, V(-kFlat), V(kFlat));
    return pdf(t) * t * (t * t - V(4));
  }

 private:
  static constexpr double kFlat = 40;  // exp(-kFlat^2 / 2) is 0 in double precision
  template <class V> static GS_HD GS_INLINE V cdf(V s) {
    return V(0.5) * erfc(V(-0.70710678118654752440) * s);
  }
  template <class V> static GS_HD GS_INLINE V pdf(V s) {
    return V(0.39894228040143267794) * exp(V(-0.5) * s * s);
  }
};

// s (1 + tanh(u)) / 2 with u = sqrt(2/pi) (s + 0.044715 s^3), written with the logistic function:
// (1 + tanh(u)) / 2 = p(2u).
struct GELUTanh {
  // nn.GELU(approximate="tanh")
  static constexpr OpInfo info{"gelu_tanh", "", 0, {}, Epilogue::GELUTanh};
  static constexpr const char* c =
      "const real v = 1.5957691216057307 * s * (1.0 + 0.044715 * s * s);\n"
      "const real e = exp(-fabs(v));\n"
      "return (s < -24.0 ? -24.0 : s) * ((s < 0.0 ? e : 1.0) / (1.0 + e));";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit GELUTanh(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const {
    return maximum(V(-kFlat), s) * sigmoid(V(kRate) * s * fma(V(kCubic) * s, s, V(1)));
  }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const Parts<V> a(s);
    return a.g + a.t * a.g1;
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    const Parts<V> a(s);
    return V(2) * a.g1 + a.t * a.g2;
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const Parts<V> a(s);
    return V(3) * a.g2 + a.t * a.g3;
  }

 private:
  static constexpr double kRate = 1.5957691216057307;  // 2 sqrt(2/pi)
  static constexpr double kCubic = 0.044715;
  static constexpr double kFlat = 24;  // p(2u) and its derivatives are 0 or 1 in double beyond

  // g(s) = p(v(s)), v = 2u, and its derivatives by the chain rule.
  template <class V> struct Parts {
    V t, g, g1, g2, g3;
    GS_HD GS_INLINE explicit Parts(V s) : t(clamp(s, V(-kFlat), V(kFlat))) {
      const V t2 = t * t;
      const Logistic<V> l = logistic(V(kRate) * t * fma(V(kCubic), t2, V(1)));
      const V v1 = V(kRate) * fma(V(3 * kCubic), t2, V(1));
      const V v2 = V(6 * kRate * kCubic) * t;
      const V v3 = V(6 * kRate * kCubic);
      const V pq = l.p * l.q, slope = l.q - l.p;
      g = l.p;
      g1 = pq * v1;
      g2 = pq * (slope * v1 * v1 + v2);
      g3 = pq * ((V(1) - V(6) * pq) * v1 * v1 * v1 + V(3) * slope * v1 * v2 + v3);
    }
  };
};

// s p(s). The derivatives follow from p' = p q, q' = -p q.
struct SiLU {
  static constexpr OpInfo info{"silu", "SiLU"};
  static constexpr const char* c =
      "const real e = exp(-fabs(s));\n"
      "return (s < -800.0 ? -800.0 : s) * ((s < 0.0 ? e : 1.0) / (1.0 + e));";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit SiLU(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return maximum(V(-kFlat), s) * sigmoid(s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const V t = clamp(s, V(-kFlat), V(kFlat));
    const Logistic<V> l = logistic(t);
    return l.p * fma(t, l.q, V(1));
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    const V t = clamp(s, V(-kFlat), V(kFlat));
    const Logistic<V> l = logistic(t);
    return l.p * l.q * fma(t, l.q - l.p, V(2));
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const V t = clamp(s, V(-kFlat), V(kFlat));
    const Logistic<V> l = logistic(t);
    const V pq = l.p * l.q;
    return pq * fma(t, V(1) - V(6) * pq, V(3) * (l.q - l.p));
  }

 private:
  static constexpr double kFlat = 800;  // exp(-kFlat) is 0 in double precision
};

// s T with T = tanh(log(1 + e^s)) = n (n + 2) / (n (n + 2) + 2), n = e^s. T' = (1 - T^2) p(s).
struct Mish {
  static constexpr OpInfo info{"mish", "Mish"};
  static constexpr const char* c =
      "const real e = exp(-fabs(s));\n"
      "const real n = s < 0.0 ? e * (e + 2.0) : 1.0 + 2.0 * e;\n"
      "const real m = s < 0.0 ? 2.0 : 2.0 * e * e;\n"
      "return (s < -800.0 ? -800.0 : s) * (n / (n + m));";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit Mish(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const {
    return maximum(V(-kFlat), s) * Parts<V>(s).g;
  }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const Parts<V> a(s);
    return a.g + a.t * a.g1;
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    const Parts<V> a(s);
    return V(2) * a.g1 + a.t * a.g2;
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const Parts<V> a(s);
    return V(3) * a.g2 + a.t * a.g3;
  }

 private:
  static constexpr double kFlat = 800;

  template <class V> struct Parts {
    V t, g, g1, g2, g3;
    GS_HD GS_INLINE explicit Parts(V s) : t(clamp(s, V(-kFlat), V(kFlat))) {
      // With e = exp(-|t|) both branches of T and of 1 - T are free of overflow and cancellation.
      const V e = exp(-abs(t));
      const auto negative = t < V(0);
      const V num = select(negative, e * (e + V(2)), fma(V(2), e, V(1)));
      const V rest = select(negative, V(2), V(2) * e * e);
      const V den = V(1) / (num + rest);
      const V r = V(1) / (V(1) + e);
      const V p = select(negative, e * r, r), q = select(negative, r, e * r);
      g = num * den;
      g1 = rest * den * (V(1) + g) * p;
      const V ratio = q - V(2) * g * p;  // of g2 to g1
      g2 = g1 * ratio;
      g3 = g1 * (ratio * ratio - p * q - V(2) * p * fma(g, q, g1));
    }
  };
};

}  // namespace ops
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

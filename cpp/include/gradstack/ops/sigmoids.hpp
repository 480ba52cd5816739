// Pointwise functions made of the logistic function and the hyperbolic tangent.
#pragma once

#include "gradstack/ops/op.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace ops {

// log(1 + exp(beta s)) / beta; s itself where beta s > threshold.
struct Softplus {
  static constexpr OpInfo info{"softplus", "Softplus", 2, {{"beta", 1.0}, {"threshold", 20.0}}};
  static constexpr const char* c =
      "const real u = beta * s;\n"
      "return u > threshold ? s : ((u > 0.0 ? u : 0.0) + log1p(exp(-fabs(u)))) / beta;";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit Softplus(const double* p) : beta_(p[0]), unit_(1.0 / p[0]), threshold_(p[1]) {}
  template <class V> GS_HD GS_INLINE V h(V s) const {
    const V u = V(beta_) * s;
    return select(u > V(threshold_), s, V(unit_) * log1p_exp(u));
  }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const V u = V(beta_) * s;
    return select(u > V(threshold_), V(1), sigmoid(u));
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    const V u = V(beta_) * s;
    const Logistic<V> l = logistic(u);
    return select(u < V(threshold_), V(beta_) * l.p * l.q, V(0));
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const V u = V(beta_) * s;
    const Logistic<V> l = logistic(u);
    return select(u < V(threshold_), V(beta_ * beta_) * l.p * l.q * (l.q - l.p), V(0));
  }

 private:
  double beta_, unit_, threshold_;
};

// s / (1 + |s|)
struct Softsign {
  static constexpr OpInfo info{"softsign", "Softsign"};
  static constexpr const char* c =
      "const real t = s < -1e30 ? -1e30 : (s > 1e30 ? 1e30 : s);\n"
      "return t / (1.0 + fabs(t));";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit Softsign(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const {
    const V t = clamp(s, V(-kFlat), V(kFlat));
    return t / (V(1) + abs(t));
  }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const V r = V(1) / (V(1) + abs(s));
    return r * r;
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    const V r = V(1) / (V(1) + abs(s));
    return V(-2) * sign(s) * r * r * r;
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const V r = V(1) / (V(1) + abs(s));
    const V r2 = r * r;
    return select(s == V(0), V(0), V(6) * r2 * r2);
  }

 private:
  static constexpr double kFlat = 1e30;  // 1 + |s| = |s|: keeps infinities out of the quotient
};

struct Sigmoid {
  static constexpr OpInfo info{"sigmoid", "Sigmoid"};
  static constexpr const char* c =
      "const real e = exp(-fabs(s));\n"
      "return (s < 0.0 ? e : 1.0) / (1.0 + e);";
  static constexpr bool has_d1_from_z = true;
  GS_HD explicit Sigmoid(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return sigmoid(s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const Logistic<V> l = logistic(s);
    return l.p * l.q;
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    const Logistic<V> l = logistic(s);
    return l.p * l.q * (l.q - l.p);
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const Logistic<V> l = logistic(s);
    const V pq = l.p * l.q;
    return pq * (V(1) - V(6) * pq);
  }
  template <class V> GS_HD GS_INLINE V d1_from_z(V z) const { return z * (V(1) - z); }
};

struct LogSigmoid {
  static constexpr OpInfo info{"log_sigmoid", "LogSigmoid"};
  static constexpr const char* c = "return (s < 0.0 ? s : 0.0) - log1p(exp(-fabs(s)));";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit LogSigmoid(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return -log1p_exp(-s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const { return sigmoid(-s); }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    const Logistic<V> l = logistic(s);
    return -(l.p * l.q);
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const Logistic<V> l = logistic(s);
    return l.p * l.q * (l.p - l.q);
  }
};

// tanh'(s) = 4 p(2s) q(2s), which keeps its relative precision where 1 - tanh^2 has none left.
template <class V> GS_HD GS_INLINE V sech2(V s) {
  const Logistic<V> l = logistic(V(2) * s);
  return V(4) * l.p * l.q;
}

struct Tanh {
  static constexpr OpInfo info{"tanh", "Tanh"};
  static constexpr const char* c = "return tanh(s);";
  static constexpr bool has_d1_from_z = true;
  GS_HD explicit Tanh(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return tanh(s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const { return sech2(s); }
  template <class V> GS_HD GS_INLINE V d2(V s) const { return V(-2) * tanh(s) * sech2(s); }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const V d = sech2(s);
    return d * fma(V(-6), d, V(4));
  }
  template <class V> GS_HD GS_INLINE V d1_from_z(V z) const { return V(1) - z * z; }
};

// s - tanh(s)
struct Tanhshrink {
  static constexpr OpInfo info{"tanhshrink", "Tanhshrink"};
  static constexpr const char* c = "return s - tanh(s);";
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit Tanhshrink(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return s - tanh(s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const V z = tanh(s);
    return z * z;
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const { return V(2) * tanh(s) * sech2(s); }
  template <class V> GS_HD GS_INLINE V d3(V s) const {
    const V d = sech2(s);
    return d * fma(V(6), d, V(-4));
  }
};

}  // namespace ops
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

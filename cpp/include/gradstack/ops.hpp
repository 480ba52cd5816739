// The op table: every pointwise function z = h(s) of the library, once.
//
// A functor gives h and its first three derivatives as templates over the value type V, which is a
// scalar (reference backend, CUDA) or a SIMD vector (cpu backend). Forward, VJP, JVP, second order,
// Python names, docs, exports and tests are all driven from `PointwiseOps` at the end of this file:
// adding a function is one functor and one entry in that list.
//
// Rules for functors
//   * constructed from `const double*` parameters (at most kMaxOpParams);
//   * branch-free: `select(mask, a, b)`; both sides are evaluated, so neither may trap;
//   * elementary functions are called unqualified after `using namespace math;` (vectors by ADL);
//   * formulas and derivatives at kinks are PyTorch's (which gives second derivatives at a kink the
//     value 0, or the outer side's); derivatives of every order are finite for finite s;
//   * NaN in s is NaN in h;
//   * `d1_from_z` may be offered where h' is a cheap function of the output z (then s is not kept).
#pragma once

#include <type_traits>

#include "gradstack/config.hpp"
#include "gradstack/math.hpp"
#include "gradstack/table.hpp"

namespace gradstack {

inline constexpr int kMaxOpParams = 2;

struct OpInfo {
  const char* name;    // function name, as in gs.relu
  const char* module;  // module class name, as in nn.ReLU; "" for internal ones and variants
  int n_params = 0;
  Param params[kMaxOpParams] = {};
};

inline namespace GRADSTACK_UNIT {
namespace ops {

using namespace math;

struct Identity {
  static constexpr OpInfo info{"identity", "Identity"};
  static constexpr bool has_d1_from_z = true;
  GS_HD explicit Identity(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return s; }
  template <class V> GS_HD GS_INLINE V d1(V) const { return V(1); }
  template <class V> GS_HD GS_INLINE V d2(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d3(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d1_from_z(V) const { return V(1); }
};

struct ReLU {
  static constexpr OpInfo info{"relu", "ReLU"};
  static constexpr bool has_d1_from_z = true;
  GS_HD explicit ReLU(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return maximum(V(0), s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const { return select(s <= V(0), V(0), V(1)); }
  template <class V> GS_HD GS_INLINE V d2(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d3(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d1_from_z(V z) const { return d1(z); }
};

struct LeakyReLU {
  static constexpr OpInfo info{"leaky_relu", "LeakyReLU", 1, {{"negative_slope", 0.01}}};
  static constexpr bool has_d1_from_z = false;  // a negative slope loses the sign of s
  GS_HD explicit LeakyReLU(const double* p) : slope_(p[0]) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return select(s > V(0), s, V(slope_) * s); }
  template <class V> GS_HD GS_INLINE V d1(V s) const { return select(s > V(0), V(1), V(slope_)); }
  template <class V> GS_HD GS_INLINE V d2(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d3(V) const { return V(0); }

 private:
  double slope_;
};

// scale * (s if s > 0 else alpha (exp(rate s) - 1)): ELU, SELU and CELU are this one family.
class ExponentialUnit {
 public:
  static constexpr bool has_d1_from_z = false;
  GS_HD ExponentialUnit(double alpha, double scale, double rate)
      : scale_(scale), amplitude_(alpha * scale), rate_(rate) {}
  template <class V> GS_HD GS_INLINE V h(V s) const {
    return select(s > V(0), V(scale_) * s, V(amplitude_) * expm1(V(rate_) * s));
  }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    return select(s > V(0), V(scale_), V(amplitude_ * rate_) * exp(V(rate_) * s));
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    return select(s < V(0), V(amplitude_ * rate_ * rate_) * exp(V(rate_) * s), V(0));
  }
  template <class V> GS_HD GS_INLINE V d3(V s) const { return V(rate_) * d2(s); }

 private:
  double scale_, amplitude_, rate_;
};

struct ELU : ExponentialUnit {
  static constexpr OpInfo info{"elu", "ELU", 1, {{"alpha", 1.0}}};
  GS_HD explicit ELU(const double* p) : ExponentialUnit(p[0], 1.0, 1.0) {}
};

// Constants: Klambauer et al., Self-Normalizing Neural Networks (2017), to double precision.
struct SELU : ExponentialUnit {
  static constexpr OpInfo info{"selu", "SELU"};
  GS_HD explicit SELU(const double*)
      : ExponentialUnit(1.6732632423543772848, 1.0507009873554804934, 1.0) {}
};

struct CELU : ExponentialUnit {
  static constexpr OpInfo info{"celu", "CELU", 1, {{"alpha", 1.0}}};
  GS_HD explicit CELU(const double* p) : ExponentialUnit(p[0], 1.0, 1.0 / p[0]) {}
};

// s Phi(s), Phi the normal distribution function. phi'(s) = -s phi(s) gives the rest.
struct GELU {
  static constexpr OpInfo info{"gelu", "GELU"};
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
  static constexpr OpInfo info{"gelu_tanh", ""};  // nn.GELU(approximate="tanh")
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
      const V c = q - V(2) * g * p;  // g2 = g1 c
      g2 = g1 * c;
      g3 = g1 * (c * c - p * q - V(2) * p * fma(g, q, g1));
    }
  };
};

// log(1 + exp(beta s)) / beta; s itself where beta s > threshold.
struct Softplus {
  static constexpr OpInfo info{"softplus", "Softplus", 2, {{"beta", 1.0}, {"threshold", 20.0}}};
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

// s limited to [lo, hi]; the slope at both ends is 0.
class Clipped {
 public:
  static constexpr bool has_d1_from_z = true;
  GS_HD Clipped(double lo, double hi) : lo_(lo), hi_(hi) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return clamp(s, V(lo_), V(hi_)); }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    return select((s <= V(lo_)) | (s >= V(hi_)), V(0), V(1));
  }
  template <class V> GS_HD GS_INLINE V d2(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d3(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d1_from_z(V z) const { return d1(z); }

 private:
  double lo_, hi_;
};

struct Hardtanh : Clipped {
  static constexpr OpInfo info{"hardtanh", "Hardtanh", 2, {{"min_val", -1.0}, {"max_val", 1.0}}};
  GS_HD explicit Hardtanh(const double* p) : Clipped(p[0], p[1]) {}
};

struct ReLU6 : Clipped {
  static constexpr OpInfo info{"relu6", "ReLU6"};
  GS_HD explicit ReLU6(const double*) : Clipped(0.0, 6.0) {}
};

// min(max(s + 3, 0), 6) / 6
struct Hardsigmoid {
  static constexpr OpInfo info{"hardsigmoid", "Hardsigmoid"};
  static constexpr bool has_d1_from_z = false;  // z rounds to 1 before s reaches 3
  GS_HD explicit Hardsigmoid(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return clamp(s + V(3), V(0), V(6)) / V(6); }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    return select((s > V(-3)) & (s < V(3)), V(1.0 / 6.0), V(0));
  }
  template <class V> GS_HD GS_INLINE V d2(V) const { return V(0); }
  template <class V> GS_HD GS_INLINE V d3(V) const { return V(0); }
};

// s min(max(s + 3, 0), 6) / 6
struct Hardswish {
  static constexpr OpInfo info{"hardswish", "Hardswish"};
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit Hardswish(const double*) {}
  template <class V> GS_HD GS_INLINE V h(V s) const {
    return maximum(V(-3), s) * (clamp(s + V(3), V(0), V(6)) / V(6));
  }
  template <class V> GS_HD GS_INLINE V d1(V s) const {
    const V inside = s / V(3) + V(0.5);
    return select(s <= V(-3), V(0), select(s >= V(3), V(1), inside));
  }
  template <class V> GS_HD GS_INLINE V d2(V s) const {
    return select((s > V(-3)) & (s < V(3)), V(1.0 / 3.0), V(0));
  }
  template <class V> GS_HD GS_INLINE V d3(V) const { return V(0); }
};

struct Sine {
  static constexpr OpInfo info{"sine", "Sine"};
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
  static constexpr bool has_d1_from_z = false;
  GS_HD explicit Reciprocal(const double* p) : c_(p[0]) {}
  template <class V> GS_HD GS_INLINE V h(V s) const { return V(c_) / s; }
  template <class V> GS_HD GS_INLINE V d1(V s) const { return V(-c_) / s / s; }
  template <class V> GS_HD GS_INLINE V d2(V s) const { return V(2 * c_) / s / s / s; }
  template <class V> GS_HD GS_INLINE V d3(V s) const { return V(-6 * c_) / s / s / s / s; }

 private:
  double c_;
};

// What a functor must offer; a missing derivative does not compile.
template <class Op, class V>
concept PointwiseOver = requires(const Op op, const V x) {
  requires std::is_same_v<decltype(op.h(x)), V>;
  requires std::is_same_v<decltype(op.d1(x)), V>;
  requires std::is_same_v<decltype(op.d2(x)), V>;
  requires std::is_same_v<decltype(op.d3(x)), V>;
};

template <class Op>
concept PointwiseOp = PointwiseOver<Op, float> && PointwiseOver<Op, double> &&
                      std::is_constructible_v<Op, const double*> &&
                      std::is_same_v<decltype(Op::info), const OpInfo> &&
                      (Op::info.n_params <= kMaxOpParams) &&
                      (!Op::has_d1_from_z ||
                       requires(const Op op, const double z) { op.d1_from_z(z); });

}  // namespace ops

template <class... Ops> struct OpList {
  static_assert((ops::PointwiseOp<Ops> && ...), "an op lacks a derivative, info or constructor");
  static constexpr int size = static_cast<int>(sizeof...(Ops));
  static constexpr OpInfo info[size] = {Ops::info...};
};

// An OpId is a position in this list.
using PointwiseOps =
    OpList<ops::Identity, ops::ReLU, ops::LeakyReLU, ops::ELU, ops::SELU, ops::CELU, ops::GELU,
           ops::GELUTanh, ops::SiLU, ops::Mish, ops::Softplus, ops::Softsign, ops::Sigmoid,
           ops::LogSigmoid, ops::Tanh, ops::Tanhshrink, ops::Hardtanh, ops::ReLU6, ops::Hardsigmoid,
           ops::Hardswish, ops::Sine, ops::Affine, ops::Reciprocal>;

inline constexpr int kNumOps = PointwiseOps::size;

// 0 <= id < kNumOps.
constexpr const OpInfo& op_info(int id) { return PointwiseOps::info[id]; }

namespace ops {

template <class F, class Op, class... Rest>
GS_INLINE decltype(auto) visit(OpList<Op, Rest...>, int id, const double* p, F&& f) {
  if constexpr (sizeof...(Rest) == 0) {
    return f(Op(p));
  } else {
    if (id == 0) return f(Op(p));
    return visit(OpList<Rest...>{}, id - 1, p, static_cast<F&&>(f));
  }
}

}  // namespace ops

// The OpId of a function name, or -1.
constexpr int find_op(const char* name) { return find_row(PointwiseOps::info, name); }

// f(op) with the functor of `id` built from its parameters p; every f(op) has the same type.
template <class F> GS_INLINE decltype(auto) visit_op(int id, const double* p, F&& f) {
  return ops::visit(PointwiseOps{}, id, p, static_cast<F&&>(f));
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

// Pointwise functions that are linear above 0: ReLU and its relatives.
#pragma once

#include "gradstack/ops/op.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace ops {

struct ReLU {
  static constexpr OpInfo info{"relu", "ReLU", 0, {}, Epilogue::ReLU};
  static constexpr const char* c = "return s < 0.0 ? 0.0 : s;";
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
  static constexpr const char* c = "return s > 0.0 ? s : negative_slope * s;";
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
  static constexpr const char* c = "return s > 0.0 ? s : alpha * expm1(s);";
  GS_HD explicit ELU(const double* p) : ExponentialUnit(p[0], 1.0, 1.0) {}
};

// Constants: Klambauer et al., Self-Normalizing Neural Networks (2017), to double precision.
struct SELU : ExponentialUnit {
  static constexpr OpInfo info{"selu", "SELU"};
  static constexpr const char* c =
      "return s > 0.0 ? 1.0507009873554804934 * s : 1.7580993408473768599 * expm1(s);";
  GS_HD explicit SELU(const double*)
      : ExponentialUnit(1.6732632423543772848, 1.0507009873554804934, 1.0) {}
};

struct CELU : ExponentialUnit {
  static constexpr OpInfo info{"celu", "CELU", 1, {{"alpha", 1.0}}};
  static constexpr const char* c = "return s > 0.0 ? s : alpha * expm1(s / alpha);";
  GS_HD explicit CELU(const double* p) : ExponentialUnit(p[0], 1.0, 1.0 / p[0]) {}
};

}  // namespace ops
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

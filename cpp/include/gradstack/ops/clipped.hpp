// Pointwise functions that are straight between two kinks.
#pragma once

#include "gradstack/ops/op.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace ops {

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
  static constexpr const char* c = "return s < min_val ? min_val : (s > max_val ? max_val : s);";
  GS_HD explicit Hardtanh(const double* p) : Clipped(p[0], p[1]) {}
};

struct ReLU6 : Clipped {
  static constexpr OpInfo info{"relu6", "ReLU6"};
  static constexpr const char* c = "return s < 0.0 ? 0.0 : (s > 6.0 ? 6.0 : s);";
  GS_HD explicit ReLU6(const double*) : Clipped(0.0, 6.0) {}
};

// min(max(s + 3, 0), 6) / 6
struct Hardsigmoid {
  static constexpr OpInfo info{"hardsigmoid", "Hardsigmoid"};
  static constexpr const char* c =
      "const real t = s + 3.0;\n"
      "return (t < 0.0 ? 0.0 : (t > 6.0 ? 6.0 : t)) / 6.0;";
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
  static constexpr const char* c =
      "const real t = s + 3.0;\n"
      "return (s < -3.0 ? -3.0 : s) * ((t < 0.0 ? 0.0 : (t > 6.0 ? 6.0 : t)) / 6.0);";
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

}  // namespace ops
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

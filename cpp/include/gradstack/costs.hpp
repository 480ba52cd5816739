// The cost table: every cost C(y, ybar), once.
//
// A cost gives, per sample, the value L, the gradient dL/dybar and the product of the Hessian
// d2L/dybar2 with a vector. `cost_block` evaluates one on a block [d][lanes] (CostArgs), vectorised
// over the lanes: the reference backend instantiates it with a scalar, a cpu unit with Vec<T>.
// Formulas are PyTorch's, so are the gradients at kinks; where the second derivative does not exist
// 0 is used. Two families:
//   element-wise  value(ybar, y), d1, d2 of one component; L is their mean over the components, or
//                 their sum (CostInfo::mean)
//   row-wise      lanes<V>(args, first, n): n samples at a time, for costs that mix components
// Costs of policies stand in policy_costs.hpp. Adding a cost is one functor and one entry in
// `Costs` at the end of this file.
#pragma once

#include <type_traits>

#include "gradstack/backend.hpp"
#include "gradstack/config.hpp"
#include "gradstack/cost_info.hpp"
#include "gradstack/math.hpp"
#include "gradstack/policy_costs.hpp"
#include "gradstack/table.hpp"

namespace gradstack {

inline namespace GRADSTACK_UNIT {
namespace costs {

using namespace math;

// The lecture's ||y - ybar||^2.
struct SquaredError {
  static constexpr CostInfo info{.name = "SquaredError", .mean = false};
  GS_HD explicit SquaredError(const double*) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const { return (ybar - y) * (ybar - y); }
  template <class V> GS_HD GS_INLINE V d1(V ybar, V y) const { return V(2) * (ybar - y); }
  template <class V> GS_HD GS_INLINE V d2(V, V) const { return V(2); }
};

struct MSELoss : SquaredError {
  static constexpr CostInfo info{.name = "MSELoss"};
  using SquaredError::SquaredError;
};

struct L1Loss {
  static constexpr CostInfo info{.name = "L1Loss", .has_second = false};
  GS_HD explicit L1Loss(const double*) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const { return abs(ybar - y); }
  template <class V> GS_HD GS_INLINE V d1(V ybar, V y) const { return sign(ybar - y); }
  template <class V> GS_HD GS_INLINE V d2(V, V) const { return V(0); }
};

// curvature e^2 / 2 up to |e| = knee, the tangent of slope `slope` beyond.
class Knee {
 public:
  GS_HD Knee(double knee, double curvature, double slope)
      : knee_(knee), curvature_(curvature), slope_(slope) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const {
    const V e = abs(ybar - y);
    return select(e < V(knee_), V(0.5 * curvature_) * e * e, V(slope_) * (e - V(0.5 * knee_)));
  }
  template <class V> GS_HD GS_INLINE V d1(V ybar, V y) const {
    const V e = ybar - y;
    return select(abs(e) < V(knee_), V(curvature_) * e, V(slope_) * sign(e));
  }
  template <class V> GS_HD GS_INLINE V d2(V ybar, V y) const {
    return select(abs(ybar - y) < V(knee_), V(curvature_), V(0));
  }

 private:
  double knee_, curvature_, slope_;
};

struct HuberLoss : Knee {
  static constexpr CostInfo info{.name = "HuberLoss", .n_params = 1, .params = {{"delta", 1.0}}};
  GS_HD explicit HuberLoss(const double* p) : Knee(p[0], 1.0, p[0]) {}
};

// beta = 0 is L1Loss.
struct SmoothL1Loss : Knee {
  static constexpr CostInfo info{.name = "SmoothL1Loss", .n_params = 1, .params = {{"beta", 1.0}}};
  GS_HD explicit SmoothL1Loss(const double* p) : Knee(p[0], p[0] > 0.0 ? 1.0 / p[0] : 0.0, 1.0) {}
};

// ybar is a probability. As in PyTorch logarithms stop at -100 and the gradient divides by at least
// 1e-12 (in single precision, hence the f).
struct BCELoss {
  static constexpr CostInfo info{.name = "BCELoss"};
  GS_HD explicit BCELoss(const double*) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const {
    const V log_p = maximum(V(-100), log(ybar));
    const V log_q = maximum(V(-100), log1p(-ybar));
    return (y - V(1)) * log_q - y * log_p;
  }
  template <class V> GS_HD GS_INLINE V d1(V ybar, V y) const { return (ybar - y) / variance(ybar); }
  template <class V> GS_HD GS_INLINE V d2(V ybar, V y) const {
    const V v = variance(ybar);
    return (ybar * ybar - V(2) * ybar * y + y) / v / v;
  }

 private:
  template <class V> static GS_HD GS_INLINE V variance(V p) {
    return maximum(V(1e-12f), (V(1) - p) * p);
  }
};

struct BCEWithLogitsLoss {
  static constexpr CostInfo info{.name = "BCEWithLogitsLoss"};
  GS_HD explicit BCEWithLogitsLoss(const double*) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const {
    return (V(1) - y) * ybar + log1p_exp(-ybar);
  }
  template <class V> GS_HD GS_INLINE V d1(V ybar, V y) const { return sigmoid(ybar) - y; }
  template <class V> GS_HD GS_INLINE V d2(V ybar, V) const {
    const Logistic<V> l = logistic(ybar);
    return l.p * l.q;
  }
};

// exp(ybar) - y ybar, or ybar - y log(ybar + eps); `full` adds Stirling's approximation of log(y!)
// where y > 1.
class PoissonNLLLoss {
 public:
  static constexpr CostInfo info{.name = "PoissonNLLLoss",
                                 .n_params = 3,
                                 .params = {{"log_input", 1.0}, {"full", 0.0}, {"eps", 1e-8}}};
  GS_HD explicit PoissonNLLLoss(const double* p)
      : log_input_(p[0] != 0.0), full_(p[1] != 0.0), eps_(p[2]) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const {
    V loss = log_input_ ? exp(ybar) - y * ybar : ybar - y * log(ybar + V(eps_));
    if (full_) {
      const V stirling = y * log(y) - y + V(0.5) * log(V(6.283185307179586477) * y);
      loss += select(y > V(1), stirling, V(0));
    }
    return loss;
  }
  template <class V> GS_HD GS_INLINE V d1(V ybar, V y) const {
    return log_input_ ? exp(ybar) - y : V(1) - y / (ybar + V(eps_));
  }
  template <class V> GS_HD GS_INLINE V d2(V ybar, V y) const {
    return log_input_ ? exp(ybar) : y / ((ybar + V(eps_)) * (ybar + V(eps_)));
  }

 private:
  bool log_input_, full_;
  double eps_;
};

// ybar is a log-probability; y a probability (0 log 0 = 0) or, with log_target, its logarithm.
class KLDivLoss {
 public:
  static constexpr CostInfo info{
      .name = "KLDivLoss", .n_params = 1, .params = {{"log_target", 0.0}}, .has_second = false};
  GS_HD explicit KLDivLoss(const double* p) : log_target_(p[0] != 0.0) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const {
    if (log_target_) return exp(y) * (y - ybar);
    return select(y == V(0), V(0), y * log(y)) - y * ybar;
  }
  template <class V> GS_HD GS_INLINE V d1(V, V y) const { return log_target_ ? -exp(y) : -y; }
  template <class V> GS_HD GS_INLINE V d2(V, V) const { return V(0); }

 private:
  bool log_target_;
};

// ybar for y = 1, max(0, margin - ybar) for y = -1 (PyTorch adds both for any other y).
class HingeEmbeddingLoss {
 public:
  static constexpr CostInfo info{.name = "HingeEmbeddingLoss",
                                 .n_params = 1,
                                 .params = {{"margin", 1.0}},
                                 .has_second = false};
  GS_HD explicit HingeEmbeddingLoss(const double* p) : margin_(p[0]) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const {
    const V hinge = maximum(V(0), V(margin_) - ybar);
    return select(y != V(-1), ybar, V(0)) + select(y != V(1), hinge, V(0));
  }
  template <class V> GS_HD GS_INLINE V d1(V ybar, V y) const {
    const V hinge = select(V(margin_) - ybar >= V(0), V(-1), V(0));
    return select(y != V(-1), V(1), V(0)) + select(y != V(1), hinge, V(0));
  }
  template <class V> GS_HD GS_INLINE V d2(V, V) const { return V(0); }

 private:
  double margin_;
};

// The pinball loss max(q e, (q - 1) e), e = y - ybar; its minimiser is the q-quantile of y
// (Koenker & Bassett, 1978). The gradient at e = 0 is 0.
class QuantileLoss {
 public:
  static constexpr CostInfo info{
      .name = "QuantileLoss", .n_params = 1, .params = {{"q", 0.5}}, .has_second = false};
  GS_HD explicit QuantileLoss(const double* p) : q_(p[0]) {}
  template <class V> GS_HD GS_INLINE V value(V ybar, V y) const {
    const V e = y - ybar;
    return select(e > V(0), V(q_), V(q_ - 1)) * e;
  }
  template <class V> GS_HD GS_INLINE V d1(V ybar, V y) const {
    const V e = y - ybar;
    return select(e > V(0), V(-q_), select(e < V(0), V(1 - q_), V(0)));
  }
  template <class V> GS_HD GS_INLINE V d2(V, V) const { return V(0); }

 private:
  double q_;
};

// ybar = [mean, variance] side by side. The variance is raised to eps; as in PyTorch the gradient
// passes through that as if nothing had been done.
class GaussianNLLLoss {
 public:
  static constexpr CostInfo info{.name = "GaussianNLLLoss",
                                 .n_params = 2,
                                 .params = {{"full", 0.0}, {"eps", 1e-6}},
                                 .ybar_per_y = 2};
  GS_HD explicit GaussianNLLLoss(const double* p) : full_(p[0] != 0.0), eps_(p[1]) {}

  template <class V, class T> GS_HD void lanes(const CostArgs<T>& a, Index first, Index n) const {
    using L = Lanes<V>;
    const bool wants_scale = a.grad != nullptr || a.hv != nullptr;
    const V mean = V(1.0 / static_cast<double>(a.dy));
    const V scale = wants_scale ? L::load(a.scale + first, n) * mean : V(0);
    V sum(0);
    for (Index i = 0; i < a.dy; ++i) {
      const Index mu_at = i * a.lanes + first, var_at = mu_at + a.dy * a.lanes;
      const V e = L::load(a.ybar + mu_at, n) - L::load(a.y + mu_at, n);
      const V var = maximum(V(eps_), L::load(a.ybar + var_at, n));
      const V r = V(1) / var;
      const V er = e * r;
      if (a.loss != nullptr) sum += V(0.5) * (log(var) + e * er);
      if (a.grad != nullptr) {
        L::store(a.grad + mu_at, scale * er, n);
        L::store(a.grad + var_at, scale * V(0.5) * (r - er * er), n);
      }
      if (a.hv != nullptr) {
        const V v_mu = L::load(a.v + mu_at, n), v_var = L::load(a.v + var_at, n);
        const V cross = -er * r;
        L::store(a.hv + mu_at, scale * (r * v_mu + cross * v_var), n);
        L::store(a.hv + var_at, scale * (cross * v_mu + (er * er - V(0.5) * r) * r * v_var), n);
      }
    }
    const V constant = V(full_ ? 0.91893853320467274178 : 0.0);  // log(2 pi) / 2
    if (a.loss != nullptr) L::store(a.loss + first, mean * sum + constant, n);
  }

 private:
  bool full_;
  double eps_;
};

// ybar are log-probabilities: L = -w_y ybar_y.
struct NLLLoss {
  static constexpr CostInfo info{.name = "NLLLoss",
                                 .target = TargetKind::kLabels,
                                 .mean = false,
                                 .class_weights = true,
                                 .has_second = false};
  GS_HD explicit NLLLoss(const double*) {}

  template <class V, class T> GS_HD void lanes(const CostArgs<T>& a, Index first, Index n) const {
    using L = Lanes<V>;
    for (Index i = 0; i < a.d; ++i) {
      if (a.grad != nullptr) L::store(a.grad + i * a.lanes + first, V(0), n);
      if (a.hv != nullptr) L::store(a.hv + i * a.lanes + first, V(0), n);
    }
    for (Index l = first; l < first + n; ++l) {
      const Index y = static_cast<Index>(a.label[l]);
      const T w = a.weight != nullptr ? a.weight[y] : T(1);
      if (a.loss != nullptr) a.loss[l] = -w * a.ybar[y * a.lanes + l];
      if (a.grad != nullptr) a.grad[y * a.lanes + l] = -w * a.scale[l];
    }
  }
};

// Softmax and negative log-likelihood in one: L = -sum_c t_c log p_c with p = softmax(ybar) and
//   t_c = w_c ((1 - smoothing) [c = y] + smoothing / d)      class labels
//   t_c = w_c ((1 - smoothing) y_c + smoothing / d)          probability targets.
// dL/dybar = p sum(t) - t,  (d2L/dybar2) v = sum(t) (p v - p (p . v)).
class CrossEntropyLoss {
 public:
  static constexpr CostInfo info{.name = "CrossEntropyLoss",
                                 .n_params = 1,
                                 .params = {{"label_smoothing", 0.0}},
                                 .target = TargetKind::kLabelsOrDense,
                                 .mean = false,
                                 .class_weights = true};
  GS_HD explicit CrossEntropyLoss(const double* p) : smoothing_(p[0]) {}

  template <class V, class T> GS_HD void lanes(const CostArgs<T>& a, Index first, Index n) const {
    using L = Lanes<V>;
    V peak = L::load(a.ybar + first, n);
    for (Index i = 1; i < a.d; ++i) peak = maximum(L::load(a.ybar + i * a.lanes + first, n), peak);

    // t is a part over all classes (none for plain labels) and, with labels, `own` at class y.
    T own[L::width] = {}, own_ybar[L::width] = {};
    if (a.label != nullptr) {
      for (Index j = 0; j < n; ++j) {
        const Index y = static_cast<Index>(a.label[first + j]);
        const T w = a.weight != nullptr ? a.weight[y] : T(1);
        own[j] = static_cast<T>(1.0 - smoothing_) * w;
        own_ybar[j] = a.ybar[y * a.lanes + first + j];
      }
    }
    const bool spread = a.label == nullptr || smoothing_ > 0.0;
    V mass = L::load(own, L::width);
    V dot = mass * (L::load(own_ybar, L::width) - peak);  // sum of t_c (ybar_c - peak)

    T* const temp = a.hv != nullptr ? a.hv : a.grad;  // holds exp(ybar - peak) for the second pass
    V sum(0);
    for (Index i = 0; i < a.d; ++i) {
      const Index at = i * a.lanes + first;
      const V x = L::load(a.ybar + at, n) - peak;
      const V e = exp(x);
      sum += e;
      if (temp != nullptr) L::store(temp + at, e, n);
      if (spread) {
        const V t = spread_target<V>(a, i, first, n);
        mass += t;
        dot += t * x;
      }
    }
    if (a.loss != nullptr) L::store(a.loss + first, mass * log(sum) - dot, n);
    if (temp == nullptr) return;

    const V r = V(1) / sum;
    const V scale = L::load(a.scale + first, n);
    V pv(0);  // p . v
    if (a.hv != nullptr) {
      for (Index i = 0; i < a.d; ++i) {
        const Index at = i * a.lanes + first;
        pv += L::load(temp + at, n) * r * L::load(a.v + at, n);
      }
    }
    for (Index i = 0; i < a.d; ++i) {
      const Index at = i * a.lanes + first;
      const V p = L::load(temp + at, n) * r;
      if (a.grad != nullptr) {
        const V t = spread ? spread_target<V>(a, i, first, n) : V(0);
        L::store(a.grad + at, scale * (mass * p - t), n);
      }
      if (a.hv != nullptr) {
        L::store(a.hv + at, scale * mass * p * (L::load(a.v + at, n) - pv), n);
      }
    }
    if (a.grad == nullptr || a.label == nullptr) return;
    for (Index j = 0; j < n; ++j) {
      const Index l = first + j;
      a.grad[static_cast<Index>(a.label[l]) * a.lanes + l] -= own[j] * a.scale[l];
    }
  }

 private:
  template <class V, class T>
  GS_HD GS_INLINE V spread_target(const CostArgs<T>& a, Index i, Index first, Index n) const {
    V t = V(smoothing_ / static_cast<double>(a.d));
    if (a.label == nullptr) {
      t += V(1.0 - smoothing_) * Lanes<V>::load(a.y + i * a.lanes + first, n);
    }
    return a.weight != nullptr ? V(a.weight[i]) * t : t;
  }

  double smoothing_;
};

// w_y [argmax ybar != y]: the share of samples classified wrongly. The first of equal outputs
// counts as the largest; an output that is NaN is wrong.
struct ZeroOneLoss {
  static constexpr CostInfo info{.name = "ZeroOneLoss",
                                 .target = TargetKind::kLabels,
                                 .mean = false,
                                 .class_weights = true,
                                 .has_second = false,
                                 .has_gradient = false};
  GS_HD explicit ZeroOneLoss(const double*) {}

  template <class V, class T> GS_HD void lanes(const CostArgs<T>& a, Index first, Index n) const {
    using L = Lanes<V>;
    T label[L::width] = {}, own[L::width] = {}, weight[L::width] = {};
    for (Index j = 0; j < n; ++j) {
      const Index y = static_cast<Index>(a.label[first + j]);
      label[j] = static_cast<T>(y);
      own[j] = a.ybar[y * a.lanes + first + j];
      weight[j] = a.weight != nullptr ? a.weight[y] : T(1);
    }
    const V y = L::load(label, L::width), best = L::load(own, L::width);
    V wrong(0);
    for (Index i = 0; i < a.d; ++i) {
      const V ybar = L::load(a.ybar + i * a.lanes + first, n);
      wrong = select(ybar < best, wrong, select(ybar == best, select(V(i) < y, V(1), wrong), V(1)));
      if (a.grad != nullptr) L::store(a.grad + i * a.lanes + first, V(0), n);
      if (a.hv != nullptr) L::store(a.hv + i * a.lanes + first, V(0), n);
    }
    if (a.loss != nullptr) L::store(a.loss + first, wrong * L::load(weight, L::width), n);
  }
};

template <class C>
concept ElementwiseCost = requires(const C c, const double x) {
  requires std::is_same_v<decltype(c.value(x, x)), double>;
  requires std::is_same_v<decltype(c.d1(x, x)), double>;
  requires std::is_same_v<decltype(c.d2(x, x)), double>;
};

template <class C>
concept RowCost = requires(const C c, const CostArgs<double>& a) {
  c.template lanes<double>(a, Index{0}, Index{1});
};

template <class C>
concept Cost = (ElementwiseCost<C> || RowCost<C>)&&std::is_constructible_v<
                   C, const double*>&& std::is_same_v<decltype(C::info), const CostInfo> &&
               (C::info.n_params <= kMaxCostParams);

template <class V, ElementwiseCost C, class T>
GS_HD GS_INLINE void elementwise_lanes(const C& cost, const CostArgs<T>& a, Index first, Index n) {
  using L = Lanes<V>;
  const V mean = V(C::info.mean ? 1.0 / static_cast<double>(a.d) : 1.0);
  const bool wants_scale = a.grad != nullptr || a.hv != nullptr;
  const V scale = wants_scale ? L::load(a.scale + first, n) * mean : V(0);
  V sum(0);
  for (Index i = 0; i < a.d; ++i) {
    const Index at = i * a.lanes + first;
    const V ybar = L::load(a.ybar + at, n), y = L::load(a.y + at, n);
    if (a.loss != nullptr) sum += cost.value(ybar, y);
    if (a.grad != nullptr) L::store(a.grad + at, scale * cost.d1(ybar, y), n);
    if (a.hv != nullptr) L::store(a.hv + at, scale * cost.d2(ybar, y) * L::load(a.v + at, n), n);
  }
  if (a.loss != nullptr) L::store(a.loss + first, mean * sum, n);
}

}  // namespace costs

// Cost C on one block, V = T (scalar) or Vec<T>. Computed is what the arguments have room for:
// loss, grad, hv may each be null; scale is read for grad and hv, v for hv. Outputs must not
// overlap inputs or each other. Labels are valid classes: the caller has checked them.
template <class C, class V, class T> GS_HD void cost_block(const CostArgs<T>& a) {
  const C cost(a.p);
  for (Index first = 0; first < a.lanes; first += Lanes<V>::width) {
    const Index left = a.lanes - first;
    const Index n = left < Lanes<V>::width ? left : Lanes<V>::width;
    if constexpr (costs::ElementwiseCost<C>) {
      costs::elementwise_lanes<V>(cost, a, first, n);
    } else {
      cost.template lanes<V>(a, first, n);
    }
  }
}

// What sample l adds to the divisor of the average loss: its class weight when targets are labels
// and classes are weighted, otherwise 1.
template <class T> GS_HD GS_INLINE T sample_normaliser(const CostArgs<T>& a, Index l) {
  return a.label != nullptr && a.weight != nullptr ? a.weight[a.label[l]] : T(1);
}

template <class... Cs> struct CostList {
  static_assert((costs::Cost<Cs> && ...), "a cost lacks a derivative, info or constructor");
  static constexpr int size = static_cast<int>(sizeof...(Cs));
  static constexpr CostInfo info[size] = {Cs::info...};
};

// A CostId is a position in this list.
using Costs = CostList<costs::SquaredError, costs::MSELoss, costs::L1Loss, costs::SmoothL1Loss,
                       costs::HuberLoss, costs::CrossEntropyLoss, costs::NLLLoss, costs::BCELoss,
                       costs::BCEWithLogitsLoss, costs::PoissonNLLLoss, costs::GaussianNLLLoss,
                       costs::KLDivLoss, costs::HingeEmbeddingLoss, costs::QuantileLoss,
                       costs::ZeroOneLoss, costs::CategoricalPolicyLoss, costs::GaussianPolicyLoss,
                       costs::CategoricalPPOLoss, costs::GaussianPPOLoss>;

inline constexpr int kNumCosts = Costs::size;

// 0 <= id < kNumCosts.
constexpr const CostInfo& cost_info(int id) { return Costs::info[id]; }

// The CostId of a class name, or -1.
constexpr int find_cost(const char* name) { return find_row(Costs::info, name); }

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

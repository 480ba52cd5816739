// Costs of stochastic policies pi(a | s), whose real cost is known by its value alone.
//
// The gradient of an expected return is estimated by that of a surrogate f(log pi(a | s)), A being
// the advantage of the action that was taken (Williams, 1992):
//   L = -f - entropy * H(pi),  f = A log pi                             score function
//                              f = min(r A, clip(r, 1 -+ clip) A)       PPO (Schulman et al., 2017)
// with r = pi(a | s) / pi_old(a | s). Targets are y = [action, A] and, for PPO, [action, A,
// log pi_old]: the advantage is no sample weight, since it may be negative and does not scale the
// entropy bonus. Derivatives with l = log pi:
//   dL = -f' dl - entropy dH,  d2L = -f'' dl dl^T - f' d2l - entropy d2H.
#pragma once

#include "gradstack/backend.hpp"
#include "gradstack/config.hpp"
#include "gradstack/cost_info.hpp"
#include "gradstack/math.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace costs {

using namespace math;

template <class V> struct SurrogateValue { V f, d1, d2; };

// p = [entropy].
struct ScoreFunction {
  static constexpr int columns = 1;
  GS_HD explicit ScoreFunction(const double* p) : entropy(p[0]) {}
  template <class V, class T>
  GS_HD GS_INLINE SurrogateValue<V> at(V log_pi, const T* column, Index, Index n) const {
    const V advantage = Lanes<V>::load(column, n);
    return {advantage * log_pi, advantage, V(0)};
  }

  double entropy;
};

// p = [clip, entropy].
struct ClippedRatio {
  static constexpr int columns = 2;
  GS_HD explicit ClippedRatio(const double* p) : entropy(p[1]), clip_(p[0]) {}
  template <class V, class T>
  GS_HD GS_INLINE SurrogateValue<V> at(V log_pi, const T* column, Index lanes, Index n) const {
    const V advantage = Lanes<V>::load(column, n);
    const V ratio = exp(log_pi - Lanes<V>::load(column + lanes, n));
    const V free = ratio * advantage;
    const V held = clamp(ratio, V(1 - clip_), V(1 + clip_)) * advantage;
    const V slope = select(free > held, V(0), free);
    return {minimum(held, free), slope, slope};
  }

  double entropy;

 private:
  double clip_;
};

// ybar are logits, the action in y[0] is one of their indices.
//   l = x_a - log sum exp x,  dl = e_a - p,  d2l v = -p (v - p . v),
//   dH = -p (log p + H),  d2H v = -p ((v - p . v) (log p + H + 1) + dH . v).
template <class Surrogate> class Categorical {
 public:
  GS_HD explicit Categorical(const double* p) : surrogate_(p) {}

  template <class V, class T> GS_HD void lanes(const CostArgs<T>& a, Index first, Index n) const {
    using L = Lanes<V>;
    const V action = L::load(a.y + first, n);
    V peak = L::load(a.ybar + first, n);
    for (Index i = 1; i < a.d; ++i) peak = maximum(L::load(a.ybar + i * a.lanes + first, n), peak);

    T* const temp = a.hv != nullptr ? a.hv : a.grad;  // holds exp(ybar - peak) for the later passes
    V sum(0), dot(0);
    V own(__builtin_nan(""));  // an action that is no index must not pass for one
    for (Index i = 0; i < a.d; ++i) {
      const Index at = i * a.lanes + first;
      const V x = L::load(a.ybar + at, n) - peak;
      const V e = exp(x);
      sum += e;
      dot += select(e > V(0), e * x, V(0));
      own = select(action == V(static_cast<double>(i)), x, own);
      if (temp != nullptr) L::store(temp + at, e, n);
    }
    const V log_sum = log(sum);
    const V r = V(1) / sum;
    const V h = log_sum - dot * r;  // entropy
    const SurrogateValue<V> s = surrogate_.at(own - log_sum, a.y + a.lanes + first, a.lanes, n);
    if (a.loss != nullptr) L::store(a.loss + first, -s.f - V(surrogate_.entropy) * h, n);
    if (temp == nullptr) return;

    const V scale = L::load(a.scale + first, n);
    V pv(0), dl_v(0), dh_v(0);
    if (a.hv != nullptr) {
      for (Index i = 0; i < a.d; ++i) {
        const Index at = i * a.lanes + first;
        const V v = L::load(a.v + at, n);
        const V p = L::load(temp + at, n) * r;
        const V log_p = L::load(a.ybar + at, n) - peak - log_sum;
        pv += p * v;
        dl_v += select(action == V(static_cast<double>(i)), v, V(0));
        dh_v -= select(p > V(0), p * (log_p + h) * v, V(0));
      }
      dl_v -= pv;
    }
    for (Index i = 0; i < a.d; ++i) {
      const Index at = i * a.lanes + first;
      const V p = L::load(temp + at, n) * r;
      const V lifted = L::load(a.ybar + at, n) - peak - log_sum + h;  // log p + H
      const V dl = select(action == V(static_cast<double>(i)), V(1), V(0)) - p;
      const V entropy(surrogate_.entropy);
      if (a.grad != nullptr) {
        const V spread = entropy * select(p > V(0), p * lifted, V(0));
        L::store(a.grad + at, scale * (spread - s.d1 * dl), n);
      }
      if (a.hv != nullptr) {
        const V centred = L::load(a.v + at, n) - pv;
        const V spread = entropy * (centred * (lifted + V(1)) + dh_v);
        const V curved = select(p > V(0), p * (s.d1 * centred + spread), V(0));
        L::store(a.hv + at, scale * (curved - s.d2 * dl * dl_v), n);
      }
    }
  }

 private:
  Surrogate surrogate_;
};

// ybar = [mean, log of the standard deviation] side by side, y begins with the action. With
// z = (y - mean) / std, per component:
//   l = -z^2 / 2 - log std - log(2 pi) / 2,  dl = (z / std, z^2 - 1),
//   d2l = ((-1 / std^2, -2 z / std), (-2 z / std, -2 z^2)),  H = log std + (1 + log(2 pi)) / 2.
template <class Surrogate> class Gaussian {
 public:
  GS_HD explicit Gaussian(const double* p) : surrogate_(p) {}

  template <class V, class T> GS_HD void lanes(const CostArgs<T>& a, Index first, Index n) const {
    using L = Lanes<V>;
    const double half_log_2pi = 0.91893853320467274178;
    const Index m = a.d / 2;
    const Index to_log_std = m * a.lanes;
    V log_pi(0), h(0), dl_v(0);
    for (Index i = 0; i < m; ++i) {
      const Index at = i * a.lanes + first;
      const V log_std = L::load(a.ybar + at + to_log_std, n);
      const V inverse = exp(-log_std);
      const V z = (L::load(a.y + at, n) - L::load(a.ybar + at, n)) * inverse;
      log_pi -= V(0.5) * z * z + log_std + V(half_log_2pi);
      h += log_std + V(0.5 + half_log_2pi);
      if (a.hv != nullptr) {
        dl_v += z * inverse * L::load(a.v + at, n);
        dl_v += (z * z - V(1)) * L::load(a.v + at + to_log_std, n);
      }
    }
    const SurrogateValue<V> s = surrogate_.at(log_pi, a.y + to_log_std + first, a.lanes, n);
    const V entropy(surrogate_.entropy);
    if (a.loss != nullptr) L::store(a.loss + first, -s.f - entropy * h, n);
    if (a.grad == nullptr && a.hv == nullptr) return;

    const V scale = L::load(a.scale + first, n);
    for (Index i = 0; i < m; ++i) {
      const Index mean_at = i * a.lanes + first, std_at = mean_at + to_log_std;
      const V inverse = exp(-L::load(a.ybar + std_at, n));
      const V z = (L::load(a.y + mean_at, n) - L::load(a.ybar + mean_at, n)) * inverse;
      const V dl_mean = z * inverse, dl_std = z * z - V(1);
      if (a.grad != nullptr) {
        L::store(a.grad + mean_at, -scale * s.d1 * dl_mean, n);
        L::store(a.grad + std_at, -scale * (s.d1 * dl_std + entropy), n);
      }
      if (a.hv != nullptr) {
        const V v_mean = L::load(a.v + mean_at, n), v_std = L::load(a.v + std_at, n);
        const V along_mean = inverse * (inverse * v_mean + V(2) * z * v_std);  // -d2l v
        const V along_std = V(2) * z * (inverse * v_mean + z * v_std);
        const V outer = s.d2 * dl_v;
        L::store(a.hv + mean_at, scale * (s.d1 * along_mean - outer * dl_mean), n);
        L::store(a.hv + std_at, scale * (s.d1 * along_std - outer * dl_std), n);
      }
    }
  }

 private:
  Surrogate surrogate_;
};

struct CategoricalPolicyLoss : Categorical<ScoreFunction> {
  static constexpr CostInfo info{.name = "CategoricalPolicyLoss",
                                 .n_params = 1,
                                 .params = {{"entropy", 0.0}},
                                 .mean = false,
                                 .ybar_per_y = 0,
                                 .y_extra = 1 + ScoreFunction::columns};
  using Categorical::Categorical;
};

struct GaussianPolicyLoss : Gaussian<ScoreFunction> {
  static constexpr CostInfo info{.name = "GaussianPolicyLoss",
                                 .n_params = 1,
                                 .params = {{"entropy", 0.0}},
                                 .mean = false,
                                 .ybar_per_y = 2,
                                 .y_extra = ScoreFunction::columns};
  using Gaussian::Gaussian;
};

struct CategoricalPPOLoss : Categorical<ClippedRatio> {
  static constexpr CostInfo info{.name = "CategoricalPPOLoss",
                                 .n_params = 2,
                                 .params = {{"clip", 0.2}, {"entropy", 0.0}},
                                 .mean = false,
                                 .ybar_per_y = 0,
                                 .y_extra = 1 + ClippedRatio::columns};
  using Categorical::Categorical;
};

struct GaussianPPOLoss : Gaussian<ClippedRatio> {
  static constexpr CostInfo info{.name = "GaussianPPOLoss",
                                 .n_params = 2,
                                 .params = {{"clip", 0.2}, {"entropy", 0.0}},
                                 .mean = false,
                                 .ybar_per_y = 2,
                                 .y_extra = ClippedRatio::columns};
  using Gaussian::Gaussian;
};

}  // namespace costs
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

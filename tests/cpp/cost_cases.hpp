// Every cost by its definition per sample, in long double: the oracle of test_costs.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace cost_cases {

using Real = long double;
using Sample = std::vector<Real>;

// One sample's target: dense y, or a label with the class weights.
struct Target {
  Sample y;
  int label = -1;
  Sample weight;
};

struct Range {
  double lo = -3, hi = 3;
};

struct CostCase {
  std::string name;
  std::vector<double> p;
  std::function<Real(const Sample& ybar, const Target& t)> loss;
  // What random samples are drawn from.
  Range ybar = {}, y = {};
  std::vector<double> y_values = {};  // instead of the range
  bool labels = false, weights = false;
};

// The mean of f(ybar_i, y_i) over the components.
template <class F> auto mean_of(F f) {
  return [f](const Sample& ybar, const Target& t) {
    Real sum = 0;
    for (std::size_t i = 0; i < t.y.size(); ++i) sum += f(ybar[i], t.y[i]);
    return sum / static_cast<Real>(t.y.size());
  };
}

// Cross-entropy from its definition, softmax by sums of exponentials.
inline Real cross_entropy(const Sample& ybar, const Target& t, Real smoothing) {
  Real total = 0, loss = 0;
  for (const Real s : ybar) total += std::exp(s);
  const Real classes = static_cast<Real>(ybar.size());
  for (std::size_t c = 0; c < ybar.size(); ++c) {
    Real target = t.label < 0 ? t.y[c] : Real(t.label == static_cast<int>(c));
    target = target * (1 - smoothing) + smoothing / classes;
    if (!t.weight.empty()) target *= t.weight[c];
    loss -= target * std::log(std::exp(ybar[c]) / total);
  }
  return loss;
}

inline Real gaussian_nll(const Sample& ybar, const Target& t, Real eps, bool full) {
  Real sum = 0;
  const std::size_t n = t.y.size();
  for (std::size_t i = 0; i < n; ++i) {
    const Real var = std::max(ybar[n + i], eps), e = ybar[i] - t.y[i];
    sum += (std::log(var) + e * e / var + (full ? std::log(2 * std::acos(Real(-1))) : 0)) / 2;
  }
  return sum / static_cast<Real>(n);
}

// -f(log pi) - entropy * H for a policy; `extra` is [A] or, with a clip, [A, log pi_old].
inline Real policy_loss(Real log_pi, Real h, const Sample& extra, Real entropy, Real clip) {
  Real f = extra[0] * log_pi;
  if (extra.size() == 2) {
    const Real ratio = std::exp(log_pi - extra[1]);
    f = std::min(ratio * extra[0], std::clamp(ratio, 1 - clip, 1 + clip) * extra[0]);
  }
  return -f - entropy * h;
}

inline Real categorical_policy(const Sample& ybar, const Target& t, Real entropy, Real clip) {
  Real total = 0, h = 0;
  for (const Real s : ybar) total += std::exp(s);
  for (const Real s : ybar) h -= std::exp(s) / total * std::log(std::exp(s) / total);
  const Real pi = std::exp(ybar[static_cast<std::size_t>(t.y[0])]) / total;
  return policy_loss(std::log(pi), h, Sample(t.y.begin() + 1, t.y.end()), entropy, clip);
}

inline Real gaussian_policy(const Sample& ybar, const Target& t, Real entropy, Real clip) {
  const Real two_pi = 2 * std::acos(Real(-1));
  const std::size_t n = ybar.size() / 2;
  Real pi = 1, h = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Real var = std::exp(2 * ybar[n + i]), e = t.y[i] - ybar[i];
    pi *= std::exp(-e * e / var / 2) / std::sqrt(two_pi * var);
    h += std::log(two_pi * std::exp(Real(1)) * var) / 2;
  }
  const auto action_ends = t.y.begin() + static_cast<std::ptrdiff_t>(n);
  return policy_loss(std::log(pi), h, Sample(action_ends, t.y.end()), entropy, clip);
}

inline Real poisson(Real ybar, Real y, bool log_input, bool full) {
  const Real pi = std::acos(Real(-1));
  Real loss = log_input ? std::exp(ybar) - y * ybar : ybar - y * std::log(ybar + Real(1e-8));
  if (full && y > 1) loss += y * std::log(y) - y + std::log(2 * pi * y) / 2;
  return loss;
}

inline Real huber(Real e, Real delta) {
  return std::fabs(e) < delta ? e * e / 2 : delta * (std::fabs(e) - delta / 2);
}

inline const std::vector<CostCase>& cases() {
  const auto ce = [](Real smoothing) {
    return [smoothing](const Sample& s, const Target& t) { return cross_entropy(s, t, smoothing); };
  };
  const auto squared = [](Real s, Real y) { return (s - y) * (s - y); };
  const auto absolute = [](Real s, Real y) { return std::fabs(s - y); };
  const auto bce = [](Real p, Real y) { return -y * std::log(p) - (1 - y) * std::log(1 - p); };
  const auto bce_logits = [bce](Real s, Real y) { return bce(1 / (1 + std::exp(-s)), y); };
  const auto kl = [](Real s, Real y) { return y > 0 ? y * (std::log(y) - s) : 0; };
  const auto kl_log = [](Real s, Real y) { return std::exp(y) * (y - s); };
  const auto hub = [](Real delta, Real scale) {
    return mean_of([=](Real s, Real y) { return scale * huber(s - y, delta); });
  };
  const auto nll_counts = [](bool log_input, bool full) {
    return mean_of([=](Real s, Real y) { return poisson(s, y, log_input, full); });
  };
  const auto hinge = [](Real margin) {
    return mean_of([=](Real s, Real y) { return y > 0 ? s : std::max(Real(0), margin - s); });
  };
  const auto pinball = [](Real s, Real y) { return std::max(0.8L * (y - s), 0.2L * (s - y)); };
  const auto gaussian = [](bool full) {
    return [=](const Sample& s, const Target& t) { return gaussian_nll(s, t, 1e-6L, full); };
  };
  const auto sum_of_squares = [](const Sample& s, const Target& t) {
    Real sum = 0;
    for (std::size_t i = 0; i < s.size(); ++i) sum += (s[i] - t.y[i]) * (s[i] - t.y[i]);
    return sum;
  };
  const auto nll = [](const Sample& s, const Target& t) {
    const auto y = static_cast<std::size_t>(t.label);
    return -s[y] * (t.weight.empty() ? 1 : t.weight[y]);
  };
  const auto categorical = [](Real entropy, Real clip) {
    return
        [=](const Sample& s, const Target& t) { return categorical_policy(s, t, entropy, clip); };
  };
  const auto gaussian_pi = [](Real entropy, Real clip) {
    return [=](const Sample& s, const Target& t) { return gaussian_policy(s, t, entropy, clip); };
  };
  const auto zero_one = [](const Sample& s, const Target& t) {
    const auto y = static_cast<std::size_t>(t.label);
    const Real weight = t.weight.empty() ? 1 : t.weight[y];
    return std::max_element(s.begin(), s.end()) == s.begin() + t.label ? 0 : weight;
  };
  const Range unit{0, 1}, inner{0.05, 0.95}, wide{-6, 6}, counts{0, 4}, positive{0.2, 3};
  const Range logs{-4, 0}, narrow{-1, 1}, advantages{-2, 0.5};
  const std::vector<double> some_counts{0, 1, 2, 3}, halves{0, 0.5, 1}, signs{-1, 1};
  const auto labelled = [](std::string name, std::vector<double> p, auto loss, bool weights) {
    return CostCase{name, p, loss, {}, {}, {}, true, weights};
  };
  static const std::vector<CostCase> all = {
      {"SquaredError", {}, sum_of_squares},
      {"MSELoss", {}, mean_of(squared)},
      {"L1Loss", {}, mean_of(absolute)},
      {"SmoothL1Loss", {1}, hub(1, 1)},
      {"SmoothL1Loss", {0.5}, hub(0.5, 2)},
      {"SmoothL1Loss", {0}, mean_of(absolute)},
      {"HuberLoss", {1}, hub(1, 1)},
      {"HuberLoss", {2}, hub(2, 1)},
      labelled("CrossEntropyLoss", {0}, ce(0), false),
      labelled("CrossEntropyLoss", {0}, ce(0), true),
      labelled("CrossEntropyLoss", {0.1}, ce(0.1L), false),
      labelled("CrossEntropyLoss", {0.1}, ce(0.1L), true),
      {"CrossEntropyLoss", {0}, ce(0), {}, unit},
      {"CrossEntropyLoss", {0.2}, ce(0.2L), {}, unit, {}, false, true},
      labelled("NLLLoss", {}, nll, false),
      labelled("NLLLoss", {}, nll, true),
      {"BCELoss", {}, mean_of(bce), inner, unit},
      {"BCEWithLogitsLoss", {}, mean_of(bce_logits), wide, unit},
      {"PoissonNLLLoss", {1, 0, 1e-8}, nll_counts(true, false), {}, counts},
      {"PoissonNLLLoss", {1, 1, 1e-8}, nll_counts(true, true), {}, counts, some_counts},
      {"PoissonNLLLoss", {0, 1, 1e-8}, nll_counts(false, true), positive, counts},
      {"GaussianNLLLoss", {0, 1e-6}, gaussian(false), positive},
      {"GaussianNLLLoss", {1, 1e-6}, gaussian(true), positive},
      {"KLDivLoss", {0}, mean_of(kl), logs, unit},
      {"KLDivLoss", {0}, mean_of(kl), logs, unit, halves},
      {"KLDivLoss", {1}, mean_of(kl_log), logs, logs},
      {"HingeEmbeddingLoss", {1}, hinge(1), {}, {}, signs},
      {"HingeEmbeddingLoss", {2}, hinge(2), {}, {}, signs},
      {"QuantileLoss", {0.8}, mean_of(pinball)},
      {"CategoricalPolicyLoss", {0}, categorical(0, 0)},
      {"CategoricalPolicyLoss", {0.3}, categorical(0.3L, 0)},
      {"GaussianPolicyLoss", {0}, gaussian_pi(0, 0), narrow},
      {"GaussianPolicyLoss", {0.3}, gaussian_pi(0.3L, 0), narrow},
      {"CategoricalPPOLoss", {0.2, 0}, categorical(0, 0.2L), narrow, advantages},
      {"CategoricalPPOLoss", {0.5, 0.3}, categorical(0.3L, 0.5L), narrow, advantages},
      {"GaussianPPOLoss", {0.2, 0}, gaussian_pi(0, 0.2L), narrow, advantages},
      {"GaussianPPOLoss", {0.5, 0.3}, gaussian_pi(0.3L, 0.5L), narrow, advantages},
      labelled("ZeroOneLoss", {}, zero_one, false),
      labelled("ZeroOneLoss", {}, zero_one, true),
  };
  return all;
}

}  // namespace cost_cases

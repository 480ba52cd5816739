// The update rules. The oracle restates each optimiser for one weight in long double, as its
// documentation writes it (bias corrections as divisions, averages as b m + (1 - b) g), with its
// own powers and products; then every kernel set of this machine must agree with the scalar
// functors.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gradstack/registry.hpp"
#include "gradstack/updates.hpp"

using namespace gradstack;

namespace {

using Real = long double;

// A weight's path: (w, gradient, learning rate, step number from 1) -> new w.
using Rule = std::function<Real(Real w, Real g, Real lr, int t)>;

struct RuleCase {
  std::string name;
  std::vector<double> hyper;
  std::function<Rule()> start;  // a fresh oracle for one weight
  std::vector<int> states;      // state vectors in use
};

Real sgn(Real x) { return Real(x > 0) - Real(x < 0); }

Rule sgd(Real momentum, Real dampening, Real decay, bool nesterov) {
  return [=, buffer = Real(0)](Real w, Real g, Real lr, int t) mutable {
    g += decay * w;
    if (momentum != 0) {
      buffer = t == 1 ? g : momentum * buffer + (1 - dampening) * g;
      g = nesterov ? g + momentum * buffer : buffer;
    }
    return w - lr * g;
  };
}

Rule adam(Real b1, Real b2, Real eps, Real decay, bool amsgrad, bool decoupled) {
  return [=, m = Real(0), v = Real(0), peak = Real(0)](Real w, Real g, Real lr, int t) mutable {
    if (decoupled) {
      w -= lr * decay * w;
    } else {
      g += decay * w;
    }
    m = b1 * m + (1 - b1) * g;
    v = b2 * v + (1 - b2) * g * g;
    peak = std::max(peak, v);
    const Real m_hat = m / (1 - std::pow(b1, t));
    const Real v_hat = (amsgrad ? peak : v) / (1 - std::pow(b2, t));
    return w - lr * m_hat / (std::sqrt(v_hat) + eps);
  };
}

Rule rmsprop(Real alpha, Real eps, Real decay, Real momentum, bool centered) {
  return [=, v = Real(0), mean = Real(0), buffer = Real(0)](Real w, Real g, Real lr, int) mutable {
    g += decay * w;
    v = alpha * v + (1 - alpha) * g * g;
    mean = alpha * mean + (1 - alpha) * g;
    const Real step = g / (std::sqrt(centered ? v - mean * mean : v) + eps);
    buffer = momentum * buffer + step;
    return w - lr * (momentum > 0 ? buffer : step);
  };
}

Rule adagrad(Real lr_decay, Real decay, Real start, Real eps) {
  return [=, sum = start](Real w, Real g, Real lr, int t) mutable {
    g += decay * w;
    sum += g * g;
    return w - lr / (1 + (t - 1) * lr_decay) * g / (std::sqrt(sum) + eps);
  };
}

Rule adadelta(Real rho, Real eps, Real decay) {
  return [=, v = Real(0), u = Real(0)](Real w, Real g, Real lr, int) mutable {
    g += decay * w;
    v = rho * v + (1 - rho) * g * g;
    const Real step = std::sqrt(u + eps) / std::sqrt(v + eps) * g;
    u = rho * u + (1 - rho) * step * step;
    return w - lr * step;
  };
}

Rule nadam(Real b1, Real b2, Real eps, Real decay, Real psi, bool decoupled) {
  return [=, m = Real(0), v = Real(0)](Real w, Real g, Real lr, int t) mutable {
    const auto mu = [&](int k) { return b1 * (1 - std::pow(0.96L, k * psi) / 2); };
    Real product = 1;
    for (int k = 1; k <= t; ++k) product *= mu(k);
    if (decoupled) {
      w -= lr * decay * w;
    } else {
      g += decay * w;
    }
    m = b1 * m + (1 - b1) * g;
    v = b2 * v + (1 - b2) * g * g;
    const Real m_hat = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product);
    return w - lr * m_hat / (std::sqrt(v / (1 - std::pow(b2, t))) + eps);
  };
}

Rule lion(Real b1, Real b2, Real decay) {
  return [=, m = Real(0)](Real w, Real g, Real lr, int) mutable {
    const Real direction = sgn(b1 * m + (1 - b1) * g);
    m = b2 * m + (1 - b2) * g;
    return w - lr * (direction + decay * w);
  };
}

const std::vector<RuleCase>& cases() {
  static const std::vector<RuleCase> all = {
      {"sgd", {0, 0, 0, 0}, [] { return sgd(0, 0, 0, false); }, {}},
      {"sgd", {0, 0.5, 0.1, 0}, [] { return sgd(0, 0.5, 0.1, false); }, {}},
      {"sgd", {0.9, 0, 0, 0}, [] { return sgd(0.9, 0, 0, false); }, {0}},
      {"sgd", {0.9, 0.3, 0.1, 0}, [] { return sgd(0.9, 0.3, 0.1, false); }, {0}},
      {"sgd", {0.9, 0, 0.1, 1}, [] { return sgd(0.9, 0, 0.1, true); }, {0}},
      {"adam",
       {0.9, 0.999, 1e-8, 0, 0},
       [] { return adam(0.9, 0.999, 1e-8, 0, false, false); },
       {0, 1}},
      {"adam",
       {0.8, 0.99, 1e-3, 0.1, 1},
       [] { return adam(0.8, 0.99, 1e-3, 0.1, true, false); },
       {0, 1, 2}},
      {"adamw",
       {0.9, 0.999, 1e-8, 0.1, 0},
       [] { return adam(0.9, 0.999, 1e-8, 0.1, false, true); },
       {0, 1}},
      {"adamw",
       {0.9, 0.99, 1e-8, 0.1, 1},
       [] { return adam(0.9, 0.99, 1e-8, 0.1, true, true); },
       {0, 1, 2}},
      {"rmsprop", {0.99, 1e-8, 0, 0, 0}, [] { return rmsprop(0.99, 1e-8, 0, 0, false); }, {0}},
      {"rmsprop",
       {0.9, 1e-8, 0.1, 0.5, 0},
       [] { return rmsprop(0.9, 1e-8, 0.1, 0.5, false); },
       {0, 1}},
      {"rmsprop", {0.9, 1e-8, 0, 0, 1}, [] { return rmsprop(0.9, 1e-8, 0, 0, true); }, {0, 2}},
      {"rmsprop",
       {0.9, 1e-8, 0.1, 0.5, 1},
       [] { return rmsprop(0.9, 1e-8, 0.1, 0.5, true); },
       {0, 1, 2}},
      {"adagrad", {0, 0, 0, 1e-10}, [] { return adagrad(0, 0, 0, 1e-10); }, {0}},
      {"adagrad", {0.1, 0.1, 0.3, 1e-10}, [] { return adagrad(0.1, 0.1, 0.3, 1e-10); }, {0}},
      {"adadelta", {0.9, 1e-6, 0.1}, [] { return adadelta(0.9, 1e-6, 0.1); }, {0, 1}},
      {"nadam",
       {0.9, 0.999, 1e-8, 0.1, 4e-3, 0},
       [] { return nadam(0.9, 0.999, 1e-8, 0.1, 4e-3, false); },
       {0, 1}},
      {"nadam",
       {0.8, 0.99, 1e-8, 0.1, 0.5, 1},
       [] { return nadam(0.8, 0.99, 1e-8, 0.1, 0.5, true); },
       {0, 1}},
      {"lion", {0.9, 0.99, 0.1}, [] { return lion(0.9, 0.99, 0.1); }, {0}},
  };
  return all;
}

// Carries one case through steps with a kernel set; w has odd length, so that tails are covered.
template <class T> struct Run {
  const RuleCase& c;
  int id;
  std::vector<double> hyper;
  std::vector<T> w;
  std::array<std::vector<T>, kMaxState> state;
  std::array<double, kMaxUpdateScalars> scalars{};
  std::array<double, kMaxUpdateConstants> constants{};

  Run(const RuleCase& rule_case, std::vector<T> start)
      : c(rule_case), id(find_rule(rule_case.name.c_str())), hyper(rule_case.hyper), w(start) {
    hyper.resize(kMaxHyper);
    const UpdateInfo& info = rule_info(id);
    for (int i = 0; i < info.n_state; ++i) {
      const auto value = static_cast<T>(rule_state_init(id, hyper.data(), i));
      if (rule_uses_state(id, hyper.data(), i)) {
        state[static_cast<std::size_t>(i)].assign(w.size(), value);
      }
    }
    for (int i = 0; i < info.n_scalars; ++i) {
      scalars[static_cast<std::size_t>(i)] = info.scalars[i].value;
    }
  }

  void step(const Kernels<T>& kernels, const std::vector<T>& g, double lr, int t) {
    // Twice, as a trainer does that exempts some parameters from weight decay.
    rule_constants(id, hyper.data(), lr, t, scalars.data(), constants.data());
    rule_constants(id, hyper.data(), lr, t, scalars.data(), constants.data());
    UpdateArgs<T> args;
    args.n = static_cast<Index>(w.size());
    args.w = w.data(), args.g = g.data(), args.c = constants.data();
    for (std::size_t i = 0; i < kMaxState; ++i) {
      args.state[i] = state[i].empty() ? nullptr : state[i].data();
    }
    kernels.update[id](args);
  }
};

double learning_rate(int t) { return 0.05 / (1 + 0.1 * t); }

}  // namespace

TEST_CASE("every rule has a case here, and its name finds it") {
  for (int id = 0; id < kNumRules; ++id) {
    const std::string name = rule_info(id).name;
    CAPTURE(name);
    CHECK(find_rule(name.c_str()) == id);
    bool covered = false;
    for (const RuleCase& c : cases()) covered = covered || c.name == name;
    CHECK(covered);
  }
  CHECK(find_rule("Adam") == -1);
}

TEST_CASE("defaults are PyTorch's, and Lion's its paper's") {
  const auto check = [](const char* name, double lr, std::vector<double> hyper) {
    CAPTURE(name);
    const UpdateInfo& info = rule_info(find_rule(name));
    CHECK(info.lr == lr);
    REQUIRE(info.n_hyper == static_cast<int>(hyper.size()));
    for (int i = 0; i < info.n_hyper; ++i) {
      CHECK(info.hyper[i].value == hyper[static_cast<std::size_t>(i)]);
    }
  };
  check("sgd", 1e-3, {0, 0, 0, 0});
  check("adam", 1e-3, {0.9, 0.999, 1e-8, 0, 0});
  check("adamw", 1e-3, {0.9, 0.999, 1e-8, 1e-2, 0});
  check("rmsprop", 1e-2, {0.99, 1e-8, 0, 0, 0});
  check("adagrad", 1e-2, {0, 0, 0, 1e-10});
  check("adadelta", 1.0, {0.9, 1e-6, 0});
  check("nadam", 2e-3, {0.9, 0.999, 1e-8, 0, 4e-3, 0});
  check("lion", 1e-4, {0.9, 0.99, 0});
}

TEST_CASE_TEMPLATE("forty steps follow the textbook on every kernel set", T, float, double) {
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  for (const RuleCase& c : cases()) {
    CAPTURE(c.name);
    CAPTURE(c.hyper);
    for (const Kernels<T>* kernels : available_kernels<T>()) {
      INFO("kernels ", kernels->name);
      std::mt19937 random(3);
      std::normal_distribution<double> normal;
      std::vector<T> start(21), g(21);
      for (T& w : start) w = static_cast<T>(normal(random));
      Run<T> run(c, start);
      for (int i = 0; i < rule_info(run.id).n_state; ++i) {
        const bool wanted = std::find(c.states.begin(), c.states.end(), i) != c.states.end();
        CHECK(run.state[static_cast<std::size_t>(i)].empty() == !wanted);
      }
      std::vector<Rule> oracle(start.size());
      for (Rule& rule : oracle) rule = c.start();
      std::vector<Real> want(start.begin(), start.end());
      double worst = 0;
      for (int t = 1; t <= 40; ++t) {
        const double lr = learning_rate(t);
        // Every fourth gradient is 0: momentum and decay act alone.
        for (T& e : g) e = t % 4 == 0 ? T(0) : static_cast<T>(normal(random));
        run.step(*kernels, g, lr, t);
        for (std::size_t i = 0; i < g.size(); ++i) {
          want[i] = oracle[i](want[i], g[i], lr, t);
          worst = std::max(worst, static_cast<double>(std::fabs(run.w[i] - want[i])));
        }
      }
      CHECK(worst <= tolerance);
    }
  }
}

TEST_CASE("the first momentum step is the plain gradient, undampened") {
  const RuleCase c{"sgd", {0.9, 0.4, 0, 0}, {}, {0}};
  Run<double> run(c, {1.0});
  run.step(reference_kernels(double()), {2.0}, 0.5, 1);
  CHECK(run.w[0] == 0.0);
  CHECK(run.state[0][0] == 2.0);
  run.step(reference_kernels(double()), {2.0}, 0.5, 2);
  CHECK(run.state[0][0] == doctest::Approx(0.9 * 2 + 0.6 * 2));
}

TEST_CASE_TEMPLATE("averages decay to 0, never through denormals", T, float, double) {
  for (const RuleCase& c : cases()) {
    CAPTURE(c.name);
    for (const Kernels<T>* kernels : available_kernels<T>()) {
      INFO("kernels ", kernels->name);
      if (c.name == "adagrad") continue;  // a sum does not decay
      Run<T> run(c, std::vector<T>(9, T(1)));
      for (auto& state : run.state) {
        for (T& e : state) e = std::numeric_limits<T>::min() * T(1.5);
      }
      const std::vector<T> zero(9, T(0));
      const UpdateInfo& info = rule_info(run.id);
      for (int i = 0; i < info.n_hyper; ++i) {
        if (same_name(info.hyper[i].name, "weight_decay"))
          run.hyper[static_cast<std::size_t>(i)] = 0;
      }
      for (int t = 1; t <= 600; ++t) {
        run.step(*kernels, zero, 1e-3, t);
        int denormal = 0;
        for (const auto& state : run.state) {
          for (const T e : state) denormal += std::fpclassify(e) == FP_SUBNORMAL;
        }
        REQUIRE(denormal == 0);
      }
      for (const T w : run.w) CHECK(std::isfinite(w));
    }
  }
}

TEST_CASE("a constant gradient keeps the centred variance of RMSprop at 0 or above") {
  const RuleCase c{"rmsprop", {0.5, 1e-8, 0, 0, 1}, {}, {0, 2}};
  for (const Kernels<float>* kernels : available_kernels<float>()) {
    INFO("kernels ", kernels->name);
    Run<float> run(c, std::vector<float>(16, 1.0f));
    std::vector<float> g(16);
    for (std::size_t i = 0; i < g.size(); ++i) g[i] = 0.1f + 0.37f * static_cast<float>(i);
    for (int t = 1; t <= 300; ++t) run.step(*kernels, g, 1e-12, t);
    for (const float w : run.w) CHECK(std::isfinite(w));
  }
}

TEST_CASE("scalars carried by NAdam advance once a step") {
  const int id = find_rule("nadam");
  const double hyper[kMaxHyper] = {0.9, 0.999, 1e-8, 0, 4e-3, 0};
  double scalars[kMaxUpdateScalars] = {1, 0}, c[kMaxUpdateConstants], again[kMaxUpdateConstants];
  rule_constants(id, hyper, 0.1, 1, scalars, c);
  const double mu = 0.9 * (1 - 0.5 * std::pow(0.96, 4e-3));
  CHECK(scalars[0] == doctest::Approx(mu).epsilon(1e-15));
  rule_constants(id, hyper, 0.1, 1, scalars, again);
  CHECK(scalars[0] == doctest::Approx(mu).epsilon(1e-15));
  for (int i = 0; i < kMaxUpdateConstants; ++i) CHECK(c[i] == again[i]);
}

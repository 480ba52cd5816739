// The op table. Values are compared with formulas written out here in long double, each derivative
// with central differences of the order below it, kinks with what PyTorch's autograd returns there;
// then every kernel set of this machine is compared with the double-precision functors.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gradstack/ops.hpp"
#include "gradstack/registry.hpp"

using namespace gradstack;

namespace {

using Real = long double;

struct OpCase {
  std::string name;
  std::array<double, kMaxOpParams> p;
  std::function<Real(Real)> h;
  std::vector<double> kinks = {};
  double clear = 0.01;  // nothing is differentiated numerically closer to a kink
};

Real phi(Real x) { return std::erfc(-x / std::sqrt(Real(2))) / 2; }
Real logistic_of(Real x) { return 1 / (1 + std::exp(-x)); }
Real clip(Real x, Real lo, Real hi) { return std::min(std::max(x, lo), hi); }
Real exponential_unit(Real x, Real alpha, Real scale, Real rate) {
  return scale * (x > 0 ? x : alpha * std::expm1(rate * x));
}

const std::vector<OpCase>& cases() {
  const Real root_2_pi = std::sqrt(2 / std::acos(Real(-1)));
  static const std::vector<OpCase> all = {
      {"identity", {}, [](Real x) { return x; }},
      {"relu", {}, [](Real x) { return std::max(x, Real(0)); }, {0}},
      {"leaky_relu", {0.01}, [](Real x) { return x > 0 ? x : 0.01 * x; }, {0}},
      {"leaky_relu", {-0.5}, [](Real x) { return x > 0 ? x : -0.5 * x; }, {0}},
      {"elu", {1}, [](Real x) { return exponential_unit(x, 1, 1, 1); }, {0}},
      {"elu", {0.5}, [](Real x) { return exponential_unit(x, 0.5, 1, 1); }, {0}},
      {"selu",
       {},
       [](Real x) {
         return exponential_unit(x, 1.6732632423543772848170429916717L,
                                 1.0507009873554804934193349852946L, 1);
       },
       {0}},
      {"celu", {1}, [](Real x) { return exponential_unit(x, 1, 1, 1); }, {0}},
      {"celu", {2}, [](Real x) { return exponential_unit(x, 2, 1, 0.5); }, {0}},
      {"gelu", {}, [](Real x) { return x * phi(x); }},
      {"gelu_tanh",
       {},
       [root_2_pi](Real x) {
         return x / 2 * (1 + std::tanh(root_2_pi * (x + Real(0.044715) * x * x * x)));
       }},
      {"silu", {}, [](Real x) { return x * logistic_of(x); }},
      {"mish", {}, [](Real x) { return x * std::tanh(std::log1p(std::exp(x))); }},
      {"softplus", {1, 20}, [](Real x) { return x > 20 ? x : std::log1p(std::exp(x)); }, {20}},
      {"softplus",
       {2, 3},
       [](Real x) { return 2 * x > 3 ? x : std::log1p(std::exp(2 * x)) / 2; },
       {1.5}},
      {"softsign", {}, [](Real x) { return x / (1 + std::fabs(x)); }, {0}},
      {"sigmoid", {}, logistic_of},
      {"log_sigmoid", {}, [](Real x) { return -std::log1p(std::exp(-x)); }},
      {"tanh", {}, [](Real x) { return std::tanh(x); }},
      {"tanhshrink", {}, [](Real x) { return x - std::tanh(x); }},
      {"hardtanh", {-1, 1}, [](Real x) { return clip(x, -1, 1); }, {-1, 1}},
      {"hardtanh", {-0.5, 2}, [](Real x) { return clip(x, -0.5, 2); }, {-0.5, 2}},
      {"relu6", {}, [](Real x) { return clip(x, 0, 6); }, {0, 6}},
      {"hardsigmoid", {}, [](Real x) { return clip(x + 3, 0, 6) / 6; }, {-3, 3}},
      {"hardswish", {}, [](Real x) { return x * clip(x + 3, 0, 6) / 6; }, {-3, 3}},
      {"sine", {}, [](Real x) { return std::sin(x); }},
      {"affine", {-2, 0.5}, [](Real x) { return -2 * x + Real(0.5); }},
      {"reciprocal", {3}, [](Real x) { return 3 / x; }, {0}, 0.6},
  };
  return all;
}

template <class V> V value(const OpCase& c, int order, V s) {
  return visit_op(find_op(c.name.c_str()), c.p.data(), [&](auto op) -> V {
    switch (order) {
      case 0:
        return op.h(s);
      case 1:
        return op.d1(s);
      case 2:
        return op.d2(s);
      default:
        return op.d3(s);
    }
  });
}

// Points of [-12, 12] that are clear of the kinks.
std::vector<double> smooth_points(const OpCase& c) {
  std::vector<double> points;
  for (double s = -11.98; s < 12.0; s += 0.0771) {
    const bool clear = std::all_of(c.kinks.begin(), c.kinks.end(),
                                   [&](double k) { return std::abs(s - k) > c.clear; });
    if (clear) points.push_back(s);
  }
  return points;
}

}  // namespace

TEST_CASE("every op has a case here, and its name finds it") {
  for (int id = 0; id < kNumOps; ++id) {
    const std::string name = op_info(id).name;
    CAPTURE(name);
    CHECK(find_op(name.c_str()) == id);
    CHECK(std::any_of(cases().begin(), cases().end(),
                      [&](const OpCase& c) { return c.name == name; }));
  }
  for (const OpCase& c : cases()) CHECK(find_op(c.name.c_str()) >= 0);
  CHECK(find_op("rel") == -1);
  CHECK(find_op("relu7") == -1);
  CHECK(find_op("") == -1);
}

TEST_CASE("parameters and their defaults") {
  const auto check = [](const char* name, const char* module, std::vector<Param> params) {
    CAPTURE(name);
    const OpInfo& info = op_info(find_op(name));
    CHECK(std::string(info.module) == module);
    REQUIRE(info.n_params == static_cast<int>(params.size()));
    for (int i = 0; i < info.n_params; ++i) {
      CHECK(std::string(info.params[i].name) == params[static_cast<std::size_t>(i)].name);
      CHECK(info.params[i].value == params[static_cast<std::size_t>(i)].value);
    }
  };
  check("leaky_relu", "LeakyReLU", {{"negative_slope", 0.01}});
  check("elu", "ELU", {{"alpha", 1}});
  check("celu", "CELU", {{"alpha", 1}});
  check("softplus", "Softplus", {{"beta", 1}, {"threshold", 20}});
  check("hardtanh", "Hardtanh", {{"min_val", -1}, {"max_val", 1}});
  check("affine", "", {{"a", 1}, {"b", 0}});
  check("gelu_tanh", "", {});
}

TEST_CASE("values are those of the formula") {
  for (const OpCase& c : cases()) {
    CAPTURE(c.name);
    double worst = 0;
    std::vector<double> points = smooth_points(c);
    points.insert(points.end(), c.kinks.begin(), c.kinks.end());
    for (const double s : points) {
      const Real want = c.h(s);
      if (std::isinf(want)) continue;
      worst = std::max(worst,
                       static_cast<double>(std::abs(value(c, 0, s) - want) / (1 + std::abs(want))));
    }
    CHECK(worst <= 8 * std::numeric_limits<double>::epsilon());
  }
}

TEST_CASE("each derivative is the slope of the order below") {
  const double step = 1e-3;
  for (const OpCase& c : cases()) {
    CAPTURE(c.name);
    for (int order = 1; order <= 3; ++order) {
      CAPTURE(order);
      const auto f = [&](double s) { return value(c, order - 1, s); };
      double worst = 0;
      for (const double s : smooth_points(c)) {
        const double slope =
            (8 * (f(s + step) - f(s - step)) - (f(s + 2 * step) - f(s - 2 * step))) / (12 * step);
        const double got = value(c, order, s);
        worst = std::max(worst, std::abs(got - slope) / (1 + std::abs(slope)));
      }
      // The stencil's own error: h^4 times a fifth derivative, up to 4e4 for 3 / s near 0.6.
      CHECK(worst <= (c.name == "reciprocal" ? 1e-8 : 1e-10));
    }
  }
}

TEST_CASE("kinks have PyTorch's derivatives") {
  // h', h'' and h''' at s, from torch.autograd.grad applied repeatedly in float64.
  const double selu_slope = 1.0507009873554804934 * 1.6732632423543772848;
  const double sigmoid_3 = 1 / (1 + std::exp(-3.0));
  struct Kink {
    OpCase op;
    double s, d1, d2, d3;
  };
  const std::vector<Kink> kinks = {
      {{"relu", {}, {}}, 0, 0, 0, 0},          {{"leaky_relu", {0.3}, {}}, 0, 0.3, 0, 0},
      {{"elu", {0.5}, {}}, 0, 0.5, 0, 0},      {{"selu", {}, {}}, 0, selu_slope, 0, 0},
      {{"celu", {0.5}, {}}, 0, 1, 0, 0},       {{"softplus", {2, 3}, {}}, 1.5, sigmoid_3, 0, 0},
      {{"softsign", {}, {}}, 0, 1, 0, 0},      {{"hardtanh", {-1, 1}, {}}, -1, 0, 0, 0},
      {{"hardtanh", {-1, 1}, {}}, 1, 0, 0, 0}, {{"relu6", {}, {}}, 0, 0, 0, 0},
      {{"relu6", {}, {}}, 6, 0, 0, 0},         {{"hardsigmoid", {}, {}}, -3, 0, 0, 0},
      {{"hardsigmoid", {}, {}}, 3, 0, 0, 0},   {{"hardswish", {}, {}}, -3, 0, 0, 0},
      {{"hardswish", {}, {}}, 3, 1, 0, 0},
  };
  for (const Kink& k : kinks) {
    CAPTURE(k.op.name);
    CAPTURE(k.s);
    CHECK(value(k.op, 1, k.s) == doctest::Approx(k.d1).epsilon(1e-15));
    CHECK(value(k.op, 2, k.s) == k.d2);
    CHECK(value(k.op, 3, k.s) == k.d3);
  }
}

TEST_CASE_TEMPLATE("d1_from_z is d1", T, float, double) {
  for (const OpCase& c : cases()) {
    CAPTURE(c.name);
    std::vector<double> points = smooth_points(c);
    for (const double k : c.kinks) {
      const T at = static_cast<T>(k), inf = std::numeric_limits<T>::infinity();
      points.insert(points.end(), {k, static_cast<double>(std::nextafter(at, inf)),
                                   static_cast<double>(std::nextafter(at, -inf))});
    }
    visit_op(find_op(c.name.c_str()), c.p.data(), [&](auto op) {
      if constexpr (op.has_d1_from_z) {
        for (const double s : points) {
          const T at = static_cast<T>(s);
          const T error = std::abs(op.d1_from_z(op.h(at)) - op.d1(at));
          CHECK(error <= 4 * std::numeric_limits<T>::epsilon());
        }
      }
    });
  }
}

TEST_CASE("large arguments: derivatives are finite and die out") {
  for (const OpCase& c : cases()) {
    if (c.name == "sine") continue;
    CAPTURE(c.name);
    for (const double s : {50.0, 1e3, 1e5, 1e10, 1e100, 1e300}) {
      for (const double at : {s, -s}) {
        CAPTURE(at);
        CHECK(std::isfinite(value(c, 0, at)));
        CHECK(std::isfinite(value(c, 1, at)));
        CHECK(std::abs(value(c, 2, at)) <= 20 / (s * s * s));
        CHECK(std::abs(value(c, 3, at)) <= 20 / (s * s * s));
      }
    }
    for (const double at : {HUGE_VAL, -HUGE_VAL}) {
      CAPTURE(at);
      for (int order = 0; order <= 3; ++order) CHECK_FALSE(std::isnan(value(c, order, at)));
    }
  }
}

// Reference and cpu kernels, that is scalars and the vectors of every instruction set, agree with
// the functors in double precision: on smooth points, next to kinks, far out, and on NaN.
TEST_CASE_TEMPLATE("kernels compute the functors", T, float, double) {
  const double eps = std::numeric_limits<T>::epsilon();
  const double inf = HUGE_VAL;
  for (const OpCase& c : cases()) {
    CAPTURE(c.name);
    std::vector<T> s;
    for (const double x : smooth_points(c)) s.push_back(static_cast<T>(x));
    for (const double k : c.kinks) {
      const T at = static_cast<T>(k);
      for (const T x : {at, std::nextafter(at, T(100)), std::nextafter(at, T(-100))}) {
        if (c.name != "reciprocal") s.push_back(x);
      }
    }
    for (const double x :
         {15.0, 25.0, 39.9, 88.7, 104.0, 700.0, 746.0, 1e3, 1e5, 1e30, 3e38, inf}) {
      s.insert(s.end(), {static_cast<T>(x), static_cast<T>(-x)});
    }
    if (c.name != "reciprocal") {
      const T tiny = std::numeric_limits<T>::denorm_min();
      s.insert(s.end(), {T(1e-30), T(-1e-30), tiny, -tiny, T(0)});
    }
    s.push_back(std::numeric_limits<T>::quiet_NaN());
    const int id = find_op(c.name.c_str());
    const Index n = static_cast<Index>(s.size());
    std::vector<T> z(s.size());
    for (const Kernels<T>* kernels : available_kernels<T>()) {
      INFO("kernels ", kernels->name);
      for (int order = 0; order <= 3; ++order) {
        CAPTURE(order);
        kernels->pointwise[id].derivative(n, c.p.data(), order, s.data(), z.data());
        if (order == 0) CHECK(std::isnan(z.back()));
        double worst = 0, where = 0;
        for (std::size_t i = 0; i + 1 < s.size(); ++i) {
          const double want = value(c, order, static_cast<double>(s[i]));
          const double got = static_cast<double>(z[i]);
          double error = std::abs(got - want) / (1 + std::abs(want));
          if (static_cast<T>(want) == z[i] || (std::isnan(want) && std::isnan(got))) error = 0;
          if (std::isnan(error)) error = inf;
          if (error > worst) worst = error, where = static_cast<double>(s[i]);
        }
        INFO("worst at ", where);
        CHECK(worst <= 16 * eps);
      }
    }
  }
}

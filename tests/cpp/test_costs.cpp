// The cost table. The oracle is each cost's definition per sample (cost_cases.hpp); gradients are
// compared with its central differences, Hessian products with central differences of the gradient,
// kinks with PyTorch's values; then every kernel set of this machine is compared with the
// double-precision scalar kernels, for blocks and for single samples.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cost_cases.hpp"
#include "gradstack/costs.hpp"
#include "gradstack/registry.hpp"

using namespace gradstack;
using namespace cost_cases;

namespace {

// A block of samples for a case, and what a kernel makes of it.
template <class T> struct Block {
  Index d, dy, lanes;
  std::vector<double> p;
  std::vector<T> ybar, y, weight, scale, v, loss, grad, hv;
  std::vector<std::int64_t> label;

  CostArgs<T> args() {
    CostArgs<T> a;
    a.d = d, a.dy = label.empty() ? dy : 0, a.lanes = lanes;
    a.ybar = ybar.data(), a.p = p.data();
    a.y = label.empty() ? y.data() : nullptr;
    a.label = label.empty() ? nullptr : label.data();
    a.weight = weight.empty() ? nullptr : weight.data();
    a.scale = scale.data(), a.v = v.data();
    a.loss = loss.data(), a.grad = grad.data(), a.hv = hv.data();
    return a;
  }
};

Block<double> random_block(const CostCase& c, Index dy, Index lanes, unsigned seed) {
  std::mt19937 random(seed);
  const auto draw = [&](Range range) {
    return std::uniform_real_distribution<double>(range.lo, range.hi)(random);
  };
  Block<double> b;
  const CostInfo& info = cost_info(find_cost(c.name.c_str()));
  b.d = dy * std::max(1, info.ybar_per_y), b.lanes = lanes;
  b.dy = target_width(info, b.d);
  b.p = c.p;
  b.p.resize(kMaxCostParams);
  for (Index i = 0; i < b.d * lanes; ++i) {
    b.ybar.push_back(draw(c.ybar));
    b.v.push_back(draw({-1, 1}));
  }
  for (Index i = 0; i < b.dy * lanes; ++i) {
    const bool any_y = c.y_values.empty();
    b.y.push_back(any_y ? draw(c.y) : c.y_values[random() % c.y_values.size()]);
  }
  for (Index l = 0; info.ybar_per_y == 0 && l < lanes; ++l) {  // the action comes first
    b.y[static_cast<std::size_t>(l)] = static_cast<double>(random() % static_cast<unsigned>(b.d));
  }
  for (Index i = 0; i < (c.weights ? b.d : 0); ++i) b.weight.push_back(draw({0.2, 2}));
  for (Index l = 0; l < lanes; ++l) {
    if (c.labels) b.label.push_back(static_cast<Index>(random()) % b.d);
    b.scale.push_back(draw({0.1, 2}));
  }
  b.loss.assign(static_cast<std::size_t>(lanes), -99);
  b.grad.assign(b.ybar.size(), -99);
  b.hv.assign(b.ybar.size(), -99);
  return b;
}

template <class To, class From> std::vector<To> cast(const std::vector<From>& x) {
  std::vector<To> out;
  for (const From e : x) out.push_back(static_cast<To>(e));
  return out;
}

template <class To, class From> Block<To> cast(const Block<From>& from) {
  Block<To> b;
  b.d = from.d, b.dy = from.dy, b.lanes = from.lanes;
  b.p = from.p, b.label = from.label;
  b.ybar = cast<To>(from.ybar), b.y = cast<To>(from.y), b.weight = cast<To>(from.weight);
  b.scale = cast<To>(from.scale), b.v = cast<To>(from.v), b.loss = cast<To>(from.loss);
  b.grad = cast<To>(from.grad), b.hv = cast<To>(from.hv);
  return b;
}

template <class T> Block<T> lane_of(const Block<T>& b, Index lane) {
  Block<T> one = b;
  const auto column = [&](const std::vector<T>& x) {
    std::vector<T> out;
    for (Index i = lane; i < static_cast<Index>(x.size()); i += b.lanes) {
      out.push_back(x[static_cast<std::size_t>(i)]);
    }
    return out;
  };
  one.lanes = 1;
  one.ybar = column(b.ybar), one.y = column(b.y), one.v = column(b.v);
  one.scale = column(b.scale), one.loss = column(b.loss);
  one.grad = column(b.grad), one.hv = column(b.hv);
  if (!b.label.empty()) one.label = {b.label[static_cast<std::size_t>(lane)]};
  return one;
}

void run(const CostCase& c, Block<double>& b) {
  reference_kernels(double()).cost[find_cost(c.name.c_str())](b.args());
}

// Central difference of fourth order.
template <class F> auto slope(F f, Real step) {
  return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step);
}

double worst_difference(const std::vector<double>& got, const std::vector<double>& want) {
  double worst = 0;
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - want[i]) / (1 + std::abs(want[i]));
    worst = std::max(worst, std::isnan(error) ? HUGE_VAL : error);
  }
  return worst;
}

}  // namespace

TEST_CASE("every cost has a case here, and its name finds it") {
  for (int id = 0; id < kNumCosts; ++id) {
    const std::string name = cost_info(id).name;
    CAPTURE(name);
    CHECK(find_cost(name.c_str()) == id);
    CHECK(std::any_of(cases().begin(), cases().end(),
                      [&](const CostCase& c) { return c.name == name; }));
  }
  CHECK(find_cost("MSE") == -1);
  const CostInfo& ce = cost_info(find_cost("CrossEntropyLoss"));
  CHECK(ce.target == TargetKind::kLabelsOrDense);
  CHECK(ce.class_weights);
  CHECK(cost_info(find_cost("NLLLoss")).target == TargetKind::kLabels);
  CHECK(cost_info(find_cost("GaussianNLLLoss")).ybar_per_y == 2);
  CHECK(cost_info(find_cost("MSELoss")).mean);
  CHECK_FALSE(cost_info(find_cost("SquaredError")).mean);
}

TEST_CASE("value, gradient and Hessian product follow from the definition") {
  for (const CostCase& c : cases()) {
    for (const Index dy : {Index{1}, Index{5}}) {
      CAPTURE(c.name);
      CAPTURE(dy);
      Block<double> b = random_block(c, dy, 1, 11 + static_cast<unsigned>(dy));
      run(c, b);

      Target target;
      target.y.assign(b.y.begin(), b.y.end());
      target.weight.assign(b.weight.begin(), b.weight.end());
      if (c.labels) target.label = static_cast<int>(b.label[0]);
      const Sample ybar(b.ybar.begin(), b.ybar.end());
      CHECK(b.loss[0] == doctest::Approx(static_cast<double>(c.loss(ybar, target))).epsilon(1e-14));

      std::vector<double> grad, hv;
      for (std::size_t i = 0; i < ybar.size(); ++i) {
        const Real derivative = slope(
            [&](Real step) {
              Sample moved = ybar;
              moved[i] += step;
              return c.loss(moved, target);
            },
            Real(1e-4));
        grad.push_back(static_cast<double>(derivative) * b.scale[0]);
      }
      CHECK(worst_difference(b.grad, grad) <= 1e-11);

      // Along v, the gradient changes by the Hessian times v.
      for (std::size_t i = 0; i < ybar.size(); ++i) {
        hv.push_back(static_cast<double>(slope(
            [&](Real step) {
              Block<double> moved = b;
              for (std::size_t k = 0; k < ybar.size(); ++k) {
                moved.ybar[k] += static_cast<double>(step) * b.v[k];
              }
              run(c, moved);
              return moved.grad[i];
            },
            Real(1e-3))));
      }
      CHECK(worst_difference(b.hv, hv) <= 1e-9);
      const bool curved = cost_info(find_cost(c.name.c_str())).has_second;
      if (!curved) CHECK(std::all_of(b.hv.begin(), b.hv.end(), [](double h) { return h == 0; }));
    }
  }
}

TEST_CASE("kinks and limits have PyTorch's values") {
  // One component; loss, gradient and second derivative from torch, float64.
  struct Point {
    std::string cost;
    std::vector<double> p;
    double ybar, y, loss, grad, second;
  };
  const double floor = 1e-12f;
  const std::vector<Point> points = {
      {"L1Loss", {}, 2, 2, 0, 0, 0},
      {"SmoothL1Loss", {1}, 1, 0, 0.5, 1, 0},
      {"SmoothL1Loss", {0}, 1, 1, 0, 0, 0},
      {"HuberLoss", {2}, -2, 0, 2, -2, 0},
      {"BCELoss", {}, 0, 1, 100, -1 / floor, 1 / floor / floor},
      {"BCELoss", {}, 1, 0, 100, 1 / floor, 1 / floor / floor},
      {"BCELoss", {}, 0, 0, 0, 0, 0},
      {"BCEWithLogitsLoss", {}, 800, 0, 800, 1, 0},
      {"BCEWithLogitsLoss", {}, -800, 0, 0, 0, 0},
      {"KLDivLoss", {0}, -3, 0, 0, 0, 0},
      {"HingeEmbeddingLoss", {1}, 1, -1, 0, -1, 0},
      {"HingeEmbeddingLoss", {1}, 1.5, -1, 0, 0, 0},
      {"HingeEmbeddingLoss", {1}, 0.25, 0, 1, 0, 0},
      {"QuantileLoss", {0.8}, 2, 2, 0, 0, 0},
  };
  for (const Point& point : points) {
    CAPTURE(point.cost);
    CostCase c{point.cost, point.p, {}};
    Block<double> b = random_block(c, 1, 1, 1);
    b.ybar = {point.ybar}, b.y = {point.y}, b.v = {1}, b.scale = {1};
    run(c, b);
    CHECK(b.loss[0] == doctest::Approx(point.loss).epsilon(1e-14));
    CHECK(b.grad[0] == doctest::Approx(point.grad).epsilon(1e-14));
    CHECK(b.hv[0] == doctest::Approx(point.second).epsilon(1e-12));
  }

  // A variance below eps is raised to it; the gradient of the variance still flows.
  CostCase gaussian{"GaussianNLLLoss", {0, 0.5}, {}};
  Block<double> b = random_block(gaussian, 1, 1, 1);
  b.ybar = {1, 0.1}, b.y = {0}, b.scale = {1};
  run(gaussian, b);
  CHECK(b.loss[0] == doctest::Approx(0.5 * (std::log(0.5) + 2)));
  CHECK(b.grad[0] == doctest::Approx(2));
  CHECK(b.grad[1] == doctest::Approx(0.5 * (2 - 4)));
}

TEST_CASE("the 0-1 loss: the first of equal outputs wins, NaN never does") {
  CostCase c{"ZeroOneLoss", {}, {}};
  c.labels = true;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  struct Row {
    std::vector<double> ybar;
    std::int64_t label;
    double loss;
  };
  for (const Row& row : std::vector<Row>{{{1, 1, 0}, 0, 0},
                                         {{1, 1, 0}, 1, 1},
                                         {{0, 1, 1}, 1, 0},
                                         {{nan, 0, 0}, 0, 1},
                                         {{0, nan, 0}, 0, 1},
                                         {{-1, -2, -3}, 0, 0}}) {
    Block<double> b = random_block(c, 3, 1, 1);
    b.ybar.assign(row.ybar.begin(), row.ybar.end());
    b.label = {row.label};
    run(c, b);
    CHECK(b.loss[0] == row.loss);
    CHECK(std::all_of(b.grad.begin(), b.grad.end(), [](double g) { return g == 0; }));
  }
}

TEST_CASE("cross-entropy is stable for large logits") {
  CostCase c{"CrossEntropyLoss", {0}, {}};
  c.labels = true;
  Block<double> b = random_block(c, 3, 1, 1);
  b.ybar = {1e4, -1e4, 0}, b.label = {1}, b.scale = {1};
  run(c, b);
  CHECK(b.loss[0] == 2e4);
  CHECK(b.grad == std::vector<double>{1, -1, 0});
}

TEST_CASE("PPO's slope is 0 where the better ratio is clipped") {
  struct Point {
    double ratio, advantage, loss, slope;  // slope: of the loss in log pi
  };
  for (const Point& point : std::vector<Point>{{1.1, 2, -2.2, -2.2},
                                               {1.5, 2, -2.4, 0},
                                               {0.5, 2, -1, -1},
                                               {0.9, -2, 1.8, 1.8},
                                               {0.5, -2, 1.6, 0},
                                               {1.5, -2, 3, 3}}) {
    CAPTURE(point.ratio);
    CostCase c{"GaussianPPOLoss", {0.2, 0}, {}};
    Block<double> b = random_block(c, 1, 1, 1);
    b.ybar = {0, 0}, b.scale = {1};
    const double action = 1.5, log_pi = -action * action / 2 - std::log(8 * std::atan(1.0)) / 2;
    b.y = {action, point.advantage, log_pi - std::log(point.ratio)};
    run(c, b);
    CHECK(b.loss[0] == doctest::Approx(point.loss));
    CHECK(b.grad[0] == doctest::Approx(point.slope * action));
    CHECK(b.grad[1] == doctest::Approx(point.slope * (action * action - 1)));
  }
}

TEST_CASE("a categorical policy: actions ruled out, and none of its actions") {
  CostCase c{"CategoricalPolicyLoss", {0.5}, {}};
  Block<double> b = random_block(c, 3, 1, 1);
  b.ybar = {0, -HUGE_VAL, 0}, b.y = {2, 1}, b.scale = {1};
  run(c, b);
  CHECK(b.loss[0] == doctest::Approx(0.5 * std::log(2.0)));
  CHECK(b.grad[0] == doctest::Approx(0.5));
  CHECK(b.grad[1] == 0);
  CHECK(b.grad[2] == doctest::Approx(-0.5));
  CHECK(b.hv[1] == 0);
  for (const double action : {-1.0, 0.5, 3.0}) {
    b.y[0] = action;
    run(c, b);
    CHECK(std::isnan(b.loss[0]));
  }
}

TEST_CASE_TEMPLATE("kernels agree, for blocks and single samples", T, float, double) {
  const double eps = std::numeric_limits<T>::epsilon();
  for (const CostCase& c : cases()) {
    const int id = find_cost(c.name.c_str());
    for (const Index dy : {Index{1}, Index{2}, Index{7}}) {
      CAPTURE(c.name);
      CAPTURE(dy);
      const Block<T> start = cast<T>(random_block(c, dy, kLanes, 5));
      Block<double> exact = cast<double>(start);
      run(c, exact);
      for (const Kernels<T>* kernels : available_kernels<T>()) {
        INFO("kernels ", kernels->name);
        Block<T> got = start;
        kernels->cost[id](got.args());
        CHECK(worst_difference(cast<double>(got.loss), exact.loss) <= 32 * eps);
        CHECK(worst_difference(cast<double>(got.grad), exact.grad) <= 64 * eps);
        CHECK(worst_difference(cast<double>(got.hv), exact.hv) <= 256 * eps);

        // A single sample has the bits it has in a block.
        for (const Index lane : {Index{0}, Index{19}, kLanes - 1}) {
          Block<T> one = lane_of(start, lane);
          const Block<T> want = lane_of(got, lane);
          kernels->cost[id](one.args());
          CHECK(one.loss == want.loss);
          CHECK(one.grad == want.grad);
          CHECK(one.hv == want.hv);
        }

        // Each result alone is the result in company, and a null pointer is left alone.
        Block<T> alone = start;
        CostArgs<T> args = alone.args();
        args.grad = args.hv = nullptr, args.scale = args.v = nullptr;
        kernels->cost[id](args);
        CHECK(alone.loss == got.loss);
        args = alone.args();
        args.loss = args.hv = nullptr, args.v = nullptr;
        kernels->cost[id](args);
        args = alone.args();
        args.loss = args.grad = nullptr;
        kernels->cost[id](args);
        CHECK(alone.grad == got.grad);
        CHECK(alone.hv == got.hv);

        // Padding lanes (scale 0) have gradient 0.
        Block<T> padded = start;
        std::fill(padded.scale.begin() + 20, padded.scale.end(), T(0));
        kernels->cost[id](padded.args());
        for (Index i = 0; i < padded.d; ++i) {
          for (Index l = 20; l < kLanes; ++l) {
            const auto at = static_cast<std::size_t>(i * kLanes + l);
            CHECK(padded.grad[at] == T(0));
            CHECK(padded.hv[at] == T(0));
          }
        }
      }
    }
  }
}

TEST_CASE("samples count by class weight under labels, else once") {
  const std::int64_t label[] = {2, 0};
  const double weight[] = {0.5, 1, 4}, y[] = {0};
  CostArgs<double> a;
  a.label = label, a.weight = weight;
  CHECK(sample_normaliser(a, 0) == 4);
  CHECK(sample_normaliser(a, 1) == 0.5);
  a.weight = nullptr;
  CHECK(sample_normaliser(a, 0) == 1);
  a.weight = weight, a.label = nullptr, a.y = y;
  CHECK(sample_normaliser(a, 0) == 1);
}

// Losses and gradients of batches, under every schedule, against the interpreter.
#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gradstack/program.hpp"
#include "support/interpreter.hpp"
#include "support/problems.hpp"
#include "support/random_graphs.hpp"

using namespace test;
using gradstack::Batch;
using gradstack::Cost;
using gradstack::Kernels;
using gradstack::Program;
using gradstack::Reduction;

namespace {

// How one sample's loss is made; value and derivative.
struct Recipe {
  std::string cost;
  bool labels = false, weighted = false;
  std::vector<double> class_weight = {};
  Reduction reduction = Reduction::Mean;
};

Dual sample_loss(const Recipe& recipe, const std::vector<Dual>& ybar, const double* y,
                 std::int64_t label) {
  Dual total(0);
  if (recipe.cost == "CrossEntropyLoss") {
    for (const Dual& s : ybar) total = total + exponential(s);
    const Dual loss = logarithm(total) - ybar[at(label)];
    return recipe.class_weight.empty() ? loss : loss * Dual(recipe.class_weight[at(label)]);
  }
  for (std::size_t j = 0; j < ybar.size(); ++j)
    total = total + (ybar[j] - Dual(y[j])) * (ybar[j] - Dual(y[j]));
  const bool mean = recipe.cost == "MSELoss" && recipe.reduction == Reduction::Mean;
  return mean ? total / Dual(static_cast<Real>(ybar.size())) : total;
}

// A net at a point of its parameters, a direction, and what the interpreter says there.
struct Point {
  std::shared_ptr<const Graph> graph;
  DataSet<double> data;
  Values w, dw;
  Outputs out;

  Point(std::shared_ptr<const Graph> g, Index count)
      : graph(std::move(g)),
        data(*graph, count, 3),
        w(random_parameters(*graph, 1)),
        dw(random_values(graph->n_params(), 2)),
        out(interpret(*graph, w, {data.x}, count, {}, dw)) {}
};

// The average (or sum) over the samples, and its derivative along dw.
Dual oracle_loss(const Recipe& recipe, const Point& point) {
  const Outputs& out = point.out;
  const DataSet<double>& data = point.data;
  const std::size_t d = out.values[0].size() / at(data.count);
  Dual sum(0);
  Real norm = 0;
  for (std::size_t i = 0; i < at(data.count); ++i) {
    std::vector<Dual> ybar;
    for (std::size_t j = i * d; j < (i + 1) * d; ++j)
      ybar.emplace_back(out.values[0][j], out.tangents[0][j]);
    const std::int64_t label = data.labels[i];
    const Real weight = recipe.weighted ? static_cast<Real>(data.weight[i]) : 1;
    sum = sum + Dual(weight) * sample_loss(recipe, ybar, &data.y[i * d], label);
    norm += weight *
            (recipe.class_weight.empty() ? 1 : static_cast<Real>(recipe.class_weight[at(label)]));
  }
  return recipe.reduction == Reduction::Sum ? sum : sum / Dual(norm);
}

template <class T> void check_dtype(const Recipe& recipe, const Point& point, bool all_kernels) {
  const Dual expected = oracle_loss(recipe, point);
  const DataSet<T> data(*point.graph, point.data.count, 3);
  const auto cost =
      make_cost<T>(recipe.cost, recipe.labels ? std::vector{0.0} : std::vector<double>{},
                   cast<T>(recipe.class_weight), recipe.reduction);
  const std::vector<T> weights = cast<T>(point.w);
  for (const Kernels<T>* kernels : gradstack::available_kernels<T>()) {
    if (!all_kernels && kernels != &best_kernels<T>()) continue;
    Program<T> program(point.graph, *kernels);
    std::vector<T> gradient(weights.size(), T(-9)), again(weights.size());
    const Batch batch = data.batch(recipe.labels, recipe.weighted);
    const auto target = data.target(recipe.labels);
    const double loss = program.value_and_grad(weights.data(), batch, target, cost, gradient.data(),
                                               {.threads = 1});
    const double scale = std::max<double>(1, std::abs(static_cast<double>(expected.value)));
    CHECK(std::abs(loss - static_cast<double>(expected.value)) < 100 * epsilon<T>() * scale);
    Inner inner;
    inner.add(gradient, point.dw);
    CHECK(inner.template error<T>(expected.tangent) < 300);
    CHECK(program.value_and_grad(weights.data(), batch, target, cost, again.data(),
                                 {.threads = 3}) == loss);
    CHECK(same_bits(gradient, again));
    const double value = program.evaluate(weights.data(), batch, target, cost, {.threads = 1});
    CHECK(std::abs(value - static_cast<double>(expected.value)) < 100 * epsilon<T>() * scale);
    CHECK(program.evaluate(weights.data(), batch, target, cost, {.threads = 3}) == value);
  }
}

void check_recipe(const Recipe& recipe, const Point& point, bool all_kernels = true) {
  CAPTURE(recipe.cost);
  CAPTURE(point.data.count);
  check_dtype<float>(recipe, point, all_kernels);
  check_dtype<double>(recipe, point, all_kernels);
}

const std::vector<Recipe> kRecipes = {
    {"SquaredError"},
    {"SquaredError", false, true},
    {"MSELoss", false, true},
    {"MSELoss", false, true, {}, Reduction::Sum},
    {"CrossEntropyLoss", true, false},
    {"CrossEntropyLoss", true, true, {0.5, 2.0, 0.0}},
    {"CrossEntropyLoss", true, true, {0.5, 2.0, 1.0}, Reduction::Sum},
};

// A user's cost: ||ybar - y||^2 on rows, which may fail.
template <class T> class RowsCost final : public Cost<T> {
 public:
  bool fail = false;
  mutable Index samples = 0;
  void check_target(Index, Index, bool) const override {}
  bool by_block() const override { return false; }
  void rows(Index count, Index d, const T* ybar, Index, const T* y, const std::int64_t*, T* loss,
            T* grad) const override {
    samples = count;
    if (fail) throw std::domain_error("the user's own");
    for (Index i = 0; i < count; ++i) {
      loss[i] = 0;
      for (Index j = i * d; j < (i + 1) * d; ++j) {
        loss[i] += (ybar[j] - y[j]) * (ybar[j] - y[j]);
        if (grad) grad[j] = 2 * (ybar[j] - y[j]);
      }
    }
  }
};

}  // namespace

TEST_CASE("loss and gradient under every schedule") {
  for (const Schedule& schedule : all_schedules()) {
    CAPTURE(schedule.name);
    const Point point(schedule.graph, schedule.batch);
    for (const Recipe& recipe : kRecipes)
      check_recipe(recipe, point, schedule.graph->n_params() < 10000);
  }
  for (const Schedule& schedule : all_schedules(0, true)) {
    CAPTURE(schedule.name);
    check_recipe(kRecipes[5], Point(schedule.graph, schedule.batch), false);
  }
}

TEST_CASE("loss and gradient of batches of every size") {
  const auto graph = narrow_tiles().graph;
  for (const Index count : {1, 2, 3, 4, 31, 32, 33, 63, 64, 65, 130, 1025}) {
    const Point point(graph, count);
    check_recipe(kRecipes[1], point);
    check_recipe(kRecipes[5], point);
  }
}

TEST_CASE("loss and gradient of random diagrams") {
  const Index counts[] = {1, 33, 64, 130};
  for (unsigned seed = 300, done = 0; done < 10; ++seed) {
    const auto graph = RandomGraph(seed).build(true);
    if (graph->inputs().size() != 1) continue;
    CAPTURE(seed);
    check_recipe(kRecipes[1], Point(graph, counts[done++ % 4]));
  }
}

TEST_CASE("a user's cost is one of the table's") {
  for (const Schedule& schedule : {narrow_tiles(), chunks(), wide_tiles()}) {
    const Graph& graph = *schedule.graph;
    const DataSet<double> data(graph, schedule.batch, 3);
    const Values w = random_parameters(graph, 1);
    const auto own = std::make_shared<RowsCost<double>>();
    for (const int threads : {1, 4}) {
      Program<double> program(schedule.graph, best_kernels<double>());
      const gradstack::CallOptions options{.threads = threads};
      const Batch batch = data.batch(false, true);
      Values expected(w.size()), gradient(w.size());
      const double loss =
          program.value_and_grad(w.data(), batch, data.target(false),
                                 make_cost<double>("SquaredError"), expected.data(), options);
      CHECK(program.value_and_grad(w.data(), batch, data.target(false), own, gradient.data(),
                                   options) == doctest::Approx(loss).epsilon(1e-13));
      CHECK(worst_error(gradient, expected) < 100);
      CHECK(own->samples == schedule.batch);
      CHECK(program.evaluate(w.data(), batch, data.target(false), own, options) ==
            doctest::Approx(loss).epsilon(1e-13));
      own->fail = true;
      CHECK_THROWS_WITH_AS(program.value_and_grad(w.data(), batch, data.target(false), own,
                                                  gradient.data(), options),
                           "the user's own", std::domain_error);
      CHECK_THROWS_AS(program.evaluate(w.data(), batch, data.target(false), own, options),
                      std::domain_error);
      own->fail = false;
      CHECK(program.value_and_grad(w.data(), batch, data.target(false), own, gradient.data(),
                                   options) == doctest::Approx(loss).epsilon(1e-13));
    }
  }
}

TEST_CASE("a batch without weight has neither loss nor gradient") {
  for (const Schedule& schedule : {narrow_tiles(), chunks()}) {
    DataSet<float> data(*schedule.graph, schedule.batch, 3);
    std::fill(data.weight.begin(), data.weight.end(), 0.0F);
    const std::vector<float> w = cast<float>(random_parameters(*schedule.graph, 1));
    std::vector<float> gradient(w.size(), 9.0F);
    Program<float> program(schedule.graph, best_kernels<float>());
    CHECK(program.value_and_grad(w.data(), data.batch(false, true), data.target(false),
                                 make_cost<float>("SquaredError"), gradient.data(), {}) == 0);
    CHECK(std::all_of(gradient.begin(), gradient.end(), [](float g) { return g == 0; }));
  }
}

TEST_CASE("a loss that is not finite is reported as it is") {
  const Schedule schedule = narrow_tiles();
  DataSet<float> data(*schedule.graph, schedule.batch, 3);
  data.y[4] = std::numeric_limits<float>::infinity();
  const std::vector<float> w = cast<float>(random_parameters(*schedule.graph, 1));
  std::vector<float> gradient(w.size());
  Program<float> program(schedule.graph, best_kernels<float>());
  CHECK(std::isinf(program.value_and_grad(w.data(), data.batch(false, false), data.target(false),
                                          make_cost<float>("SquaredError"), gradient.data(), {})));
}

TEST_CASE("the normaliser of the average") {
  const Schedule schedule = narrow_tiles();
  const DataSet<double> data(*schedule.graph, 11, 3);
  const auto plain = make_cost<double>("SquaredError");
  const auto classes = make_cost<double>("CrossEntropyLoss", {0.0}, {0.5, 2.0, 0.25});
  CHECK(gradstack::total_weight(*plain, data.batch(false, false)) == 11);
  double weights = 0, both = 0, class_weights = 0;
  const double of_class[] = {0.5, 2.0, 0.25};
  for (std::size_t i = 0; i < 11; ++i) {
    weights += data.weight[i];
    class_weights += of_class[data.labels[i]];
    both += data.weight[i] * of_class[data.labels[i]];
  }
  CHECK(gradstack::total_weight(*plain, data.batch(false, true)) ==
        doctest::Approx(weights).epsilon(1e-14));
  CHECK(gradstack::total_weight(*classes, data.batch(true, false)) ==
        doctest::Approx(class_weights).epsilon(1e-14));
  CHECK(gradstack::total_weight(*classes, data.batch(true, true)) ==
        doctest::Approx(both).epsilon(1e-14));
  // Of the samples selected.
  Batch part = data.batch(false, true);
  const Index order[] = {4, 4, 8, 1, 2};
  part.index = order;
  part.first = 1;
  part.count = 3;
  CHECK(gradstack::total_weight(*plain, part) ==
        doctest::Approx(data.weight[4] + data.weight[8] + data.weight[1]).epsilon(1e-14));
}

TEST_CASE("a cost compares one output") {
  Net net;
  const std::string x = net.input({3}), y = net.linear(x, 2);
  const auto graph = net.finish({y, net.pointwise(y, "tanh")});
  CHECK_THROWS_WITH_AS(gradstack::Objective<float>(graph, best_kernels<float>(), {},
                                                   make_cost<float>("SquaredError"), {2, false}),
                       doctest::Contains("2"), std::invalid_argument);
}

// Populations and zeroth-order searches: losses against whole evaluations by the program, the same
// bits for any number of threads, budgets, interruption.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gradstack/program.hpp"
#include "gradstack/search.hpp"
#include "support/problems.hpp"
#include "support/training.hpp"

using namespace test;
using gradstack::Population;
using gradstack::Search;
using gradstack::SearchOptions;

namespace {

const std::vector<std::string> kMethods = {"es", "spsa", "random"};

template <class T> class Rows final : public gradstack::Members<T> {
 public:
  explicit Rows(std::vector<std::vector<T>> rows) : rows_(std::move(rows)) {}
  const T* member(Index m, bool, T*) const override { return rows_[at(m)].data(); }

 private:
  std::vector<std::vector<T>> rows_;
};

template <class T>
std::vector<double> losses(Population<T>& population, const gradstack::Members<T>& members,
                           Index count, int threads) {
  std::vector<double> result(at(count));
  population.run(count, threads, kNever,
                 [&](const gradstack::Worker& worker, gradstack::TeamError& error) {
                   population.evaluate(members, count, result.data(), worker, error);
                 });
  return result;
}

template <class T> SearchOptions<T> start(Index n, Index budget) {
  SearchOptions<T> options;
  options.x0.assign(at(n), T(3));
  options.scale.assign(at(n), T(1));
  options.budget = budget;
  options.seed = 5;
  return options;
}

// A search driven point by point.
template <class T, class F>
Index drive(Search<T>& search, Index budget, F&& f, Index* generations = nullptr) {
  Index used = 0;
  while (const Index count = search.ask(budget - used)) {
    std::vector<double> values;
    std::vector<T> x(at(search.size()));
    for (Index m = 0; m < count; ++m) {
      const T* point = search.member(m, false, x.data());
      values.push_back(f(std::vector<T>(point, point + search.size())));
    }
    search.tell(values.data(), gradstack::Worker{});
    used += count;
    if (generations) ++*generations;
  }
  return used;
}

double stairs(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += std::floor(std::abs(v));
  return sum;
}

}  // namespace

TEST_CASE_TEMPLATE("members have the losses that the program gives them one by one", T, float,
                   double) {
  for (const Schedule& schedule : all_schedules()) {
    CAPTURE(schedule.name);
    const DataSet<T> data(*schedule.graph, schedule.batch, 3);
    for (const bool labels : {false, true}) {
      const auto cost = make_cost<T>(labels ? "CrossEntropyLoss" : "MSELoss",
                                     labels ? std::vector{0.0} : std::vector<double>{});
      const gradstack::Batch batch = data.batch(labels, true);
      Population<T> population(schedule.graph, best_kernels<T>(), cost, batch, data.target(labels));
      gradstack::Program<T> program(schedule.graph, best_kernels<T>());
      std::vector<std::vector<T>> members;
      for (unsigned m = 0; m < 5; ++m)
        members.push_back(cast<T>(random_parameters(*schedule.graph, m)));
      const std::vector<double> got = losses(population, Rows<T>(members), 5, 1);
      for (std::size_t m = 0; m < members.size(); ++m) {
        const double want =
            program.evaluate(members[m].data(), batch, data.target(labels), cost, {});
        CHECK(got[m] == doctest::Approx(want).epsilon(sizeof(T) == 4 ? 1e-5 : 1e-12));
      }
      for (const int threads : {2, 3, 7}) {
        const std::vector<double> again = losses(population, Rows<T>(members), 5, threads);
        CHECK(again == got);
      }
    }
  }
}

TEST_CASE("a search has the same bits for any number of threads") {
  const Schedule schedule = narrow_tiles();
  const DataSet<float> data(*schedule.graph, schedule.batch, 3);
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    std::vector<float> first;
    for (const int threads : {1, 2, 5}) {
      Population<float> population(schedule.graph, best_kernels<float>(),
                                   make_cost<float>("ZeroOneLoss"), data.batch(true, false),
                                   data.target(true));
      SearchOptions<float> options = start<float>(schedule.graph->n_params(), 1000);
      options.x0 = cast<float>(random_parameters(*schedule.graph, 1));
      options.population = 12;
      auto search = gradstack::make_search(method, best_kernels<float>(), options);
      Index used = 0;
      while (const Index made =
                 gradstack::run_generation(*search, population, 150 - used, threads, kNever))
        used += made;
      CHECK(used <= 150);
      CHECK(used > 130);
      const std::vector<float> best(search->best(), search->best() + search->size());
      if (threads == 1) first = best;
      CHECK(best == first);
    }
  }
}

TEST_CASE("coordinates without a scale stay, budgets hold, the start is the first point") {
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    SearchOptions<double> options = start<double>(6, 301);
    options.scale[2] = options.scale[4] = 0;
    auto search = gradstack::make_search(method, best_kernels<double>(), options);
    std::vector<std::vector<double>> points;
    const Index used = drive(*search, 301, [&](const std::vector<double>& x) {
      points.push_back(x);
      return stairs(x);
    });
    CHECK(used <= 301);
    CHECK(static_cast<Index>(points.size()) == used);
    CHECK(points[0] == options.x0);
    bool moved = false;
    for (const auto& x : points) {
      CHECK(x[2] == 3.0);
      CHECK(x[4] == 3.0);
      moved = moved || x[0] != 3.0;
    }
    CHECK(moved);
    CHECK(search->best_value() == 6.0);  // what the two that stay contribute
  }
}

TEST_CASE("evolution strategy and SPSA look on both sides") {
  for (const std::string& method : {std::string("es"), std::string("spsa")}) {
    CAPTURE(method);
    auto search = gradstack::make_search(method, best_kernels<double>(), start<double>(9, 100));
    CHECK(search->ask(100) == 1);
    const double value = 1;
    search->tell(&value, gradstack::Worker{});
    const Index count = search->ask(99) / 2 * 2;
    std::vector<double> a(9), b(9), alone(9);
    for (Index m = 0; m < count; m += 2) {
      search->member(m, false, a.data());
      b = a;
      search->member(m + 1, true, b.data());
      search->member(m + 1, false, alone.data());
      CHECK(b == alone);
      for (std::size_t i = 0; i < 9; ++i) CHECK(a[i] + b[i] == doctest::Approx(6));
    }
  }
}

TEST_CASE("values that are not numbers, and a plateau without end") {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const std::string& method : kMethods) {
    CAPTURE(method);
    auto search = gradstack::make_search(method, best_kernels<double>(), start<double>(4, 2000));
    drive(*search, 2000, [&](const std::vector<double>& x) {
      return x[0] > 3.2 ? nan : x[1] > 3.5 ? inf : stairs(x);  // holes beside the start
    });
    CHECK(search->best_value() == 0.0);
    auto lost = gradstack::make_search(method, best_kernels<double>(), start<double>(4, 5000));
    drive(*lost, 5000, [&](const std::vector<double>&) { return nan; });
    CHECK(lost->best_value() == inf);
    CHECK(std::isfinite(lost->step()));
    CHECK(std::vector<double>(lost->best(), lost->best() + 4) == std::vector<double>(4, 3.0));
  }
}

TEST_CASE("a generation can be interrupted") {
  const Schedule schedule = chunks();
  const DataSet<float> data(*schedule.graph, schedule.batch, 3);
  Population<float> population(schedule.graph, best_kernels<float>(), make_cost<float>("MSELoss"),
                               data.batch(false, false), data.target(false));
  SearchOptions<float> options = start<float>(schedule.graph->n_params(), 1 << 20);
  options.population = 1 << 19;
  auto search = gradstack::make_search("es", best_kernels<float>(), options);
  CHECK(gradstack::run_generation(*search, population, Index{1} << 20, 1, kNever) == 1);
  for (const int threads : {1, 3})
    CHECK_THROWS_AS(gradstack::run_generation(*search, population, Index{1} << 20, threads,
                                              [] { return true; }),
                    gradstack::Interrupted);
}

TEST_CASE("unknown methods and a cost without gradient are refused") {
  CHECK_THROWS_AS(gradstack::make_search("hope", best_kernels<float>(), start<float>(3, 10)),
                  std::invalid_argument);
  const Schedule schedule = narrow_tiles();
  const DataSet<float> data(*schedule.graph, schedule.batch, 3);
  gradstack::PlanOptions options;
  options.batch = schedule.batch;
  CHECK_THROWS_AS(gradstack::Objective<float>(schedule.graph, best_kernels<float>(), options,
                                              make_cost<float>("ZeroOneLoss"), data.target(true)),
                  std::invalid_argument);
}

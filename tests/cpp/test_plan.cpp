// Plans: fused and unfused agree, nothing survives from one run to the next, unwanted gradients are
// not computed; opaque blocks and dropout.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "gradstack/program.hpp"
#include "support/interpreter.hpp"
#include "support/plan_run.hpp"
#include "support/random_graphs.hpp"

using namespace test;
using gradstack::CallOptions;
using gradstack::Kernels;
using gradstack::Linearization;
using gradstack::Plan;
using gradstack::PlanOptions;
using gradstack::Program;

namespace {

PlanOptions options(Index batch, bool fuse) {
  PlanOptions o;
  o.batch = batch;
  o.fuse = fuse;
  o.want_dx = true;
  return o;
}

template <class T> struct Case {
  std::vector<T> w;
  std::vector<std::vector<T>> xs, us;

  Case(const Graph& graph, Index count, unsigned seed)
      : w(cast<T>(random_parameters(graph, seed))),
        xs(cast_all<T>(random_inputs(graph, count, seed + 1))) {
    for (const int id : graph.outputs())
      us.push_back(
          cast<T>(random_values(count * gradstack::size_of(graph.stage(id).shape), ++seed)));
  }
};

template <class T> double largest_difference(const Passes<T>& a, const Passes<T>& b) {
  double worst = worst_error(a.dw, b.dw);
  for (std::size_t k = 0; k < a.outputs.size(); ++k)
    worst = std::max(worst, worst_error(a.outputs[k], b.outputs[k]));
  for (std::size_t k = 0; k < a.dxs.size(); ++k)
    worst = std::max(worst, worst_error(a.dxs[k], b.dxs[k]));
  return worst;
}

template <class T>
void check_fusion(const std::shared_ptr<const Graph>& graph, Index count, unsigned seed) {
  const Case<T> c(*graph, count, seed);
  for (const Kernels<T>* kernels : gradstack::available_kernels<T>()) {
    const std::string name = kernels->name;
    CAPTURE(name);
    Plan<T> fused(graph, *kernels, options(count, true)),
        unfused(graph, *kernels, options(count, false));
    const Passes<T> a = run_passes(fused, c.w, c.xs, c.us, count, 1);
    const Passes<T> b = run_passes(unfused, c.w, c.xs, c.us, count, 1);
    CHECK(largest_difference(a, b) < 50);
    CHECK(run_passes(fused, c.w, c.xs, c.us, count, 4) == a);
    CHECK(run_passes(unfused, c.w, c.xs, c.us, count, 4) == b);
  }
}

}  // namespace

TEST_CASE("fused and unfused plans agree, for any number of workers") {
  const Index batches[] = {1, 2, 4, 5, 33, 64, 97};
  for (unsigned seed = 100; seed < 128; ++seed) {
    CAPTURE(seed);
    const auto graph = RandomGraph(seed).build(true);
    check_fusion<float>(graph, batches[seed % 7], seed);
    check_fusion<double>(graph, batches[seed % 7], seed);
  }
}

TEST_CASE("an unfused plan keeps every stage's value and gradient") {
  const auto graph = gradstack::mlp({5, 7, 7, 3}, "silu");
  const Index count = 33;
  const Case<double> c(*graph, count, 1);
  Plan<double> plan(graph, best_kernels<double>(), options(count, false));
  run_passes(plan, c.w, c.xs, c.us, count, 1);
  std::set<const double*> values, gradients;
  for (std::size_t id = 0; id < graph->stages().size(); ++id) {
    const gradstack::Variable<double>& v = plan.variable(static_cast<int>(id));
    CHECK(values.insert(v.value).second);
    CHECK(gradients.insert(v.grad).second);
  }
  // dC/dz = W^T dC/ds and dC/ds = dC/dz h'(s), from the values that the plan kept.
  const gradstack::Variable<double>&s = plan.variable(graph->find("0")),
        &z = plan.variable(graph->find("1"));
  const gradstack::Variable<double>& t = plan.variable(graph->find("2"));
  const double* weight = c.w.data() + graph->parameter(2).offset;
  for (Index i = 0; i < count; ++i)
    for (Index j = 0; j < 7; ++j) {
      const Index k = block_position(plan, i, j, Index{7});
      double dz = 0;
      for (Index o = 0; o < 7; ++o)
        dz += weight[o * 7 + j] * t.grad[block_position(plan, i, o, Index{7})];
      const Dual h = apply_op("silu", {}, Dual(s.value[k], 1));
      CHECK(z.value[k] == doctest::Approx(static_cast<double>(h.value)).epsilon(1e-13));
      CHECK(z.grad[k] == doctest::Approx(dz).epsilon(1e-12));
      CHECK(s.grad[k] == doctest::Approx(static_cast<double>(dz * h.tangent)).epsilon(1e-12));
    }
}

TEST_CASE("a plan of one capacity serves every smaller batch") {
  for (unsigned seed = 200; seed < 210; ++seed) {
    CAPTURE(seed);
    const auto graph = RandomGraph(seed).build(true);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const Index capacity : {Index{4}, Index{100}}) {
      Plan<float> plan(graph, best_kernels<float>(), options(capacity, true));
      for (const Index most : {33, 1, 64, 3, 100, 2}) {
        const Index count = std::min(most, capacity);
        CAPTURE(capacity);
        CAPTURE(count);
        // Whatever the run before left behind, NaN included, must not be seen.
        Case<float> poison(*graph, capacity, seed);
        for (auto& x : poison.xs) std::fill(x.begin(), x.end(), nan);
        for (auto& u : poison.us) std::fill(u.begin(), u.end(), nan);
        run_passes(plan, poison.w, poison.xs, poison.us, capacity, 1);
        const Case<float> c(*graph, count, seed + 1);
        const Passes<float> reused = run_passes(plan, c.w, c.xs, c.us, count, 1);
        Plan<float> fresh(graph, best_kernels<float>(), options(capacity, true));
        CHECK(run_passes(fresh, c.w, c.xs, c.us, count, 1) == reused);
      }
      CHECK_THROWS_AS(plan.set_count(0), std::invalid_argument);
      CHECK_THROWS_AS(plan.set_count(capacity + 1), std::invalid_argument);
    }
  }
  CHECK_THROWS_AS(
      Plan<float>(gradstack::mlp({2, 2}, "relu"), best_kernels<float>(), options(0, true)),
      std::invalid_argument);
}

TEST_CASE("gradients that nobody wants are not computed") {
  const auto graph = gradstack::mlp({5, 7, 7, 3}, "tanh");
  const Index count = 40;
  const Case<double> c(*graph, count, 1);
  Plan<double> all(graph, best_kernels<double>(), options(count, true));
  const Passes<double> everything = run_passes(all, c.w, c.xs, c.us, count, 1);

  PlanOptions training;
  training.batch = count;
  Plan<double> plan(graph, best_kernels<double>(), training);
  CHECK(plan.variable(graph->inputs()[0]).grad == nullptr);
  CHECK(same_bits(run_passes(plan, c.w, c.xs, c.us, count, 3).dw, everything.dw));

  // The first two layers frozen (parameters 0..3): no gradient goes below the third.
  training.frozen = {1, 1, 1, 1};
  Plan<double> frozen(graph, best_kernels<double>(), training);
  CHECK(frozen.variable(graph->find("1")).grad == nullptr);
  CHECK(frozen.variable(graph->find("3")).grad == nullptr);
  Values dw = run_passes(frozen, c.w, c.xs, c.us, count, 3).dw;
  const Index first = graph->parameter(4).offset;
  for (Index i = 0; i < graph->n_params(); ++i)
    CHECK(dw[at(i)] == (i < first ? 0 : everything.dw[at(i)]));

  // Only a bias in the middle is trained.
  training.frozen = {1, 1, 1, 0, 1, 1};
  Plan<double> bias(graph, best_kernels<double>(), training);
  CHECK(bias.variable(graph->find("1")).grad == nullptr);
  dw = run_passes(bias, c.w, c.xs, c.us, count, 3).dw;
  const gradstack::Parameter& p = graph->parameter(3);
  for (Index i = 0; i < graph->n_params(); ++i)
    CHECK(dw[at(i)] == (i >= p.offset && i < p.offset + p.size ? everything.dw[at(i)] : 0));

  // Gradients of the inputs alone.
  PlanOptions dx = options(count, true);
  dx.want_dw = false;
  Plan<double> inputs(graph, best_kernels<double>(), dx);
  const Passes<double> passes = run_passes(inputs, c.w, c.xs, c.us, count, 3);
  CHECK(same_bits(passes.dxs[0], everything.dxs[0]));
  CHECK(std::all_of(passes.dw.begin(), passes.dw.end(), [](double d) { return d == 0; }));
}

TEST_CASE("gradients can be added to what is there") {
  Net net;
  const std::string x = net.input({6}), a = net.linear(x, 6, {.mask = random_mask(6, 6, 0.5, 1)});
  const auto graph = net.finish({net.linear(net.pointwise(a, "relu"), 6)});
  const Index count = 70;
  const Case<double> c(*graph, count, 1);
  Plan<double> plan(graph, best_kernels<double>(), options(count, true));
  const Passes<double> once = run_passes(plan, c.w, c.xs, c.us, count, 1);
  Values dw = once.dw;
  gradstack::TeamError error;
  gradstack::Run<double> run;
  run.w = c.w.data();
  run.dw = dw.data();
  run.accumulate = true;
  run.error = &error;
  set_gradient(plan, graph->outputs()[0], c.us[0]);
  plan.backward(run, gradstack::Worker{});
  for (std::size_t i = 0; i < dw.size(); ++i)
    CHECK(dw[i] == doctest::Approx(2 * once.dw[i]).epsilon(1e-12));
}

TEST_CASE("prototypes: the index of the nearest one") {
  for (const Index count : {Index{1}, Index{45}}) {
    Net net;
    const std::string x = net.input({5});
    const auto graph = net.finish({net.nearest(x, 100)});
    const Values w = random_values(500, 1), xs = random_values(count * 5, 2);
    const std::vector<float> w32 = cast<float>(w), xs32 = cast<float>(xs);
    for (const Kernels<float>* kernels : gradstack::available_kernels<float>()) {
      std::vector<float> index(at(count));
      Program<float>(graph, *kernels)
          .forward(w32.data(), {rows(xs32, count)}, count, {index.data()}, {});
      for (Index i = 0; i < count; ++i) {
        Index nearest = 0;
        double best = std::numeric_limits<double>::infinity();
        for (Index k = 0; k < 100; ++k) {
          double distance = 0;
          for (Index j = 0; j < 5; ++j)
            distance += std::pow(xs[at(i * 5 + j)] - w[at(k * 5 + j)], 2);
          if (distance < best) best = distance, nearest = k;
        }
        CHECK(index[at(i)] == static_cast<float>(nearest));
      }
    }
  }
}

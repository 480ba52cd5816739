// Training: the same bits for any number of workers, steps that follow the formulas, and parameters
// that must not move.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "support/interpreter.hpp"
#include "support/training.hpp"

using namespace test;
using gradstack::Kernels;
using gradstack::Reduction;

namespace {

template <class T>
void check_workers(const Plot& p, const Kernels<T>& kernels = best_kernels<T>()) {
  const Index steps = 5;
  const Trajectory<T> one = record<T>(p, steps, 1, kernels);
  CHECK(std::isfinite(one.losses.back()));
  CHECK_FALSE(same_bits(one.states.front().w, one.states.back().w));
  for (const int workers : {1, 2, 3, 5, 8}) {
    CAPTURE(workers);
    Training<T> training(p, workers, kernels);
    training.begin();
    const std::vector<double> epochs = training.run(steps);  // all at once
    CHECK(training.state() == one.states.back());
    CHECK(same_bits(epochs, one.epochs));
    CHECK(training.trainer.last_loss == one.losses.back());
  }
}

void check_workers_both(const Plot& p) {
  check_workers<float>(p);
  check_workers<double>(p);
}

// Full gradient of the average loss ||ybar - y||^2 of rows [first, first + n), one parameter at a
// time, and the loss.
struct Oracle {
  std::vector<Real> gradient;
  Real loss = 0;

  Oracle(const Graph& graph, const std::vector<Real>& w, const DataSet<double>& data, Index first,
         Index n) {
    const std::size_t d_in = data.x.size() / at(data.count), d_out = data.y.size() / at(data.count);
    Real norm = 0;
    for (Index i = first; i < first + n; ++i) norm += data.weight[at(i)];
    for (std::size_t k = 0; k < w.size(); ++k) {
      std::vector<Dual> parameters(w.begin(), w.end());
      parameters[k].tangent = 1;
      Dual total(0);
      for (std::size_t i = at(first); i < at(first + n); ++i) {
        std::vector<Dual> x(data.x.begin() + static_cast<Index>(i * d_in),
                            data.x.begin() + static_cast<Index>((i + 1) * d_in));
        const std::vector<Dual> ybar = interpret(graph, parameters, x);
        for (std::size_t j = 0; j < d_out; ++j) {
          const Dual e = ybar[j] - Dual(data.y[i * d_out + j]);
          total = total + Dual(data.weight[i]) * e * e;
        }
      }
      gradient.push_back(total.tangent / norm);
      loss = total.value / norm;
    }
  }
};

}  // namespace

TEST_CASE("the same bits for any number of workers: every schedule") {
  for (const Schedule& schedule : all_schedules(0.2)) {
    CAPTURE(schedule.name);
    check_workers_both(plot(schedule));
  }
  for (const Schedule& schedule : all_schedules(0, true)) {
    CAPTURE(schedule.name);
    Plot p = plot(schedule);
    use_rule(p, "nadam");
    check_workers_both(p);
  }
}

TEST_CASE("the same bits for any number of workers: every way to update") {
  for (const Schedule& schedule : {narrow_tiles(0.2), chunks(0.2)}) {
    CAPTURE(schedule.name);
    Plot p = plot(schedule);
    p.optimizer.clip_norm = 0.5;
    check_workers_both(p);
    p.optimizer.clip_norm = 0;
    p.optimizer.clip_value = 0.01;
    p.optimizer.decay_bias = false;
    check_workers_both(p);
    p.optimizer.clip_value = 0;
    for (int rule = 0; rule < gradstack::kNumRules; ++rule) {
      CAPTURE(rule);
      use_rule(p, gradstack::rule_info(rule).name);
      check_workers_both(p);
    }
    p.cost = "CrossEntropyLoss";
    p.labels = true;
    p.class_weight = {0.5, 2.0, 1.0};
    p.frozen = {0, 1, 1};
    check_workers_both(p);
    p.weighted = false;
    p.shuffle = false;
    check_workers_both(p);
  }
  Plot p = plot(narrow_tiles(0.2));
  check_workers<float>(p, gradstack::reference_kernels(float()));
  p = plot(chunks(0.2));
  check_workers<double>(p, gradstack::reference_kernels(double()));
}

TEST_CASE("single samples: bits do not depend on what is made ahead of the next step") {
  // Run step by step nothing is known of the next sample; run at once the first product of each is
  // made beside the update before (from 32 KB of weights on).
  struct Case {
    Net net;
    std::string out;
  };
  std::vector<Case> cases(4);
  for (Case& c : cases) c.out = c.net.input({301});
  cases[0].out =
      cases[0].net.linear(cases[0].net.pointwise(cases[0].net.linear(cases[0].out, 61), "relu"), 3);
  cases[1].out = cases[1].net.linear(
      cases[1].net.pointwise(cases[1].net.linear(cases[1].out, 45, {.bias = false}), "gelu"), 3);
  cases[2].out = cases[2].net.linear(cases[2].out, 50);
  cases[3].out =
      cases[3].net.binary(Kind::Mul, cases[3].net.linear(cases[3].out, 33),
                          cases[3].net.pointwise(cases[3].net.linear(cases[3].out, 33), "sigmoid"));
  for (Case& c : cases) {
    Plot p;
    p.graph = c.net.finish({c.out});
    CAPTURE(p.graph->n_params());
    p.batch = 1;
    p.samples = 3;  // epochs end on the way
    p.lr = 0.001;
    p.weighted = false;
    check_workers_both(p);
    p.hyper[0] = 0;  // no momentum: no state
    check_workers_both(p);
    p.optimizer.clip_value = 0.01;
    p.shuffle = false;
    check_workers_both(p);
    p.optimizer = {.clip_norm = 0.1};
    check_workers_both(p);
    p.optimizer = {};
    p.frozen = {1};
    if (p.graph->parameters().size() > 2) check_workers_both(p);
    p.frozen = {};
    use_rule(p, "adam");
    check_workers_both(p);
  }
}

TEST_CASE("a long step keeps its update apart, with the same bits") {
  // Above 1e9 operations a step can be interrupted until its update begins.
  Net net;
  const std::string x = net.input({300});
  Plot p = plot(
      {"long step", net.finish({net.linear(net.pointwise(net.linear(x, 560), "relu"), 3)}), 1000});
  p.samples = 1100;
  REQUIRE(6.0 * static_cast<double>(p.graph->n_params() * p.batch) > 1e9);
  const Trajectory<float> one = record<float>(p, 2, 1);
  CHECK(record<float>(p, 2, 3) == one);
}

TEST_CASE("steps follow the formulas") {
  Net net;
  const std::string x = net.input({3});
  const std::string h =
      net.pointwise(net.linear(x, 4, {.mask = random_mask(4, 3, 0.5, 2)}), "tanh");
  const auto graph = net.finish({net.linear(net.binary(Kind::Add, h, net.linear(h, 4)), 2)});
  Plot p;
  p.graph = graph;
  p.samples = 11;
  p.batch = 4;
  p.shuffle = false;
  p.lr = 0.1;
  for (const int variant : {0, 1, 2, 3}) {
    CAPTURE(variant);
    p.hyper = {0.9, 0.0, variant == 0 ? 0.0 : 0.05, 0.0};
    p.optimizer = {};
    if (variant == 1) p.optimizer.decay_bias = false;
    if (variant == 2) p.optimizer.clip_norm = 0.3;
    if (variant == 3) p.optimizer.clip_value = 0.05;
    const Index steps = 7;
    const Trajectory<double> run = record<double>(p, steps, 2);
    const Trajectory<float> run32 = record<float>(p, steps, 2);
    const DataSet<double> data(*graph, p.samples, 3);
    const Values start = random_parameters(*graph, 1);
    std::vector<Real> w(start.begin(), start.end()), momentum(w.size(), 0);
    Real epoch_loss = 0, epoch_weight = 0;
    std::vector<double> epochs;
    for (Index step = 0; step < steps; ++step) {
      const Index first = step % 3 * 4, n = std::min<Index>(4, p.samples - first);
      Oracle oracle(*graph, w, data, first, n);
      CHECK(run.losses[at(step)] ==
            doctest::Approx(static_cast<double>(oracle.loss)).epsilon(1e-12));
      Real weight = 0;
      for (Index i = first; i < first + n; ++i) weight += data.weight[at(i)];
      epoch_loss += oracle.loss * weight;
      epoch_weight += weight;
      if (step % 3 == 2) {
        epochs.push_back(static_cast<double>(epoch_loss / epoch_weight));
        epoch_loss = epoch_weight = 0;
      }
      std::vector<Real>& g = oracle.gradient;
      Real norm = 0;
      for (const Real v : g) norm += v * v;
      const Real factor = std::min<Real>(1, Real(0.3) / (std::sqrt(norm) + Real(1e-6)));
      for (std::size_t i = 0; i < w.size(); ++i) {
        if (variant == 2) g[i] *= factor;
        if (variant == 3) g[i] = std::clamp<Real>(g[i], Real(-0.05), Real(0.05));
      }
      for (const gradstack::Parameter& parameter : graph->parameters()) {
        const bool bias = parameter.shape.size() == 1;
        const bool decays = variant > 0 && !(bias && variant == 1);
        for (std::size_t i = at(parameter.offset); i < at(parameter.offset + parameter.size); ++i) {
          if (parameter.name == "linear1.weight" && !(*graph->stage(1).mask)[i]) continue;
          const Real decayed = g[i] + (decays ? Real(0.05) * w[i] : 0);
          momentum[i] = step == 0 ? decayed : Real(0.9) * momentum[i] + decayed;
          w[i] -= Real(0.1) * momentum[i];
        }
      }
      CHECK(worst_error(run.states[at(step) + 1].w, w) < 500);
      CHECK(worst_error(run32.states[at(step) + 1].w, w) < 500);
    }
    REQUIRE(run.epochs.size() == epochs.size());
    for (std::size_t i = 0; i < epochs.size(); ++i)
      CHECK(run.epochs[i] == doctest::Approx(epochs[i]).epsilon(1e-12));
  }
}

TEST_CASE_TEMPLATE("masked, frozen and unused parameters never move", T, float, double) {
  for (const bool clip : {false, true})
    for (const Index batch : {Index{20}, Index{200}, Index{1}})
      for (const char* rule : {"sgd", "adamw", "lion"}) {
        CAPTURE(batch);
        CAPTURE(rule);
        Net net;
        const std::string x = net.input({9});
        const Mask mask = random_mask(31, 9, 0.4, 5);
        const std::string h = net.pointwise(net.linear(x, 31, {.mask = mask}), "tanh");
        net.unused_parameter("spare", {4, 4});
        Plot p;
        p.graph = net.finish({net.linear(net.pointwise(net.linear(h, 31), "relu"), 2)});
        use_rule(p, rule);
        for (std::size_t i = 0; i < p.hyper.size(); ++i)
          if (std::string(gradstack::rule_info(gradstack::find_rule(rule)).hyper[i].name) ==
              "weight_decay")
            p.hyper[i] = 0.1;
        p.batch = batch;
        p.samples = batch * 3;
        p.weighted = false;
        p.optimizer.clip_norm = clip ? 1e-3 : 0;
        p.frozen = {0, 0, 0, 0, 1, 0, 0};
        const auto names = p.graph->parameters();
        REQUIRE(names[2].name == "spare");
        REQUIRE(names[4].size == 31);
        Training<T> training(p, 2);
        const std::vector<T> before = training.w;
        training.begin();
        training.run(6);
        for (std::size_t k = 0; k < names.size(); ++k) {
          Index moved = 0;
          for (Index i = 0; i < names[k].size; ++i) {
            const bool same =
                before[at(names[k].offset + i)] == training.w[at(names[k].offset + i)];
            moved += !same;
            if (k == 0) CHECK((mask[at(i)] != 0 || same));
          }
          CAPTURE(k);
          if (k == 2 || k == 4)
            CHECK(moved == 0);
          else
            CHECK(moved > 0);
        }
      }
}

TEST_CASE_TEMPLATE("a step on the caller's batch is a step of the loop", T, float, double) {
  for (const Schedule& schedule : all_schedules(0.3)) {
    CAPTURE(schedule.name);
    Plot p = plot(schedule);
    p.shuffle = false;
    const Trajectory<T> loop = record<T>(p, 3, 1);
    Training<T> training(p, 2);
    for (Index i = 0; i < 3; ++i) {
      gradstack::Batch batch = training.data.batch(false, true);
      for (gradstack::RowSource* source : {&batch.x[0], &batch.y, &batch.weight})
        source->data += i * p.batch * source->row_stride;
      batch.count = std::min(p.batch, p.samples - i * p.batch);
      const double loss = training.trainer.step(training.w.data(), batch,
                                                training.data.target(false), p.lr, 2, true, 17);
      // The last, partial batch may have another schedule here: it is a batch of its own.
      if (i < 2) {
        CHECK(loss == loop.losses[at(i)]);
        CHECK(training.state() == loop.states[at(i) + 1]);
      } else {
        CHECK(loss == doctest::Approx(loop.losses[at(i)]).epsilon(1e3 * epsilon<T>()));
        CHECK(worst_error(training.w, loop.states[at(i) + 1].w) < 100);
      }
    }
  }
}

namespace {

// Writes down which rows it was shown: the labels are row numbers.
class Witness final : public gradstack::Cost<float> {
 public:
  mutable std::vector<std::vector<std::int64_t>> batches;
  void check_target(Index, Index, bool) const override {}
  bool by_block() const override { return false; }
  void rows(Index count, Index d, const float*, Index, const float*, const std::int64_t* labels,
            float* loss, float* grad) const override {
    batches.emplace_back(labels, labels + count);
    std::fill(loss, loss + count, 1.0F);
    if (grad) std::fill(grad, grad + count * d, 0.0F);
  }
};

}  // namespace

TEST_CASE("an epoch visits every row once, in an order of its own") {
  Plot p;
  p.graph = gradstack::mlp({2, 3}, "relu");
  p.labels = true;
  p.weighted = false;
  const auto visit = [&](Index samples, Index batch, bool shuffle, Index epochs) {
    p.samples = samples;
    p.batch = batch;
    p.shuffle = shuffle;
    const auto witness = std::make_shared<Witness>();
    Training<float> training(p, 2, best_kernels<float>(), witness);
    std::iota(training.data.labels.begin(), training.data.labels.end(), 0);
    training.begin();
    const Index steps = training.trainer.steps_per_epoch();
    CHECK(steps == (samples + batch - 1) / batch);
    training.run(steps * epochs);
    std::vector<std::vector<std::int64_t>> orders(at(epochs));
    for (Index i = 0; i < steps * epochs; ++i) {
      const auto& rows = witness->batches[at(i)];
      CHECK(static_cast<Index>(rows.size()) == std::min(batch, samples - i % steps * batch));
      orders[at(i / steps)].insert(orders[at(i / steps)].end(), rows.begin(), rows.end());
    }
    for (const auto& order : orders) {
      CHECK(static_cast<Index>(order.size()) == samples);
      CHECK(static_cast<Index>(std::set<std::int64_t>(order.begin(), order.end()).size()) ==
            samples);
      CHECK(std::is_sorted(order.begin(), order.end()) == (!shuffle || batch >= samples));
    }
    return orders;
  };
  const auto orders = visit(103, 10, true, 3);
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
  CHECK(orders == visit(103, 10, true, 3));
  CHECK(orders == visit(103, 7, true, 3));  // an order belongs to its epoch
  visit(103, 10, false, 2);
  visit(30, 30, true, 2);
  visit(30, 1, true, 2);
}

TEST_CASE_TEMPLATE("prototypes learn what a naive loop learns", T, float, double) {
  Net net;
  const std::string x = net.input({4});
  const Index prototypes = 6, d = 4;
  const auto graph = net.finish({net.nearest(x, prototypes)});
  for (const Index batch : {Index{1}, Index{25}, Index{150}}) {
    CAPTURE(batch);
    const Index samples = 2 * batch + batch / 2 + 1;
    std::vector<T> w = cast<T>(random_values(prototypes * d, 1)),
                   xs = cast<T>(random_values(samples * d, 2));
    std::vector<Real> naive(w.begin(), w.end());
    const auto optimizer = std::make_shared<gradstack::Optimizer<T>>(
        "sgd", std::vector<double>{0, 0, 0, 0}, prototypes * d, gradstack::OptimizerOptions{});
    gradstack::Trainer<T> trainer(graph, best_kernels<T>(), make_cost<T>("SquaredError"), optimizer,
                                  {});
    gradstack::Batch data;
    data.x = {rows(xs, samples)};
    data.count = samples;
    gradstack::FitOptions options;
    options.batch_size = batch;
    options.shuffle = false;
    options.threads = 3;
    trainer.begin(w.data(), data, {}, options);
    const Index per_epoch = (samples + batch - 1) / batch;
    for (Index step = 0; step < 6; ++step) {
      const double lr = 0.3;
      trainer.run(&lr, 1, kNever);
      const Index first = step % per_epoch * batch, n = std::min(batch, samples - first);
      std::vector<Real> gradient(naive.size(), 0);
      Real loss = 0;
      for (Index i = first; i < first + n; ++i) {
        Real best = std::numeric_limits<Real>::infinity();
        Index nearest = 0;
        for (Index k = 0; k < prototypes; ++k) {
          Real distance = 0;
          for (Index j = 0; j < d; ++j) {
            const Real e = naive[at(k * d + j)] - static_cast<Real>(xs[at(i * d + j)]);
            distance += e * e;
          }
          if (distance < best) best = distance, nearest = k;
        }
        loss += best / static_cast<Real>(n);
        for (Index j = 0; j < d; ++j)
          gradient[at(nearest * d + j)] +=
              2 * (naive[at(nearest * d + j)] - static_cast<Real>(xs[at(i * d + j)])) /
              static_cast<Real>(n);
      }
      for (std::size_t i = 0; i < naive.size(); ++i) naive[i] -= Real(lr) * gradient[i];
      CHECK(trainer.last_loss ==
            doctest::Approx(static_cast<double>(loss)).epsilon(100 * epsilon<T>()));
      CHECK(worst_error(w, naive) < 100);
    }
  }
}

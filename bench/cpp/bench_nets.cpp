// Whole networks through the C++ core: predictions and Jacobians of single samples, training steps.
//
//   bench_nets --benchmark_filter='step/784.*/threads:1'
//
// Each benchmark first compares its result with the reference backend and fails if they differ.
// A training step runs inside one call of `Trainer::run`, as in a fit.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "fma_peak.hpp"
#include "gradstack/costs.hpp"
#include "gradstack/gradstack.hpp"
#include "gradstack/registry.hpp"

namespace {

using gradstack::Index;
using Reals = std::vector<float>;

struct Net {
  std::vector<Index> widths;
  std::string op, cost, rule;
  double momentum = 0;
  std::vector<Index> batches = {};

  std::string name() const {
    std::string text;
    for (Index width : widths) text += (text.empty() ? "" : "-") + std::to_string(width);
    return text + " " + op;
  }
};

const std::vector<Net>& nets() {
  static const std::vector<Net> all = {
      {{4, 64, 64, 2}, "tanh", "MSELoss", "adam", 0, {1, 64, 256}},
      {{600, 60, 40, 10}, "relu", "CrossEntropyLoss", "sgd", 0, {1, 32, 128}},
      {{784, 256, 128, 10}, "relu", "CrossEntropyLoss", "sgd", 0.9, {32, 128, 512}},
      {{1024, 1024, 1024, 1024}, "relu", "MSELoss", "sgd", 0, {128, 512}},
      {{64, 64, 64, 64, 3}, "relu", "MSELoss", "adam", 0, {65536}}};
  return all;
}

Reals random_values(Index n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Reals values(static_cast<std::size_t>(n));
  for (float& x : values) x = normal(generator);
  return values;
}

bool close(const Reals& a, const Reals& b) {
  float size = 0, error = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    size = std::max(size, std::abs(b[i]));
    error = std::max(error, std::abs(a[i] - b[i]));
  }
  return error <= 1e-4F * size;
}

// Runs `once(kernels, result)` with the reference and the active kernels, then the latter in a
// loop.
template <class Make> void compare_and_time(benchmark::State& state, Index outputs, Make&& make) {
  Reals want(static_cast<std::size_t>(outputs)), got = want;
  make(gradstack::reference_kernels(float()))(want.data());
  auto run = make(gradstack::active_kernels<float>());
  run(got.data());
  if (!close(got, want)) return state.SkipWithError("wrong result");
  for (auto _ : state) {
    run(got.data());
    benchmark::ClobberMemory();
  }
}

void add_single_sample(const Net& net) {
  const auto graph = gradstack::mlp(net.widths, net.op);
  const auto w = gradstack::initial_parameters<float>(*graph, 1);
  const Index in = net.widths.front(), out = net.widths.back();
  const Reals x = random_values(in, 2);
  benchmark::RegisterBenchmark(("forward/" + net.name()).c_str(), [=](benchmark::State& state) {
    compare_and_time(state, out, [&](const gradstack::Kernels<float>& kernels) {
      auto program = std::make_shared<gradstack::Program<float>>(graph, kernels);
      return [&, program](float* y) {
        program->forward(w.data(), {gradstack::rows_of(x.data(), 1, in)}, 1, {y}, {});
      };
    });
  });
  benchmark::RegisterBenchmark(("jacobian/" + net.name()).c_str(), [=](benchmark::State& state) {
    compare_and_time(state, out * in, [&](const gradstack::Kernels<float>& kernels) {
      auto jacobian = std::make_shared<gradstack::Jacobian<float>>(
          graph, kernels, graph->inputs()[0], std::size_t{0});
      return [&, jacobian](float* j) {
        jacobian->evaluate(w.data(), {gradstack::rows_of(x.data(), 1, in)}, 1, j, 1);
      };
    });
  });
}

std::vector<double> cost_defaults(const std::string& name) {
  const auto& info = gradstack::cost_info(gradstack::find_cost(name.c_str()));
  std::vector<double> values;
  for (int i = 0; i < info.n_params; ++i) values.push_back(info.params[i].value);
  return values;
}

// A net, its data and what trains it.
struct Training {
  Training(const Net& net, Index batch, int threads, const gradstack::Kernels<float>& kernels)
      : rows(batch < 65536 ? std::max<Index>(4 * batch, 1024) : batch),
        graph(gradstack::mlp(net.widths, net.op)),
        w(gradstack::initial_parameters<float>(*graph, 1)),
        x(random_values(rows * net.widths.front(), 2)),
        y(random_values(rows * net.widths.back(), 3)) {
    const auto& info = gradstack::rule_info(gradstack::find_rule(net.rule.c_str()));
    std::vector<double> hyper;
    for (int i = 0; i < info.n_hyper; ++i) hyper.push_back(info.hyper[i].value);
    if (net.rule == "sgd") hyper[0] = net.momentum;
    trainer = std::make_unique<gradstack::Trainer<float>>(
        graph, kernels,
        std::make_shared<gradstack::TableCost<float>>(net.cost, cost_defaults(net.cost), Reals{},
                                                      gradstack::Reduction::Mean),
        std::make_shared<gradstack::Optimizer<float>>(net.rule, hyper, graph->n_params(),
                                                      gradstack::OptimizerOptions{}),
        std::vector<char>{});
    gradstack::Batch data;
    gradstack::TargetSpec target;
    data.x = {gradstack::rows_of(x.data(), rows, net.widths.front())};
    data.count = rows;
    data.labels = target.labels = net.cost == "CrossEntropyLoss";
    if (data.labels) {
      for (Index i = 0; i < rows; ++i) labels.push_back(i * 7 % net.widths.back());
      data.y = gradstack::labels_of(labels.data(), rows);
    } else {
      target.dy = net.widths.back();
      data.y = gradstack::rows_of(y.data(), rows, target.dy);
    }
    gradstack::FitOptions options;
    options.batch_size = batch;
    options.threads = threads;
    trainer->begin(w.data(), data, target, options);
  }

  void run(Index steps) {
    const std::vector<double> lrs(static_cast<std::size_t>(steps), 1e-3);
    trainer->run(lrs.data(), steps, {});
  }

  Index rows;
  std::shared_ptr<const gradstack::Graph> graph;
  Reals w, x, y;
  std::vector<std::int64_t> labels;
  std::unique_ptr<gradstack::Trainer<float>> trainer;
};

void add_steps(const Net& net, Index batch, int threads, double peak) {
  const std::string name =
      "step/" + net.name() + " b" + std::to_string(batch) + "/threads:" + std::to_string(threads);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    Training ours(net, batch, threads, gradstack::active_kernels<float>());
    if (batch <= 128 && net.widths[1] < 1024) {  // the reference takes its time
      Training oracle(net, batch, 1, gradstack::reference_kernels(float()));
      ours.run(3);
      oracle.run(3);
      if (!close(ours.w, oracle.w)) return state.SkipWithError("wrong result");
    }
    const Index steps = ours.trainer->steps_per_epoch();
    double flops = 0;  // no gradient of the input
    for (std::size_t i = 0; i + 1 < net.widths.size(); ++i)
      flops += (i > 0 ? 6.0 : 4.0) * static_cast<double>(net.widths[i] * net.widths[i + 1]);
    flops *= static_cast<double>(batch * steps);
    for (auto _ : state) ours.run(steps);
    state.SetItemsProcessed(steps * static_cast<std::int64_t>(state.iterations()));
    if (peak > 0)
      state.counters["%peak"] = benchmark::Counter(100 * flops / (peak * threads),
                                                   benchmark::Counter::kIsIterationInvariantRate);
  })->UseRealTime();
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  const double peak = gradstack_bench::fma_peak(gradstack::backend_choice().isa, true);
  benchmark::AddCustomContext("peak of a thread", std::to_string(peak * 1e-9) + " GFLOP/s");
  for (const Net& net : nets()) {
    add_single_sample(net);
    for (Index batch : net.batches)
      for (int threads = 1; threads <= gradstack::max_threads(); threads *= 2)
        if (batch > 1 || threads == 1) add_steps(net, batch, threads, peak);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

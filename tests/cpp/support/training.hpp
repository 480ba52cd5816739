// Trainings that can be run again under other circumstances and compared bit for bit.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gradstack/trainer.hpp"
#include "support/problems.hpp"

namespace test {

inline const std::function<bool()> kNever = [] { return false; };

struct Plot {  // what is trained, and how
  std::shared_ptr<const Graph> graph;
  Index samples = 0, batch = 0;
  std::string cost = "SquaredError";
  bool labels = false, weighted = true;
  std::vector<double> class_weight = {};
  std::string rule = "sgd";
  std::vector<double> hyper = {0.9, 0.0, 0.01, 0.0};  // momentum, dampening, weight decay, Nesterov
  gradstack::OptimizerOptions optimizer = {};
  std::vector<char> frozen = {};
  double lr = 0.05;
  bool shuffle = true, check_finite = false, allow_non_finite = false;
};

inline Plot plot(const Schedule& schedule) {
  Plot p;
  p.graph = schedule.graph;
  p.batch = schedule.batch;
  p.samples = schedule.batch * 5 / 2 - 1;  // the last batch is a partial one
  return p;
}

// Adam, Lion, ... with their defaults.
inline void use_rule(Plot& p, const std::string& rule) {
  p.rule = rule;
  p.hyper.clear();
  const gradstack::UpdateInfo& info = gradstack::rule_info(gradstack::find_rule(rule.c_str()));
  for (int i = 0; i < info.n_hyper; ++i) p.hyper.push_back(info.hyper[i].value);
  p.lr = 0.01;
}

template <class T> class Training {
 public:
  Training(const Plot& p, int threads, const gradstack::Kernels<T>& kernels = best_kernels<T>(),
           std::shared_ptr<gradstack::Cost<T>> cost = nullptr)
      : plot_(p),
        data(*p.graph, p.samples, 3),
        w(cast<T>(random_parameters(*p.graph, 1))),
        optimizer(std::make_shared<gradstack::Optimizer<T>>(p.rule, p.hyper, p.graph->n_params(),
                                                            p.optimizer)),
        trainer(p.graph, kernels,
                cost ? cost
                     : make_cost<T>(p.cost, p.labels ? std::vector{0.0} : std::vector<double>{},
                                    cast<T>(p.class_weight)),
                optimizer, p.frozen),
        threads_(threads) {}

  void begin() {
    gradstack::FitOptions options;
    options.batch_size = plot_.batch;
    options.shuffle = plot_.shuffle;
    options.seed = 17;
    options.threads = threads_;
    options.check_finite = plot_.check_finite;
    options.allow_non_finite = plot_.allow_non_finite;
    trainer.begin(w.data(), data.batch(plot_.labels, plot_.weighted), data.target(plot_.labels),
                  options);
  }

  // Averages of the epochs that ended.
  std::vector<double> run(Index steps, const std::function<bool()>& interrupted = kNever) {
    const std::vector<double> lrs(at(steps), plot_.lr);
    return trainer.run(lrs.data(), steps, interrupted);
  }

  // Everything that the next step depends on.
  struct State {
    std::vector<T> w, state;
    std::vector<double> scalars;
    std::int64_t steps = 0;
    bool operator==(const State& o) const {
      return same_bits(w, o.w) && same_bits(state, o.state) && same_bits(scalars, o.scalars) &&
             steps == o.steps;
    }
  };
  State state() const { return {w, optimizer->state(), optimizer->scalars(), optimizer->steps}; }

 private:
  Plot plot_;

 public:
  DataSet<T> data;
  std::vector<T> w;
  std::shared_ptr<gradstack::Optimizer<T>> optimizer;
  gradstack::Trainer<T> trainer;

 private:
  int threads_;
};

// States before step 0, 1, ..., and the loss of each step, one step at a time.
template <class T> struct Trajectory {
  std::vector<typename Training<T>::State> states;
  std::vector<double> losses, epochs;

  bool operator==(const Trajectory& o) const {
    return states == o.states && same_bits(losses, o.losses) && same_bits(epochs, o.epochs);
  }
};

template <class T>
Trajectory<T> record(const Plot& p, Index steps, int threads,
                     const gradstack::Kernels<T>& kernels = best_kernels<T>()) {
  Training<T> training(p, threads, kernels);
  training.begin();
  Trajectory<T> result;
  result.states.push_back(training.state());
  for (Index i = 0; i < steps; ++i) {
    for (const double epoch : training.run(1)) result.epochs.push_back(epoch);
    result.states.push_back(training.state());
    result.losses.push_back(training.trainer.last_loss);
  }
  return result;
}

}  // namespace test

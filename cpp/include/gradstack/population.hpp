// The loss of many parameter vectors on one batch.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "gradstack/objective.hpp"
#include "gradstack/trainer.hpp"

namespace gradstack {

// The members of a population, produced where and when they are evaluated.
template <class T> class Members {
 public:
  virtual ~Members() = default;
  // Member m, written to `scratch` or lying elsewhere. Called by any worker, in any order;
  // `follows`: scratch holds what the call for m - 1 has left there (the other half of a mirrored
  // pair).
  virtual const T* member(Index m, bool follows, T* scratch) const = 0;
};

// Members shared out among workers, each with a plan of its own, as these get done; the loss of one
// is reduced in a fixed order. A user's cost or block is run by one worker.
template <class T> class Population {
 public:
  // The batch's data outlive the population.
  Population(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
             std::shared_ptr<const Cost<T>> cost, Batch batch, TargetSpec target);

  // Calls body(worker, error) on a team for `members` evaluations (threads 0: automatic).
  // `interrupted` is polled meanwhile; throws Interrupted when it returned true.
  template <class F>
  void run(Index members, int threads, const std::function<bool()>& interrupted, F&& body) {
    TeamError error;
    Poll poll(interrupted, error);
    run_team(prepare(members, threads), [&](const Worker& w) {
      body(Worker{w.id, w.count, w.team, &error, w.leader() ? &poll : nullptr}, error);
    });
    error.rethrow();
    if (error.stopped()) throw Interrupted();
  }
  // SPMD inside `run`; complete on return unless the team was stopped.
  void evaluate(const Members<T>& members, Index count, double* losses, const Worker& worker,
                TeamError& error);
  Index n_params() const { return graph_->n_params(); }

 private:
  int prepare(Index members, int threads);
  double loss(Objective<T>& objective, const T* w, bool same_inputs, const Worker& worker,
              TeamError& error) const;

  std::shared_ptr<const Graph> graph_;
  const Kernels<T>& kernels_;
  std::shared_ptr<const Cost<T>> cost_;
  Batch batch_;
  TargetSpec target_;
  bool serial_;
  Index chunk_;
  double unit_;                                            // average (or sum) loss per summed loss
  std::vector<std::unique_ptr<Objective<T>>> objectives_;  // per worker
  std::vector<std::vector<T>> scratch_;
  std::atomic<Index> next_{0};  // the first member not yet taken
};

extern template class Population<float>;
extern template class Population<double>;

}  // namespace gradstack

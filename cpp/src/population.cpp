#include "gradstack/population.hpp"

#include <algorithm>

#include "at.hpp"

namespace gradstack {
namespace {

constexpr Index kPopulationChunk = 256;  // samples that run through all layers at a time
constexpr Index kShare = 4;              // members that a worker takes at a time: whole pairs

bool calls_user_code(const Graph& graph) {
  return std::any_of(graph.stages().begin(), graph.stages().end(),
                     [](const Stage& s) { return s.kind == Kind::Opaque; });
}

}  // namespace

template <class T>
Population<T>::Population(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                          std::shared_ptr<const Cost<T>> cost, Batch batch, TargetSpec target)
    : graph_(std::move(graph)),
      kernels_(kernels),
      cost_(std::move(cost)),
      batch_(std::move(batch)),
      target_(target),
      serial_(!cost_->by_block() || calls_user_code(*graph_)),
      // A user's cost sees all samples at once.
      chunk_(serial_ ? batch_.count : std::min(batch_.count, kPopulationChunk)) {
  prepare(1, 1);
  unit_ = cost_->reduction() == Reduction::Mean ? 1.0 / total_weight(*cost_, batch_)
                                                : cost_->sum_factor(objectives_[0]->compared().d);
}

// The number of workers; makes their plans.
template <class T> int Population<T>::prepare(Index members, int threads) {
  const double flops = 2.0 * static_cast<double>(n_params() * batch_.count * members);
  const int workers =
      serial_
          ? 1
          : static_cast<int>(std::min(static_cast<Index>(threads_for(flops, threads)), members));
  PlanOptions options;
  options.batch = chunk_;
  // A Nearest output needs its chosen prototype, which only plans with gradients keep.
  options.gradients = graph_->stage(graph_->outputs()[0]).kind == Kind::Nearest;
  while (static_cast<int>(objectives_.size()) < workers) {
    objectives_.push_back(
        std::make_unique<Objective<T>>(graph_, kernels_, options, cost_, target_));
    scratch_.emplace_back(at(n_params()));
    if (batch_.count > chunk_) continue;
    objectives_.back()->select(batch_, 0, batch_.count, 1.0);  // once for all members
    objectives_.back()->load(batch_, Worker{}, false);
  }
  return std::max(1, workers);
}

template <class T>
double Population<T>::loss(Objective<T>& objective, const T* w, bool same_inputs,
                           const Worker& worker, TeamError& error) const {
  Run<T> run;
  run.w = w;
  run.error = &error;
  const Worker alone{0, 1, nullptr, nullptr, nullptr};
  double sum = 0;
  for (Index first = 0; first < batch_.count && !error.stopped(); first += chunk_) {
    if (worker.poll) worker.poll->tick();
    if (batch_.count > chunk_) {
      objective.select(batch_, first, std::min(chunk_, batch_.count - first), 1.0);
      objective.load(batch_, alone, false);
    }
    run.first_sample = first;
    run.same_inputs = same_inputs && batch_.count <= chunk_;
    objective.evaluate(run, alone);
    sum += objective.weighted_loss();
  }
  return sum * unit_;
}

template <class T>
void Population<T>::evaluate(const Members<T>& members, Index count, double* losses,
                             const Worker& worker, TeamError& error) {
  Objective<T>& objective = *objectives_[at(worker.id)];
  if (worker.leader()) next_ = 0;
  worker.sync();
  // Members do not depend on each other: who is not held up by other programs takes more of them.
  bool same_inputs = false;
  for (Index first; (first = next_.fetch_add(kShare)) < count;) {
    worker.alone().for_each(std::min(kShare, count - first), [&](Index i) {
      const T* w = members.member(first + i, i > 0, scratch_[at(worker.id)].data());
      losses[first + i] = loss(objective, w, same_inputs, worker, error);
      same_inputs = true;
    });
  }
  worker.sync();
}

template class Population<float>;
template class Population<double>;

}  // namespace gradstack

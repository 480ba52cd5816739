// Per-sample gradients without per-sample backward passes: for a linear block g_b = ds_b z_b^T, so
// norms, squares and products with a vector follow from ds and z (Goodfellow 2015, "Efficient
// per-example gradient computations").
#include <algorithm>
#include <cmath>

#include "../at.hpp"
#include "gradstack/calculus.hpp"

namespace gradstack {
namespace {

constexpr Index kPerSampleChunk = 128;

}  // namespace

template <class T>
PerSample<T>::PerSample(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                        std::shared_ptr<const Cost<T>> cost, TargetSpec target)
    : graph_(std::move(graph)), kernels_(kernels), cost_(std::move(cost)), target_(target) {}

template <class T> Objective<T>& PerSample<T>::objective(Index count) {
  const bool whole =
      !cost_->by_block() || std::any_of(graph_->stages().begin(), graph_->stages().end(),
                                        [](const Stage& s) { return s.kind == Kind::Opaque; });
  const Index like = capacity_for(kernels_.vector, count);
  const Index capacity = whole ? count : like < kLanes ? like : kPerSampleChunk;
  if (!objective_ || objective_->plan().options().batch != capacity) {
    PlanOptions options;
    options.batch = capacity;
    objective_ = std::make_unique<Objective<T>>(graph_, kernels_, options, cost_, target_);
  }
  return *objective_;
}

// Norms and squares add up over blocks only if no parameter belongs to two of them.
template <class T> bool PerSample<T>::additive() const {
  return !objective_->plan().shares_parameters() &&
         std::none_of(graph_->stages().begin(), graph_->stages().end(),
                      [](const Stage& s) { return s.kind == Kind::Nearest; });
}

// f(run, worker, objective, first, count) with the gradient of each sample's own loss at the
// output.
template <class T>
template <class F>
void PerSample<T>::each_chunk(const T* w, const Batch& batch, int threads, F&& f) {
  Objective<T>& objective = this->objective(batch.count);
  const Index chunk = objective.plan().options().batch;
  const double unit = cost_->reduction() == Reduction::Mean
                          ? 1.0
                          : cost_->sum_factor(objective.plan().variable(graph_->outputs()[0]).d);
  if (!additive()) scratch_.resize(at(std::min(chunk, batch.count) * graph_->n_params()));
  factors_.resize(at(batch.count));
  const double flops = 6.0 * static_cast<double>(graph_->n_params() * batch.count);
  const int workers = batch.count == 1 ? 1 : threads_for(flops, threads);
  TeamError error;
  Run<T> run;
  run.w = w;
  run.error = &error;
  run_team(workers, [&](const Worker& worker) {
    for (Index first = 0; first < batch.count; first += chunk) {
      const Index count = std::min(chunk, batch.count - first);
      if (worker.leader()) objective.select(batch, first, count, unit);
      worker.sync();
      Run<T> part = run;
      part.first_sample = first;
      objective.load(batch, worker, false);
      objective.evaluate(part, worker);
      f(part, worker, objective, first, count);
      worker.sync();
    }
  });
  error.rethrow();
}

template <class T>
void PerSample<T>::gradients(const T* w, const Batch& batch, T* rows, int threads) {
  each_chunk(w, batch, threads,
             [&](const Run<T>& run, const Worker& worker, Objective<T>& o, Index first, Index) {
               o.plan().per_sample_gradients(run, worker, rows + first * graph_->n_params(),
                                             graph_->n_params());
             });
}

// scratch_ = per-sample gradients of the chunk, where no closed form exists.
template <class T>
void PerSample<T>::gradient_rows(const Run<T>& run, const Worker& worker, Objective<T>& o,
                                 T* rows) {
  o.plan().per_sample_gradients(run, worker, rows, graph_->n_params());
  worker.sync();
}

template <class T>
void PerSample<T>::squared_norms(const Run<T>& run, const Worker& worker, Objective<T>& o,
                                 T* norms) {
  if (additive()) {
    o.plan().per_sample_squared_norms(run, worker, norms);
    return;
  }
  gradient_rows(run, worker, o, scratch_.data());
  const Index n = graph_->n_params();
  worker.for_each(o.plan().count(), [&](Index s) {
    const T* g = scratch_.data() + s * n;
    norms[s] = 0;
    for (Index i = 0; i < n; ++i) norms[s] += g[i] * g[i];
  });
  worker.sync();
}

template <class T> void PerSample<T>::norms(const T* w, const Batch& batch, T* norms, int threads) {
  each_chunk(w, batch, threads,
             [&](const Run<T>& run, const Worker& worker, Objective<T>& o, Index first, Index n) {
               squared_norms(run, worker, o, norms + first);
               if (worker.leader())
                 for (Index i = first; i < first + n; ++i) norms[i] = std::sqrt(norms[i]);
             });
}

template <class T>
void PerSample<T>::clipped(const T* w, const Batch& batch, double max_norm, T* dw, int threads) {
  std::fill(dw, dw + graph_->n_params(), T(0));
  each_chunk(w, batch, threads,
             [&](const Run<T>& run, const Worker& worker, Objective<T>& o, Index first, Index n) {
               T* factor = factors_.data() + first;
               squared_norms(run, worker, o, factor);
               if (worker.leader())
                 for (Index i = 0; i < n; ++i) {
                   const double norm = std::sqrt(static_cast<double>(factor[i]));
                   factor[i] = static_cast<T>(std::min(1.0, norm > 0 ? max_norm / norm : 1.0) /
                                              static_cast<double>(batch.count));
                 }
               worker.sync();
               o.weighted_backward(run, worker, factor, dw, first > 0);
             });
}

template <class T>
void PerSample<T>::fisher_product(const T* w, const Batch& batch, const T* v, T* product,
                                  int threads) {
  std::fill(product, product + graph_->n_params(), T(0));
  each_chunk(w, batch, threads,
             [&](const Run<T>& run, const Worker& worker, Objective<T>& o, Index first, Index n) {
               T* factor = factors_.data() + first;
               if (additive()) {
                 o.plan().per_sample_products(run, worker, v, factor);
               } else {
                 gradient_rows(run, worker, o, scratch_.data());
                 const Index p = graph_->n_params();
                 worker.for_each(n, [&](Index s) {
                   factor[s] = 0;
                   for (Index i = 0; i < p; ++i) factor[s] += scratch_[at(s * p + i)] * v[i];
                 });
                 worker.sync();
               }
               if (worker.leader())
                 for (Index i = 0; i < n; ++i) factor[i] /= static_cast<T>(batch.count);
               worker.sync();
               o.weighted_backward(run, worker, factor, product, first > 0);
             });
}

template <class T>
void PerSample<T>::fisher_diagonal(const T* w, const Batch& batch, T* diagonal, int threads) {
  const Index p = graph_->n_params();
  std::fill(diagonal, diagonal + p, T(0));
  each_chunk(w, batch, threads,
             [&](const Run<T>& run, const Worker& worker, Objective<T>& o, Index first, Index n) {
               if (additive()) {
                 o.plan().per_sample_squares(run, worker, diagonal, first > 0);
                 return;
               }
               gradient_rows(run, worker, o, scratch_.data());
               worker.for_each(p, [&](Index i) {
                 for (Index s = 0; s < n; ++s)
                   diagonal[i] += scratch_[at(s * p + i)] * scratch_[at(s * p + i)];
               });
             });
  for (Index i = 0; i < p; ++i) diagonal[i] /= static_cast<T>(batch.count);
}

template class PerSample<float>;
template class PerSample<double>;

}  // namespace gradstack

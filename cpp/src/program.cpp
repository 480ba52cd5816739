#include "gradstack/program.hpp"

#include <algorithm>

#include "at.hpp"
#include "rows.hpp"

namespace gradstack {
namespace {

constexpr Index kPredictChunk = 128;  // samples per plan when predicting: activations stay in cache
constexpr std::size_t kPoolSize = 64;

double flops_per_sample(const Graph& graph) { return 2.0 * static_cast<double>(graph.n_params()); }

template <class T> Run<T> make_run(const T* w, CallOptions options, TeamError* error) {
  Run<T> run;
  run.w = w;
  run.train = options.train;
  run.seed = options.seed;
  run.step = options.step;
  run.error = error;
  return run;
}

}  // namespace

template <class T>
Linearization<T>::Linearization(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                                const T* w, const std::vector<RowSource>& x, Index count,
                                bool tangents, CallOptions options)
    : plan_(graph, kernels,
            {.batch = count,
             .fuse = true,
             .gradients = true,
             .want_dx = true,
             .want_dw = true,
             .jet_order = tangents ? 1 : 0,
             .parameter_tangents = tangents,
             .frozen = {}}),
      options_(options),
      w_(w, w + graph->n_params()),
      workers_(
          threads_for(flops_per_sample(*graph) * static_cast<double>(count), options.threads)) {
  // A pullback belongs to its own point: it must not see what the caller does to x afterwards.
  for (std::size_t i = 0; i < x.size(); ++i) {
    x_.emplace_back(at(count * x[i].cols));
    for (Index j = 0; j < count; ++j) gather_row(x[i], j, x_[i].data() + j * x[i].cols);
    plan_.bind_input(i, x_[i].data(), x[i].cols);
  }
  run_ = make_run(w_.data(), options_, nullptr);
  call([&](const Worker& worker) { plan_.forward(run_, worker); });
}

template <class T> void Linearization<T>::call(const std::function<void(const Worker&)>& body) {
  TeamError error;
  run_.error = &error;
  run_team(workers_, [&](const Worker& worker) { body(worker); });
  error.rethrow();
}

template <class T> void Linearization<T>::output(std::size_t i, T* rows) {
  const Variable<T>& v = plan_.variable(graph().outputs()[i]);
  for (Index b = 0; b < plan_.blocks(); ++b) block_out(plan_, v.value, v.d, b, rows, v.d);
}

template <class T>
void Linearization<T>::vjp(const std::vector<const T*>& dys, const std::vector<T*>& dxs, T* dw) {
  run_.dw = dw;
  // Two outputs may be one variable: its gradients add.
  std::vector<const T*> seen;
  std::vector<char> again;
  for (int output : graph().outputs()) {
    const T* grad = plan_.variable(output).grad;
    again.push_back(std::find(seen.begin(), seen.end(), grad) != seen.end());
    seen.push_back(grad);
  }
  if (dw) std::fill(dw, dw + graph().n_params(), T(0));  // parameters that no output depends on
  call([&](const Worker& worker) {
    for (std::size_t i = 0; i < dys.size(); ++i) {
      Variable<T>& v = plan_.variable(graph().outputs()[i]);
      worker.for_each(plan_.blocks(), [&](Index b) {
        block_in(plan_, dys[i], v.d, b, v.grad, v.d, 1, again[i] != 0);
      });
    }
    worker.sync();
    plan_.backward(run_, worker);
    for (std::size_t i = 0; i < dxs.size(); ++i) {
      if (!dxs[i]) continue;
      const Variable<T>& v = plan_.variable(graph().inputs()[i]);
      worker.for_each(plan_.blocks(),
                      [&](Index b) { block_out(plan_, v.grad, v.d, b, dxs[i], v.d); });
    }
  });
}

template <class T>
void Linearization<T>::jvp(const std::vector<const T*>& dxs, const T* dw,
                           const std::vector<T*>& dys) {
  run_.tangent_w = dw;
  call([&](const Worker& worker) {
    for (std::size_t i = 0; i < dxs.size(); ++i) {
      Variable<T>& v = plan_.variable(graph().inputs()[i]);
      worker.for_each(plan_.blocks(),
                      [&](Index b) { block_in(plan_, dxs[i], v.d, b, v.tangent, v.d); });
    }
    worker.sync();
    plan_.push(run_, worker);
    for (std::size_t i = 0; i < dys.size(); ++i) {
      const Variable<T>& v = plan_.variable(graph().outputs()[i]);
      worker.for_each(plan_.blocks(),
                      [&](Index b) { block_out(plan_, v.tangent, v.d, b, dys[i], v.d); });
    }
  });
}

template <class T>
Program<T>::Program(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels)
    : graph_(std::move(graph)),
      kernels_(kernels),
      whole_batch_(std::any_of(graph_->stages().begin(), graph_->stages().end(),
                               [](const Stage& s) { return s.kind == Kind::Opaque; })) {}

template <class T> Program<T>::~Program() { delete single_.load(); }

template <class T> std::unique_ptr<Plan<T>> Program<T>::acquire(Index capacity) {
  if (capacity == 1) {
    if (Plan<T>* plan = single_.exchange(nullptr)) return std::unique_ptr<Plan<T>>(plan);
  } else {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& plan : pool_)
      if (plan->options().batch == capacity) {
        std::swap(plan, pool_.back());
        auto found = std::move(pool_.back());
        pool_.pop_back();
        return found;
      }
  }
  PlanOptions options;
  options.batch = capacity;
  options.gradients = false;
  return std::make_unique<Plan<T>>(graph_, kernels_, options);
}

template <class T> void Program<T>::release(std::unique_ptr<Plan<T>> plan) {
  if (plan->options().batch == 1) {
    plan.reset(single_.exchange(plan.release()));  // two calls at once: the last plan is kept
    return;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (pool_.size() < kPoolSize) pool_.push_back(std::move(plan));
}

// Outputs of samples [first, first + plan.count()) into the caller's rows.
template <class T>
void Program<T>::copy_outputs(const Plan<T>& plan, const Worker& worker, Index first,
                              T* const* outs) const {
  for (std::size_t i = 0; i < graph_->outputs().size(); ++i) {
    const Variable<T>& v = plan.variable(graph_->outputs()[i]);
    worker.for_each(plan.blocks(),
                    [&](Index b) { block_out(plan, v.value, v.d, b, outs[i] + first * v.d, v.d); });
  }
}

// bind(plan, first, count) binds the inputs of some samples.
template <class T>
template <class Bind>
void Program<T>::run(const T* w, Bind&& bind, Index count, T* const* outs, CallOptions options) {
  if (count == 0) return;
  const Index chunk = whole_batch_ ? count : std::min(count, kPredictChunk);
  const Index chunks = (count + chunk - 1) / chunk;
  // Plans of one capacity serve every batch size with blocks of the same size.
  const Index like = capacity_for(kernels_.vector, count);
  const Index capacity = whole_batch_ ? count : like < kLanes ? like : kPredictChunk;
  const int workers =
      count == 1
          ? 1
          : threads_for(flops_per_sample(*graph_) * static_cast<double>(count), options.threads);
  TeamError error;
  Run<T> run = make_run(w, options, &error);
  if (chunks == 1) {
    auto plan = acquire(capacity);
    bind(*plan, 0, count);
    run_team(workers, [&](const Worker& worker) {
      plan->forward(run, worker);
      copy_outputs(*plan, worker, 0, outs);
    });
    release(std::move(plan));
    return error.rethrow();
  }
  std::vector<std::unique_ptr<Plan<T>>> plans;
  for (int i = 0; i < workers; ++i) plans.push_back(acquire(capacity));
  run_team(workers, [&](const Worker& worker) {
    Plan<T>& plan = *plans[at(worker.id)];
    Run<T> part = run;
    worker.for_each(chunks, [&](Index i) {
      part.first_sample = i * chunk;
      bind(plan, i * chunk, std::min(chunk, count - i * chunk));
      plan.forward(part, worker.alone());
      copy_outputs(plan, worker.alone(), i * chunk, outs);
    });
  });
  for (auto& plan : plans) release(std::move(plan));
  error.rethrow();
}

template <class T>
void Program<T>::forward(const T* w, const std::vector<RowSource>& x, Index count,
                         const std::vector<T*>& outs, CallOptions options) {
  const auto bind = [&](Plan<T>& plan, Index first, Index n) { bind_rows(plan, x, first, n); };
  run(w, bind, count, outs.data(), options);
}

template <class T>
void Program<T>::forward(const T* w, const T* const* x, Index count, T* const* outs,
                         CallOptions options) {
  const auto bind = [&](Plan<T>& plan, Index first, Index n) {
    plan.set_count(n);
    for (std::size_t i = 0; i < graph_->inputs().size(); ++i) {
      const Index d = plan.variable(graph_->inputs()[i]).d;
      plan.bind_input(i, x[i] + first * d, d);
    }
  };
  run(w, bind, count, outs, options);
}

template <class T>
double Program<T>::value_and_grad(const T* w, const Batch& batch, TargetSpec target,
                                  std::shared_ptr<const Cost<T>> cost, T* dw, CallOptions options) {
  const int workers =
      batch.count == 1
          ? 1
          : threads_for(3 * flops_per_sample(*graph_) * static_cast<double>(batch.count),
                        options.threads);
  std::unique_ptr<BatchGradient<T>> gradient;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (gradient_ && gradient_cost_ == cost && gradient_batch_ == batch.count &&
        gradient_->workers() == workers && gradient_target_.dy == target.dy &&
        gradient_target_.labels == target.labels)
      gradient = std::move(gradient_);
  }
  if (!gradient)
    gradient = std::make_unique<BatchGradient<T>>(graph_, kernels_, cost, target, batch.count,
                                                  workers, std::vector<char>{});
  TeamError error;
  Run<T> run = make_run(w, options, &error);
  run.dw = dw;
  std::fill(dw, dw + graph_->n_params(), T(0));
  double loss = 0;
  run_team(gradient->team(), [&](const Worker& worker) {
    const auto result = gradient->run(run, batch, worker, false, true);
    if (worker.leader()) loss = result.loss;
  });
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    gradient_ = std::move(gradient);
    gradient_cost_ = std::move(cost);
    gradient_batch_ = batch.count;
    gradient_target_ = target;
  }
  error.rethrow();
  return loss;
}

template <class T>
double Program<T>::evaluate(const T* w, const Batch& data, TargetSpec target,
                            std::shared_ptr<const Cost<T>> cost, CallOptions options) {
  const bool whole = whole_batch_ || !cost->by_block();
  const Index chunk = whole ? data.count : std::min(data.count, kPredictChunk);
  const Index chunks = (data.count + chunk - 1) / chunk;
  const int workers = std::min(
      static_cast<int>(chunks),
      threads_for(flops_per_sample(*graph_) * static_cast<double>(data.count), options.threads));
  const double weight = total_weight(*cost, data);
  std::vector<std::unique_ptr<Objective<T>>> objectives;
  PlanOptions plan;
  plan.batch = chunk;
  // A Nearest output needs its chosen prototype, which only plans with gradients keep.
  plan.gradients = graph_->stage(graph_->outputs()[0]).kind == Kind::Nearest;
  for (int i = 0; i < workers; ++i)
    objectives.push_back(std::make_unique<Objective<T>>(graph_, kernels_, plan, cost, target));
  std::vector<double> losses(at(chunks));
  TeamError error;
  const Run<T> run = make_run(w, options, &error);
  run_team(workers, [&](const Worker& worker) {
    Objective<T>& objective = *objectives[at(worker.id)];
    worker.for_each(chunks, [&](Index i) {
      objective.select(data, i * chunk, std::min(chunk, data.count - i * chunk), 1.0);
      objective.load(data, worker.alone(), false);
      objective.evaluate(run, worker.alone());
      losses[at(i)] = objective.weighted_loss();
    });
  });
  error.rethrow();
  double sum = 0;
  for (double loss : losses) sum += loss;
  const Index d = objectives[0]->plan().variable(graph_->outputs()[0]).d;
  return cost->reduction() == Reduction::Mean ? sum / weight : sum * cost->sum_factor(d);
}

template class Linearization<float>;
template class Linearization<double>;
template class Program<float>;
template class Program<double>;

}  // namespace gradstack

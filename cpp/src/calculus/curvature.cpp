#include <algorithm>
#include <stdexcept>

#include "gradstack/calculus.hpp"

namespace gradstack {
namespace {

constexpr Index kCurvatureChunk = 256;

}  // namespace

template <class T>
Curvature<T>::Curvature(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                        std::shared_ptr<const Cost<T>> cost, TargetSpec target, Kind kind)
    : graph_(std::move(graph)),
      kernels_(kernels),
      cost_(std::move(cost)),
      target_(target),
      kind_(kind) {}

// Hessian: H v is the gradient of <dC/dw, v>, the derivative of C along v; its adjoint starts with
// dC/dybar for the tangent of ybar and (d2C/dybar2) (J v) for ybar itself.
// Gauss-Newton: J^T (d2C/dybar2) J v.
template <class T>
void Curvature<T>::product(const T* w, const Batch& batch, const T* v, T* product, int threads) {
  const bool whole = !cost_->by_block() ||
                     std::any_of(graph_->stages().begin(), graph_->stages().end(),
                                 [](const Stage& s) { return s.kind == gradstack::Kind::Opaque; });
  const Index chunk = whole ? batch.count : std::min(batch.count, kCurvatureChunk);
  if (!objective_ || objective_->plan().options().batch != chunk) {
    PlanOptions options;
    options.batch = chunk;
    options.jet_order = 1;
    options.input_tangents = false;
    options.parameter_tangents = true;
    options.jet_gradients = kind_ == Kind::Hessian;
    objective_ = std::make_unique<Objective<T>>(graph_, kernels_, options, cost_, target_);
  }
  Objective<T>& o = *objective_;
  const double unit = cost_->reduction() == Reduction::Mean
                          ? 1.0 / total_weight(*cost_, batch)
                          : cost_->sum_factor(o.plan().variable(graph_->outputs()[0]).d);
  std::fill(product, product + graph_->n_params(), T(0));
  const double flops = 12.0 * static_cast<double>(graph_->n_params() * batch.count);
  const int workers = batch.count == 1 ? 1 : threads_for(flops, threads);
  TeamError error;
  Run<T> run;
  run.w = w;
  run.dw = product;
  run.tangent_w = v;
  run.error = &error;
  run_team(workers, [&](const Worker& worker) {
    for (Index first = 0; first < batch.count; first += chunk) {
      if (worker.leader()) o.select(batch, first, std::min(chunk, batch.count - first), unit);
      worker.sync();
      Run<T> part = run;
      part.first_sample = first;
      part.accumulate = first > 0;
      o.load(batch, worker, false);
      o.plan().forward(part, worker);
      o.plan().push(part, worker);
      o.cost_curvature(part, worker, kind_ == Kind::Hessian);
      if (kind_ == Kind::Hessian)
        o.plan().backward_jet(part, worker);
      else
        o.plan().backward(part, worker);
    }
  });
  error.rethrow();
}

template class Curvature<float>;
template class Curvature<double>;

}  // namespace gradstack

#include <algorithm>

#include "../rows.hpp"
#include "gradstack/calculus.hpp"

namespace gradstack {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

bool sees_whole_batch(const Graph& graph) {
  return std::any_of(graph.stages().begin(), graph.stages().end(),
                     [](const Stage& s) { return s.kind == Kind::Opaque; });
}

}  // namespace

template <class T>
Jacobian<T>::Jacobian(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels, int wrt,
                      std::size_t output)
    : graph_(std::move(graph)),
      kernels_(kernels),
      wrt_(wrt),
      output_(graph_->outputs()[output]),
      in_(wrt == kParameters ? graph_->n_params() : size_of(graph_->stage(wrt).shape)),
      out_(size_of(graph_->stage(output_).shape)),
      // A direction costs about as much forward as backward: take the fewer.
      forward_mode_(wrt != kParameters && graph_->stage(wrt).kind == Kind::Input && in_ < out_ &&
                    !sees_whole_batch(*graph_)) {}

template <class T> Jacobian<T>::~Jacobian() = default;

template <class T>
std::vector<std::unique_ptr<Plan<T>>>& Jacobian<T>::plans(Index capacity, int workers) {
  auto& plans = capacity == 1 ? single_ : blocks_;
  if (!plans.empty() && plans[0]->options().batch != capacity) plans.clear();
  while (static_cast<int>(plans.size()) < workers) {
    PlanOptions options;
    options.batch = capacity;
    if (forward_mode_) {
      options.gradients = false;
      options.jet_order = 1;
    } else {
      options.want_dw = wrt_ == kParameters;
      options.want_stage = wrt_;
      // A fused pair keeps no separate gradient of its inner variable.
      options.fuse = wrt_ == kParameters || graph_->stage(wrt_).kind == Kind::Input;
    }
    plans.push_back(std::make_unique<Plan<T>>(graph_, kernels_, options));
  }
  return plans;
}

template <class T>
void Jacobian<T>::evaluate(const T* w, const std::vector<RowSource>& x, Index count, T* jacobian,
                           int threads) {
  if (count == 0) return;
  const Index size = sees_whole_batch(*graph_) ? count : std::min(count, kLanes);
  const Index chunks = (count + size - 1) / size;
  const Index capacity = size == 1 ? 1 : std::max(size, kLanes);
  const double flops =
      2.0 * static_cast<double>(graph_->n_params() * count * (1 + std::min(in_, out_)));
  const int workers =
      static_cast<int>(std::min<Index>(chunks, count == 1 ? 1 : threads_for(flops, threads)));
  auto& team = plans(capacity, workers);
  TeamError error;
  Run<T> run;
  run.w = w;
  run.error = &error;
  run_team(workers, [&](const Worker& worker) {
    worker.for_each(chunks, [&](Index i) {
      chunk(*team[at(worker.id)], run, x, i * size, std::min(size, count - i * size),
            jacobian + i * size * out_ * in_);
    });
  });
  error.rethrow();
}

template <class T>
void Jacobian<T>::chunk(Plan<T>& plan, Run<T> run, const std::vector<RowSource>& x, Index first,
                        Index count, T* to) {
  bind_rows(plan, x, first, count);
  plan.forward(run, Worker{});
  if (forward_mode_)
    forward_mode(plan, run, to);
  else
    reverse_mode(plan, run, to);
}

template <class T> void Jacobian<T>::forward_mode(Plan<T>& plan, const Run<T>& run, T* to) {
  const Index lanes = plan.lanes();
  const T* tangent = plan.variable(output_).tangent;
  for (int input : graph_->inputs()) {
    const Variable<T>& v = plan.variable(input);
    for (Index b = 0; b < plan.blocks(); ++b) block_in<T>(plan, nullptr, v.d, b, v.tangent, 0);
  }
  for (Index j = 0; j < in_; ++j) {
    for (Index b = 0; b < plan.blocks(); ++b)
      block_unit(plan, j, in_, b, plan.variable(wrt_).tangent);
    plan.push(run, Worker{});
    for (Index s = 0; s < plan.count(); ++s)
      for (Index i = 0; i < out_; ++i)
        to[(s * out_ + i) * in_ + j] =
            tangent ? tangent[(s / lanes * out_ + i) * lanes + s % lanes] : T(0);
  }
}

template <class T> void Jacobian<T>::reverse_mode(Plan<T>& plan, const Run<T>& run, T* to) {
  for (int output : graph_->outputs()) {
    const Variable<T>& v = plan.variable(output);
    for (Index b = 0; b < plan.blocks(); ++b) block_in<T>(plan, nullptr, v.d, b, v.grad, 0);
  }
  const Variable<T>& y = plan.variable(output_);
  for (Index i = 0; i < out_; ++i) {
    for (Index b = 0; b < plan.blocks(); ++b) block_unit(plan, i, out_, b, y.grad);
    if (wrt_ == kParameters) {
      plan.per_sample_gradients(run, Worker{}, to + i * in_, out_ * in_);
      continue;
    }
    plan.backward(run, Worker{});
    const Variable<T>& x = plan.variable(wrt_);
    for (Index b = 0; b < plan.blocks(); ++b)
      block_out(plan, x.grad, in_, b, to + i * in_, out_ * in_);
  }
}

template class Jacobian<float>;
template class Jacobian<double>;

}  // namespace gradstack

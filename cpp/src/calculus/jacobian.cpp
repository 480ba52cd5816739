#include <algorithm>
#include <cmath>

#include "../at.hpp"
#include "../rows.hpp"
#include "gradstack/calculus.hpp"

namespace gradstack {
namespace {

bool sees_whole_batch(const Graph& graph) {
  return std::any_of(graph.stages().begin(), graph.stages().end(),
                     [](const Stage& s) { return s.kind == Kind::Opaque; });
}

// Fewer outputs are better pulled back as blocks of samples.
constexpr Index kFewOutputs = 4;

int base(const Graph& graph, int id) {
  while (graph.stage(id).kind == Kind::Reshape) id = graph.stage(id).in[0];
  return id;
}

// The dense Linear that is the only consumer of a variable, or -1.
int sole_linear(const Graph& graph, int variable) {
  variable = base(graph, variable);
  for (int output : graph.outputs())
    if (base(graph, output) == variable) return -1;
  int consumer = -1;
  for (int id = 0; id < static_cast<int>(graph.stages().size()); ++id) {
    const Stage& stage = graph.stage(id);
    if (stage.kind == Kind::Reshape) continue;
    for (int in : stage.in) {
      if (base(graph, in) != variable) continue;
      if (consumer >= 0 || stage.kind != Kind::Linear || stage.mask) return -1;
      consumer = id;
    }
  }
  return consumer;
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
                    !sees_whole_batch(*graph_)) {
  if (!forward_mode_ && wrt_ != kParameters && out_ >= kFewOutputs)
    linear_ = sole_linear(*graph_, wrt_);
}

template <class T> Jacobian<T>::~Jacobian() = default;

template <class T>
std::vector<typename Jacobian<T>::Desk>& Jacobian<T>::desks(Index capacity, int workers) {
  auto& desks = capacity == 1 ? single_ : blocks_;
  if (!desks.empty() && desks[0].plan->options().batch != capacity) desks.clear();
  while (static_cast<int>(desks.size()) < workers) {
    Desk desk;
    PlanOptions options;
    options.batch = capacity;
    if (forward_mode_) {
      options.gradients = false;
      options.jet_order = 1;
    } else if (linear_ >= 0) {
      const Index inner = size_of(graph_->stage(linear_).shape);
      options.want_dw = false;
      options.want_stage = linear_;
      desk.above.resize(at(capacity * out_ * inner));
      desk.active.resize(desk.above.size());
      desk.size.resize(at(inner));
      desk.rows.resize(at(capacity * inner));
      desk.n_active.resize(at(capacity));
    } else {
      options.want_dw = wrt_ == kParameters;
      options.want_stage = wrt_;
      // A fused pair keeps no separate gradient of its inner variable.
      options.fuse = wrt_ == kParameters || graph_->stage(wrt_).kind == Kind::Input;
    }
    desk.plan = std::make_unique<Plan<T>>(graph_, kernels_, options);
    desks.push_back(std::move(desk));
  }
  return desks;
}

template <class T>
void Jacobian<T>::evaluate(const T* w, const std::vector<RowSource>& x, Index count, T* jacobian,
                           int threads) {
  if (count == 0) return;
  const Index size = sees_whole_batch(*graph_) ? count : std::min(count, kLanes);
  const Index chunks = (count + size - 1) / size;
  const Index capacity = std::max(size, capacity_for(kernels_.vector, size));
  const double flops =
      2.0 * static_cast<double>(graph_->n_params() * count * (1 + std::min(in_, out_)));
  const int workers =
      static_cast<int>(std::min<Index>(chunks, count == 1 ? 1 : threads_for(flops, threads)));
  auto& team = desks(capacity, workers);
  TeamError error;
  Run<T> run;
  run.w = w;
  run.error = &error;
  run_team(workers, [&](const Worker& worker) {
    worker.for_each(chunks, [&](Index i) {
      chunk(team[at(worker.id)], run, x, i * size, std::min(size, count - i * size),
            jacobian + i * size * out_ * in_);
    });
  });
  error.rethrow();
}

template <class T>
void Jacobian<T>::chunk(Desk& desk, Run<T> run, const std::vector<RowSource>& x, Index first,
                        Index count, T* to) {
  Plan<T>& plan = *desk.plan;
  bind_rows(plan, x, first, count);
  plan.forward(run, Worker{});
  if (forward_mode_)
    forward_mode(plan, run, to);
  else
    reverse_mode(desk, run, to);
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

template <class T> void Jacobian<T>::reverse_mode(Desk& desk, const Run<T>& run, T* to) {
  Plan<T>& plan = *desk.plan;
  const Variable<T>& y = plan.variable(output_);
  for (Index i = 0; i < out_; ++i) {
    // Backward adds to the gradient of an output that another one depends on.
    for (int output : graph_->outputs()) {
      const Variable<T>& v = plan.variable(output);
      if (v.grad == y.grad) continue;
      for (Index b = 0; b < plan.blocks(); ++b) block_in<T>(plan, nullptr, v.d, b, v.grad, 0);
    }
    for (Index b = 0; b < plan.blocks(); ++b) block_unit(plan, i, out_, b, y.grad);
    if (wrt_ == kParameters) {
      plan.per_sample_gradients(run, Worker{}, to + i * in_, out_ * in_);
      continue;
    }
    plan.backward(run, Worker{});
    const Variable<T>& x = plan.variable(linear_ >= 0 ? linear_ : wrt_);
    T* rows = linear_ >= 0 ? desk.above.data() : to;
    for (Index b = 0; b < plan.blocks(); ++b)
      block_out(plan, x.grad, x.d, b, rows + i * x.d, out_ * x.d);
  }
  if (linear_ >= 0) through_linear(desk, run.w, plan.count(), to);
}

// J = J_s W sample by sample, with `above` = J_s = d out / d s: W's rows are read as they lie and J
// is written as it will lie. Where h' is zero (half of the units of a ReLU layer) so is the column
// of J_s, and its row of W is left out.
template <class T> void Jacobian<T>::through_linear(Desk& desk, const T* w, Index samples, T* to) {
  const Stage& stage = graph_->stage(linear_);
  const Index inner = size_of(stage.shape);
  w += graph_->parameter(stage.weight_id).offset;
  for (Index s = 0; s < samples; ++s) find_active(desk, s, inner);
  // Panels of W that stay in the L1 cache for all samples.
  constexpr Index kCache = 24 << 10;
  const Index fit = kCache / (inner * static_cast<Index>(sizeof(T))) / kPanel * kPanel;
  const Index columns = std::max(fit, kPanel);
  for (Index j = 0; j < in_; j += columns) {
    for (Index s = 0; s < samples; ++s) {
      const Index n = desk.n_active[at(s)];
      const bool all = n == inner;
      kernels_.gemm({.m = out_,
                     .n = std::min(columns, in_ - j),
                     .k = n,
                     .a = (all ? desk.above : desk.active).data() + s * out_ * inner,
                     .a_row = n,
                     .b = w + j,
                     .ldb = all ? in_ : 0,
                     .b_rows = all ? nullptr : desk.rows.data() + s * inner,
                     .c = to + s * out_ * in_ + j,
                     .ldc = in_});
    }
  }
}

// The columns of J_s that are not zero, and their rows of W.
template <class T> void Jacobian<T>::find_active(Desk& desk, Index s, Index inner) {
  const T* above = desk.above.data() + s * out_ * inner;
  T* size = desk.size.data();
  std::fill_n(size, inner, T(0));
  for (Index i = 0; i < out_; ++i) {
    const T* row = above + i * inner;
#pragma omp simd
    for (Index k = 0; k < inner; ++k) size[k] += std::abs(row[k]);
  }
  Index* rows = desk.rows.data() + s * inner;
  Index n = 0;
  for (Index k = 0; k < inner; ++k) {
    rows[n] = k;
    n += size[k] != T(0);
  }
  desk.n_active[at(s)] = n;
  if (n == inner) return;
  T* active = desk.active.data() + s * out_ * inner;
  for (Index i = 0; i < out_; ++i)
    for (Index k = 0; k < n; ++k) active[i * n + k] = above[i * inner + rows[k]];
  for (Index k = 0; k < n; ++k) rows[k] *= in_;
}

template class Jacobian<float>;
template class Jacobian<double>;

}  // namespace gradstack

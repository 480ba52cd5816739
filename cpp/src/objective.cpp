#include "gradstack/objective.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "at.hpp"

namespace gradstack {
namespace {

// Sum of weight * loss; a sample without weight is left out whatever its loss.
template <class T> double weighted_sum(Index n, const T* weight, const T* loss) {
  const auto term = [&](Index i) {
    return weight[i] != T(0) ? static_cast<double>(weight[i]) * static_cast<double>(loss[i]) : 0.0;
  };
  double sum[4] = {};  // of every fourth sample: an addition waits for the one before
  Index i = 0;
  for (; i + 4 <= n; i += 4)
    for (Index k = 0; k < 4; ++k) sum[k] += term(i + k);
  for (; i < n; ++i) sum[0] += term(i);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

}  // namespace

template <class T> double total_weight(const Cost<T>& cost, const Batch& batch) {
  if (!batch.weight.data && !cost.weighs_classes()) return static_cast<double>(batch.count);
  double total = 0;
  for (Index i = 0; i < batch.count; ++i) {
    T weight = 1;
    if (batch.weight.data) gather_row(batch.weight, batch.row(i), &weight);
    const double n = batch.labels ? cost.normaliser(label_at(batch.y, batch.row(i))) : 1.0;
    total += static_cast<double>(weight) * n;
  }
  return total;
}

template double total_weight(const Cost<float>&, const Batch&);
template double total_weight(const Cost<double>&, const Batch&);

template <class T>
Objective<T>::Objective(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                        PlanOptions options, std::shared_ptr<const Cost<T>> cost, TargetSpec target)
    : cost_(std::move(cost)),
      target_(target),
      plan_(std::move(graph), kernels, std::move(options)),
      output_(plan_.graph().outputs()[0]),
      direct_(plan_.graph().inputs().size(), 0),
      scattered_(plan_.graph().inputs().size(), nullptr) {
  if (plan_.graph().outputs().size() != 1)
    throw std::invalid_argument("cost: a cost compares one output with y, the graph has " +
                                std::to_string(plan_.graph().outputs().size()));
  if (plan_.chosen_prototype() && !cost_->by_block())
    throw std::invalid_argument(
        "cost: the nearest-neighbour model learns with a cost of the table");
  if (plan_.options().gradients) cost_->require_gradient();
  const Index samples = plan_.blocks() * plan_.lanes();
  targets_ = arena_.allocate<T>(samples * target_.dy);
  target_rows_ = arena_.allocate<T>(samples * target_.dy);
  weights_ = arena_.allocate<T>(samples);
  scales_ = arena_.allocate<T>(samples);
  losses_ = arena_.allocate<T>(samples);
  labels_ = arena_.allocate<std::int64_t>(samples);
  if (!cost_->by_block()) {
    rows_ybar_ = arena_.allocate<T>(samples * plan_.variable(output_).d);
    rows_grad_ = arena_.allocate<T>(samples * plan_.variable(output_).d);
    rows_v_ = arena_.allocate<T>(samples * plan_.variable(output_).d);
  }
  block_loss_.resize(at(plan_.blocks()));
  block_bad_row_.resize(at(plan_.blocks()));
  for (std::size_t i = 0; i < direct_.size(); ++i) plan_.input_rows(i);
}

template <class T>
void Objective<T>::select(const Batch& batch, Index first, Index count, double scale) {
  plan_.set_count(count);
  first_ = first;
  scale_ = scale;
  for (std::size_t i = 0; i < direct_.size(); ++i) {
    const RowSource& x = batch.x[i];
    const bool native = is_native<T>(x), together = !batch.index || count == 1;
    direct_[i] = native && together;
    scattered_[i] = native && !together && plan_.lanes() > 1 ? plan_.bind_scattered(i) : nullptr;
    if (direct_[i])
      plan_.bind_input(i, row_of<T>(x, batch.row(first)),
                       x.row_stride / static_cast<Index>(sizeof(T)));
    else if (!scattered_[i])
      plan_.bind_input(i, plan_.input_rows(i), x.cols);
  }
}

template <class T>
void Objective<T>::load(const Batch& batch, const Worker& worker, bool check_finite) {
  worker.for_each(plan_.blocks(), [&](Index block) { load_block(batch, block, check_finite); });
}

template <class T>
void Objective<T>::load_block(const Batch& batch, Index block, bool check_finite) {
  const Index lanes = plan_.lanes(), begin = block * lanes, n = plan_.block_samples(block);
  block_bad_row_[at(block)] = -1;
  const auto check = [&](const RowSource& source, Index row) {
    if (check_finite && first_non_finite<T>(source, row, row + 1) >= 0)
      block_bad_row_[at(block)] = row;
  };
  for (Index i = begin; i < begin + n; ++i) {
    const Index row = batch.row(first_ + i);
    for (std::size_t k = 0; k < direct_.size(); ++k) {
      check(batch.x[k], row);
      if (scattered_[k])
        scattered_[k][i] = row_of<T>(batch.x[k], row);
      else if (!direct_[k])
        gather_row(batch.x[k], row, plan_.input_rows(k) + i * batch.x[k].cols);
    }
    if (batch.y.data && !batch.labels) check(batch.y, row);
    T weight = 1;
    if (batch.weight.data) gather_row(batch.weight, row, &weight);
    weights_[i] = weight;
    scales_[i] = static_cast<T>(static_cast<double>(weight) * scale_);
  }
  // Padding lanes: no weight, so neither loss nor gradient.
  for (Index i = begin + n; i < begin + lanes; ++i) weights_[i] = scales_[i] = 0;
  if (batch.y.data) load_targets(batch, block);
}

template <class T> void Objective<T>::load_targets(const Batch& batch, Index block) {
  const Index lanes = plan_.lanes(), begin = block * lanes, n = plan_.block_samples(block);
  if (target_.labels) {
    for (Index i = begin; i < begin + n; ++i) labels_[i] = label_at(batch.y, batch.row(first_ + i));
    std::fill(labels_ + begin + n, labels_ + begin + lanes, labels_[begin + n - 1]);
    return;
  }
  // A user's cost wants the rows themselves, one after the other.
  const bool in_place = is_native<T>(batch.y) && cost_->by_block();
  const T* rows[kLanes];
  for (Index i = 0; i < n; ++i) {
    const Index row = batch.row(first_ + begin + i);
    T* copy = target_rows_ + (begin + i) * target_.dy;
    if (!in_place) gather_row(batch.y, row, copy);
    rows[i] = in_place ? row_of<T>(batch.y, row) : copy;
  }
  T* to = targets_ + begin * target_.dy;
  if (lanes > 1)
    plan_.kernels().gather_rows(n, target_.dy, lanes, rows, to, nullptr);
  else
    std::copy_n(rows[0], target_.dy, to);
}

template <class T> Variable<T>& Objective<T>::compared() {
  Variable<T>* prototype = plan_.chosen_prototype();
  return prototype ? *prototype : plan_.variable(output_);
}

template <class T> CostArgs<T> Objective<T>::cost_args(Index block, const Variable<T>& ybar) {
  const Index begin = block * plan_.lanes();
  CostArgs<T> args;
  args.d = ybar.d;
  args.lanes = plan_.lanes();
  args.ybar = ybar.value + begin * ybar.d;
  if (plan_.chosen_prototype()) {  // vector quantisation: the target is the input itself
    args.dy = ybar.d;
    args.y = plan_.variable(plan_.graph().stage(output_).in[0]).value + begin * ybar.d;
  } else if (target_.labels) {
    args.label = labels_ + begin;
  } else if (target_.dy > 0) {
    args.dy = target_.dy;
    args.y = targets_ + begin * target_.dy;
  }
  args.scale = scales_ + begin;
  return args;
}

template <class T> void Objective<T>::evaluate(const Run<T>& run, const Worker& worker) {
  plan_.forward(run, worker);
  cost(run, worker);
}

template <class T> void Objective<T>::cost(const Run<T>& run, const Worker& worker) {
  if (!cost_->by_block()) {
    if (worker.leader()) evaluate_rows(run);
    worker.sync();
  }
  const Variable<T>& ybar = compared();
  const Index lanes = plan_.lanes();
  worker.for_each(plan_.blocks(), [&](Index block) {
    const Index begin = block * lanes;
    if (cost_->by_block()) {
      CostArgs<T> args = cost_args(block, ybar);
      args.loss = losses_ + begin;
      args.grad = ybar.grad ? ybar.grad + begin * ybar.d : nullptr;
      cost_->block(plan_.kernels(), args);
    }
    block_loss_[at(block)] = weighted_sum(lanes, weights_ + begin, losses_ + begin);
  });
  worker.sync();
}

template <class T>
void Objective<T>::weighted_backward(const Run<T>& run, const Worker& worker, const T* factor,
                                     T* dw, bool accumulate) {
  const Index count = plan_.count();
  worker.for_each(plan_.blocks(), [&](Index block) {
    for (Index i = block * plan_.lanes(); i < std::min(count, (block + 1) * plan_.lanes()); ++i)
      scales_[i] *= factor[i];
  });
  worker.sync();
  cost(run, worker);
  Run<T> weighted = run;
  weighted.dw = dw;
  weighted.accumulate = accumulate;
  plan_.backward(weighted, worker);
}

template <class T>
void Objective<T>::cost_curvature(const Run<T>& run, const Worker& worker, bool gradient) {
  const Variable<T>& ybar = plan_.variable(output_);
  if (!cost_->by_block() && worker.leader()) curvature_rows(run, gradient);
  worker.for_each(cost_->by_block() ? plan_.blocks() : 0, [&](Index block) {
    const Index from = block * plan_.lanes() * ybar.d;
    CostArgs<T> args = cost_args(block, ybar);
    args.grad = gradient ? ybar.grad_tangent + from : nullptr;
    args.v = ybar.tangent + from;
    args.hv = ybar.grad + from;
    cost_->block(plan_.kernels(), args);
  });
  worker.sync();
}

template <class T> void Objective<T>::rows_of(const T* blocks, Index d, T* rows) const {
  const Index lanes = plan_.lanes();
  for (Index b = 0; b < plan_.blocks(); ++b)
    plan_.kernels().block_to_rows(plan_.block_samples(b), d, lanes, blocks + b * lanes * d,
                                  rows + b * lanes * d, d, false);
}

// Rows times the samples' scales; zero in the padding.
template <class T> void Objective<T>::scaled_blocks_of(const T* rows, Index d, T* blocks) const {
  const Index lanes = plan_.lanes();
  for (Index i = 0; i < plan_.blocks() * lanes; ++i)
    for (Index j = 0; j < d; ++j)
      blocks[(i / lanes * d + j) * lanes + i % lanes] =
          i < plan_.count() ? rows[i * d + j] * scales_[i] : T(0);
}

// A user's cost sees the rows of the whole batch at once.
template <class T> void Objective<T>::evaluate_rows(const Run<T>& run) {
  if (run.error && run.error->stopped()) return;
  const Variable<T>& ybar = plan_.variable(output_);
  try {
    rows_of(ybar.value, ybar.d, rows_ybar_);
    cost_->rows(plan_.count(), ybar.d, rows_ybar_, target_.dy, target_rows_,
                target_.labels ? labels_ : nullptr, losses_, ybar.grad ? rows_grad_ : nullptr);
    if (ybar.grad) scaled_blocks_of(rows_grad_, ybar.d, ybar.grad);
  } catch (...) {
    if (!run.error) throw;
    run.error->capture();
  }
}

template <class T> void Objective<T>::curvature_rows(const Run<T>& run, bool gradient) {
  if (run.error->stopped()) return;
  const Variable<T>& ybar = plan_.variable(output_);
  const std::int64_t* labels = target_.labels ? labels_ : nullptr;
  try {
    rows_of(ybar.value, ybar.d, rows_ybar_);
    if (gradient) {
      cost_->rows(plan_.count(), ybar.d, rows_ybar_, target_.dy, target_rows_, labels, losses_,
                  rows_grad_);
      scaled_blocks_of(rows_grad_, ybar.d, ybar.grad_tangent);
    }
    rows_of(ybar.tangent, ybar.d, rows_v_);
    cost_->curvature_rows(plan_.count(), ybar.d, rows_ybar_, target_.dy, target_rows_, labels,
                          rows_v_, rows_grad_);
    scaled_blocks_of(rows_grad_, ybar.d, ybar.grad);
  } catch (...) {
    run.error->capture();
  }
}

template <class T> double Objective<T>::weighted_loss() const {
  double sum = 0;
  for (Index b = 0; b < plan_.blocks(); ++b) sum += block_loss_[at(b)];
  return sum;
}

template <class T> Index Objective<T>::bad_row() const {
  for (Index b = 0; b < plan_.blocks(); ++b)
    if (block_bad_row_[at(b)] >= 0) return block_bad_row_[at(b)];
  return -1;
}

template class Objective<float>;
template class Objective<double>;

}  // namespace gradstack

#include "gradstack/cost.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "gradstack/arena.hpp"
#include "gradstack/costs.hpp"

namespace gradstack {

template <class T>
TableCost<T>::TableCost(const std::string& name, std::vector<double> params,
                        std::vector<T> class_weight, Reduction reduction)
    : name_(name),
      id_(find_cost(name.c_str())),
      params_(std::move(params)),
      class_weight_(std::move(class_weight)) {
  if (id_ < 0) throw std::invalid_argument("cost: '" + name + "' is not in the cost table");
  const CostInfo& info = cost_info(id_);
  if (static_cast<int>(params_.size()) != info.n_params)
    throw std::invalid_argument("[" + name + "] takes " + std::to_string(info.n_params) +
                                " parameters, got " + std::to_string(params_.size()));
  params_.resize(kMaxCostParams, 0.0);
  if (!class_weight_.empty() && !info.class_weights)
    throw std::invalid_argument("[" + name + "] weight: this cost takes no class weights");
  for (const T w : class_weight_)
    if (!(w >= 0) || !std::isfinite(w))
      throw std::invalid_argument("[" + name + "] weight: class weights must be finite and >= 0");
  this->reduction_ = reduction;
}

template <class T> void TableCost<T>::check_target(Index d, Index dy, bool labels) const {
  const CostInfo& info = cost_info(id_);
  const std::string where = "[" + name_ + "] ";
  if (!class_weight_.empty() && static_cast<Index>(class_weight_.size()) != d)
    throw std::invalid_argument(where + "weight has " + std::to_string(class_weight_.size()) +
                                " classes, ybar has " + std::to_string(d));
  const bool takes_labels =
      info.target == TargetKind::kLabels || info.target == TargetKind::kLabelsOrDense;
  if (labels) {
    if (!takes_labels)
      throw std::invalid_argument(where + "y holds labels, expected dense targets");
    return;
  }
  if (dy == 0) {
    if (info.target != TargetKind::kNone) throw std::invalid_argument(where + "y is missing");
    return;
  }
  if (info.target == TargetKind::kLabels)
    throw std::invalid_argument(where + "y is dense, expected integer labels of shape (B,)");
  const Index expected = target_width(info, d);
  if (expected < 0)
    throw std::invalid_argument(where + "ybar has " + std::to_string(d) +
                                " features per sample, expected an even number");
  if (dy != expected)
    throw std::invalid_argument(where + "ybar has " + std::to_string(d) +
                                " features per sample, y has " + std::to_string(dy) +
                                ", expected " + std::to_string(expected));
}

template <class T> double TableCost<T>::normaliser(std::int64_t label) const {
  return class_weight_.empty()
             ? 1.0
             : static_cast<double>(class_weight_[static_cast<std::size_t>(label)]);
}

template <class T> void TableCost<T>::require_gradient() const {
  if (!cost_info(id_).has_gradient)
    throw std::invalid_argument("[" + name_ +
                                "] has no gradient: minimise it with gs.blackbox, or train on a "
                                "smooth surrogate such as CrossEntropyLoss");
}

// Element-wise costs average over their components: d / ybar_per_y of them.
template <class T> double TableCost<T>::sum_factor(Index d) const {
  const CostInfo& info = cost_info(id_);
  return info.mean ? static_cast<double>(d / info.ybar_per_y) : 1.0;
}

template <class T> void TableCost<T>::block(const Kernels<T>& kernels, CostArgs<T> args) const {
  args.p = params_.data();
  args.weight = class_weight_.empty() ? nullptr : class_weight_.data();
  kernels.cost[id_](args);
}

template <class T>
void evaluate_rows(const Cost<T>& cost, const Kernels<T>& kernels, const CostRows<T>& r) {
  if (r.grad || r.hv) cost.require_gradient();
  if (r.count == 0) return;
  if (!cost.by_block()) {
    if (r.loss || r.grad) cost.rows(r.count, r.d, r.ybar, r.dy, r.y, r.labels, r.loss, r.grad);
    if (r.hv) cost.curvature_rows(r.count, r.d, r.ybar, r.dy, r.y, r.labels, r.v, r.hv);
    for (T* rows : {r.grad, r.hv})
      for (Index i = 0; rows && r.scale && i < r.count * r.d; ++i) rows[i] *= r.scale[i / r.d];
    return;
  }
  Arena arena;
  T* ybar = arena.allocate<T>(kLanes * r.d);
  T* y = arena.allocate<T>(kLanes * r.dy);
  T* grad = arena.allocate<T>(kLanes * r.d);
  T* v = arena.allocate<T>(kLanes * r.d);
  T* hv = arena.allocate<T>(kLanes * r.d);
  T loss[kLanes], scale[kLanes];
  std::int64_t labels[kLanes];
  for (Index first = 0; first < r.count; first += kLanes) {
    const Index n = std::min(kLanes, r.count - first);
    kernels.rows_to_block(n, r.d, kLanes, r.ybar + first * r.d, r.d, ybar);
    if (r.y) kernels.rows_to_block(n, r.dy, kLanes, r.y + first * r.dy, r.dy, y);
    if (r.hv) kernels.rows_to_block(n, r.d, kLanes, r.v + first * r.d, r.d, v);
    for (Index l = 0; l < kLanes; ++l) {
      const Index i = first + std::min(l, n - 1);
      if (r.labels) labels[l] = r.labels[i];
      scale[l] = r.scale ? r.scale[i] : T(1);
    }
    CostArgs<T> args;
    args.d = r.d;
    args.dy = r.dy;
    args.lanes = kLanes;
    args.ybar = ybar;
    args.y = r.y ? y : nullptr;
    args.label = r.labels ? labels : nullptr;
    args.scale = scale;
    args.loss = r.loss ? loss : nullptr;
    args.grad = r.grad ? grad : nullptr;
    args.v = r.hv ? v : nullptr;
    args.hv = r.hv ? hv : nullptr;
    cost.block(kernels, args);
    if (r.loss) std::copy(loss, loss + n, r.loss + first);
    if (r.grad) kernels.block_to_rows(n, r.d, kLanes, grad, r.grad + first * r.d, r.d, false);
    if (r.hv) kernels.block_to_rows(n, r.d, kLanes, hv, r.hv + first * r.d, r.d, false);
  }
}

template class TableCost<float>;
template class TableCost<double>;
template void evaluate_rows(const Cost<float>&, const Kernels<float>&, const CostRows<float>&);
template void evaluate_rows(const Cost<double>&, const Kernels<double>&, const CostRows<double>&);

}  // namespace gradstack

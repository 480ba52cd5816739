#include "gradstack/device_program.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "parts.hpp"
#include "recent.hpp"
#include "stage_calls.hpp"

namespace gradstack {
namespace {

constexpr int kCotangentExponent = 10;  // fp16 ends at 2^16

const TableCost<float>& table_cost(const Cost<float>& cost) {
  const auto* table = dynamic_cast<const TableCost<float>*>(&cost);
  if (!table) throw std::invalid_argument("cost: a cost written in Python runs on the CPU only");
  return *table;
}

// False: some are not finite.
bool scale_all(std::vector<float>& values, float factor) {
  bool finite = true;
  for (float& value : values) {
    value *= factor;
    finite &= std::isfinite(value);
  }
  return finite;
}

// From and to the caller's memory, wherever it is.
std::vector<float> taken(DeviceQueue& queue, const float* from, Index n) {
  std::vector<float> values(static_cast<std::size_t>(n));
  if (queue.on_device(from))
    queue.to_host(values.data(), from, bytes_of(n));
  else
    std::copy_n(from, n, values.data());
  return values;
}
void give(DeviceQueue& queue, const std::vector<float>& values, float* to) {
  if (queue.on_device(to))
    queue.to_device(to, values.data(), values.size() * sizeof(float));
  else
    std::copy(values.begin(), values.end(), to);
}

}  // namespace

DeviceObjective::DeviceObjective(std::shared_ptr<const Graph> graph,
                                 std::shared_ptr<DeviceQueue> queue,
                                 std::shared_ptr<const Cost<float>> cost, TargetSpec target,
                                 bool weighted, DevicePlanOptions options)
    : queue_(std::move(queue)),
      cost_(std::move(cost)),
      target_(target),
      gradients_(options.gradients),
      plan_(std::move(graph), queue_, std::move(options)) {
  const Graph& g = plan_.graph();
  if (g.outputs().size() != 1)
    throw std::invalid_argument("cost: a cost compares one output with y, the graph has " +
                                std::to_string(g.outputs().size()));
  if (gradients_) cost_->require_gradient();
  const TableCost<float>& table = table_cost(*cost_);
  const int output = g.outputs()[0];
  const Index n = plan_.count();
  loss_ = DeviceArray<float>(queue_, n, "losses");
  if (weighted) weight_ = DeviceArray<float>(queue_, n, "sample weights");
  if (const auto& weights = table.class_weight(); !weights.empty()) {
    class_weight_ = DeviceArray<float>(queue_, static_cast<Index>(weights.size()), "class weights");
    class_weight_.from_host(weights.data(), class_weight_.size());
  }
  call_.id = table.id();
  std::copy_n(table.params().begin(), kMaxCostParams, call_.p);
  call_.count = n;
  call_.class_weight = class_weight_.data();
  call_.weight = weight_.data();
  call_.loss = loss_.data();
  if (plan_.chosen()) {  // vector quantisation: the target is the input itself
    const int input = g.stage(output).in[0];
    call_.d = call_.dy = plan_.width(input);
    call_.ybar = plan_.chosen();
    call_.y = plan_.value(input);
    call_.grad = plan_.chosen_grad();
  } else {
    call_.d = plan_.width(output);
    call_.ybar = plan_.value(output);
    call_.grad = gradients_ ? plan_.grad(output) : nullptr;
    if (target_.labels) {
      labels_ = DeviceArray<std::int64_t>(queue_, n, "labels");
      call_.labels = labels_.data();
    } else if (target_.dy > 0) {
      y_ = DeviceArray<float>(queue_, n * target_.dy, "targets");
      call_.y = y_.data();
      call_.dy = target_.dy;
    }
  }
  width_ = call_.d;
}

bool DeviceObjective::fits(const Cost<float>* cost, TargetSpec target, bool weighted) const {
  return cost_.get() == cost && target_.dy == target.dy && target_.labels == target.labels &&
         (weight_.data() != nullptr) == weighted;
}

void DeviceObjective::load(const Batch& batch, Index first) {
  const Index n = plan_.count();
  for (std::size_t i = 0; i < batch.x.size(); ++i)
    upload_rows(*queue_, batch, batch.x[i], first, n, plan_.value(plan_.graph().inputs()[i]));
  plan_.take_inputs();
  if (labels_.data()) {
    std::vector<std::int64_t> values(static_cast<std::size_t>(n));
    for (Index i = 0; i < n; ++i)
      values[static_cast<std::size_t>(i)] = label_at(batch.y, batch.row(first + i));
    labels_.from_host(values.data(), n);
  }
  if (y_.data()) upload_rows(*queue_, batch, batch.y, first, n, y_.data());
  if (weight_.data()) upload_rows(*queue_, batch, batch.weight, first, n, weight_.data());
}

void DeviceObjective::gather(const DeviceData& data, const Index* order, const DeviceStep* at) {
  DeviceGather g;
  g.count = plan_.count();
  g.order = order;
  g.at = at;
  const auto take = [&](const float* from, Index cols, DeviceOut to) {
    g.cols = cols;
    g.from = from;
    g.to = to;
    queue_->gather(g);
  };
  for (std::size_t i = 0; i < data.x.size(); ++i)
    take(data.x[i].data(), data.cols[i], plan_.input(plan_.graph().inputs()[i]));
  if (y_.data()) take(data.y.data(), target_.dy, y_.data());
  if (weight_.data()) take(data.weight.data(), 1, weight_.data());
  if (labels_.data()) {
    g.cols = 1;
    g.labels_from = data.labels.data();
    g.labels_to = labels_.data();
    queue_->gather(g);
  }
}

void DeviceObjective::evaluate(const DeviceRun& run, DeviceStep* at, double* results, bool average,
                               bool allow_non_finite) {
  const bool mean = cost_->reduction() == Reduction::Mean;
  const double factor = !average ? 1.0 : mean ? 0.0 : sum_factor();
  queue_->open_step(at, plan_.count(), weight_.data(), class_weight_.data(), labels_.data(),
                    factor);
  plan_.forward(run);
  call_.at = at;
  queue_->cost(call_);
  queue_->close_loss(at, plan_.count(), loss_.data(), weight_.data(), results, allow_non_finite);
}

void DeviceObjective::sample_costs(DeviceStep* at, double scale, const float* weight) {
  queue_->open_step(at, plan_.count(), nullptr, nullptr, nullptr, scale);
  DeviceCost call = call_;
  call.at = at;
  call.weight = weight;
  queue_->cost(call);
}

void DeviceObjective::curvature(DeviceStep* at, double scale) {
  queue_->open_step(at, plan_.count(), nullptr, nullptr, nullptr, scale);
  const int output = plan_.graph().outputs()[0];
  if (!plan_.moves(output)) return queue_->zero(call_.grad, bytes_of(plan_.count() * width_));
  DeviceCost call = call_;
  call.at = at;
  call.v = plan_.tangent(output);
  call.hv = call_.grad;
  call.grad = nullptr;
  queue_->cost(call);
}

DeviceLinearization::DeviceLinearization(std::shared_ptr<const Graph> graph,
                                         std::shared_ptr<DeviceQueue> queue, const float* w,
                                         const std::vector<RowSource>& x, Index count,
                                         bool tangents, CallOptions options,
                                         DevicePrecision precision)
    : queue_(std::move(queue)),
      graph_(std::move(graph)),
      precision_(precision),
      parameters_(graph_, queue_, precision) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  plan_ = std::make_unique<DevicePlan>(graph_, queue_,
                                       DevicePlanOptions{.count = count,
                                                         .gradients = true,
                                                         .want_dx = true,
                                                         .precision = precision,
                                                         .tangents = tangents,
                                                         .frozen = {},
                                                         .fused = fused_from_environment()});
  run_ = parameters_.open(w, options);
  Batch batch;
  batch.x = x;
  batch.count = count;
  for (std::size_t i = 0; i < x.size(); ++i)
    upload_rows(*queue_, batch, x[i], 0, count, plan_->value(graph_->inputs()[i]));
  plan_->take_inputs();
  plan_->forward(run_);
  queue_->synchronize();
}

void DeviceLinearization::output(std::size_t i, float* rows) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const int output = graph().outputs()[i];
  queue_->to_host(rows, plan_->value(output), bytes_of(count() * plan_->width(output)));
}

void DeviceLinearization::vjp(const std::vector<const float*>& dys, const std::vector<float*>& dxs,
                              float* dw) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  if (precision_ != DevicePrecision::FP16) return pull(dys, dxs, dw);
  // Cotangents are scaled to where fp16 has room above and below; and down, while a result
  // overflows.
  const auto size = [&](const std::vector<int>& ids, std::size_t i) {
    return count() * plan_->width(ids[i]);
  };
  std::vector<std::vector<float>> given(dys.size()), scaled(dys.size()), results(dxs.size() + 1);
  std::vector<const float*> from(dys.size(), nullptr);
  std::vector<float*> to(dxs.size(), nullptr);
  float most = 0;
  for (std::size_t i = 0; i < dys.size(); ++i) {
    if (!dys[i]) continue;
    given[i] = taken(*queue_, dys[i], size(graph().outputs(), i));
    for (const float dy : given[i])
      most = std::max(most, std::abs(dy));  // NaN shows in the results
  }
  for (std::size_t i = 0; i < dxs.size(); ++i) {
    if (!dxs[i]) continue;
    results[i].resize(static_cast<std::size_t>(size(graph().inputs(), i)));
    to[i] = results[i].data();
  }
  if (dw) results.back().resize(static_cast<std::size_t>(graph().n_params()));
  int exponent = 0;
  std::frexp(most, &exponent);
  const double first = std::ldexp(1.0, std::clamp(kCotangentExponent - exponent, -96, 96));
  for (double scale = first;; scale /= 2) {
    for (std::size_t i = 0; i < dys.size(); ++i) {
      if (!dys[i]) continue;
      scaled[i] = given[i];
      scale_all(scaled[i], static_cast<float>(scale));
      from[i] = scaled[i].data();
    }
    pull(from, to, dw ? results.back().data() : nullptr);
    bool finite = true;
    for (auto& result : results) finite &= scale_all(result, static_cast<float>(1 / scale));
    if (finite || scale <= first * kLeastLossScale || !std::isfinite(most)) break;
  }
  for (std::size_t i = 0; i < dxs.size(); ++i)
    if (dxs[i]) give(*queue_, results[i], dxs[i]);
  if (dw) give(*queue_, results.back(), dw);
}

void DeviceLinearization::pull(const std::vector<const float*>& dys, const std::vector<float*>& dxs,
                               float* dw) {
  const Index n = count();
  std::vector<const float*> seen;
  for (std::size_t i = 0; i < dys.size(); ++i) {
    const int output = graph().outputs()[i];
    float* grad = plan_->grad(output);
    const Index d = plan_->width(output), size = n * d;
    // Two outputs may be one variable: its gradients add.
    const bool again = std::find(seen.begin(), seen.end(), grad) != seen.end();
    seen.push_back(grad);
    if (!dys[i]) {
      if (!again) queue_->zero(grad, bytes_of(size));
    } else if (!again) {
      queue_->to_device(grad, dys[i], bytes_of(size));
    } else {
      if (staging_.size() < size) staging_ = DeviceArray<float>(queue_, size, "cotangents");
      queue_->to_device(staging_.data(), dys[i], bytes_of(size));
      queue_->columns({n, d, staging_.data(), d, grad, d, true});
    }
  }
  // What was lent is given back when it was read; results may be on their way.
  const bool lent =
      std::any_of(dys.begin(), dys.end(), [&](const float* dy) { return queue_->on_device(dy); });
  const std::unique_ptr<DeviceFence> read = queue_->fence();
  queue_->mark(*read, DeviceLine::Kernels);
  run_.dw = dw ? parameters_.gradient() : nullptr;
  plan_->backward(run_);
  for (std::size_t i = 0; i < dxs.size(); ++i) {
    const int input = graph().inputs()[i];
    if (dxs[i]) queue_->to_host(dxs[i], plan_->grad(input), bytes_of(n * plan_->width(input)));
  }
  if (dw) parameters_.read_gradient(dw);
  if (lent) queue_->wait_for(*read);
}

void DeviceLinearization::jvp(const std::vector<const float*>& dxs, const float* dw,
                              const std::vector<float*>& dys) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  DeviceRun run = run_;
  if (dw) run.tangent_w = parameters_.direction(dw);
  push_rows(*queue_, *plan_, run, 0, dxs, dys);
}

void push_rows(DeviceQueue& queue, DevicePlan& plan, const DeviceRun& run, Index first,
               const std::vector<const float*>& dxs, const std::vector<float*>& dys) {
  const Graph& graph = plan.graph();
  std::vector<char> moved;
  for (std::size_t i = 0; i < dxs.size(); ++i) {
    moved.push_back(dxs[i] != nullptr);
    const int input = graph.inputs()[i];
    const Index d = plan.width(input);
    if (dxs[i])
      queue.to_device(plan.tangent(input), dxs[i] + first * d, bytes_of(plan.count() * d));
  }
  plan.push(run, moved);
  for (std::size_t i = 0; i < dys.size(); ++i) {
    const int output = graph.outputs()[i];
    const Index size = plan.count() * plan.width(output);
    float* to = dys[i] + first * plan.width(output);
    if (plan.moves(output))
      queue.to_host(to, plan.tangent(output), bytes_of(size));
    else
      std::fill_n(to, size, 0.0F);
  }
}

DeviceProgram::DeviceProgram(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                             DevicePrecision precision)
    : graph_(std::move(graph)),
      queue_(std::move(queue)),
      precision_(precision),
      parameters_(graph_, queue_, precision) {
  check_device_graph(*graph_, precision_);
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  results_ = DeviceArray<double>(queue_, 2, "state of a run");
}

// Tangents are float32 in every precision.
DevicePlan& DeviceProgram::plan_for(Index count, bool tangents) {
  return recent(
      plans_,
      [&](const DevicePlan& plan) {
        return plan.count() == count && plan.options().tangents == tangents;
      },
      [&] {
        return std::make_unique<DevicePlan>(
            graph_, queue_,
            DevicePlanOptions{.count = count,
                              .precision = tangents ? DevicePrecision::Float32 : precision_,
                              .tangents = tangents,
                              .frozen = {},
                              .fused = fused_from_environment()});
      });
}

DeviceObjective& DeviceProgram::objective_for(Index count,
                                              const std::shared_ptr<const Cost<float>>& cost,
                                              TargetSpec target, bool weighted, bool gradients) {
  return recent(
      gradients ? objectives_ : losses_,
      [&](DeviceObjective& o) {
        return o.plan().count() == count && o.fits(cost.get(), target, weighted);
      },
      [&] {
        return std::make_unique<DeviceObjective>(
            graph_, queue_, cost, target, weighted,
            DevicePlanOptions{.count = count,
                              .gradients = gradients,
                              .precision = precision_,
                              .frozen = {},
                              .fused = fused_from_environment()});
      });
}

void DeviceProgram::forward(const float* w, const std::vector<RowSource>& x, Index count,
                            const std::vector<float*>& outs, CallOptions options) {
  if (count == 0) return;
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  DeviceRun run = parameters_.open(w, options);
  Batch batch;
  batch.x = x;
  batch.count = count;
  const bool lent = on_device(*queue_, batch);
  const std::unique_ptr<DeviceFence> read = queue_->fence();
  const Index most = std::min(count, rows_that_fit(*queue_, features(*graph_)));
  for (Index first = 0; first < count; first += most) {
    const Index n = std::min(most, count - first);
    DevicePlan& plan = plan_for(n, false);
    run.first_sample = first;
    for (std::size_t i = 0; i < x.size(); ++i)
      upload_rows(*queue_, batch, x[i], first, n, plan.value(graph_->inputs()[i]));
    plan.take_inputs();
    if (lent) queue_->mark(*read, DeviceLine::Kernels);
    plan.forward(run);
    for (std::size_t i = 0; i < outs.size(); ++i) {
      const int output = graph_->outputs()[i];
      const Index d = plan.width(output);
      queue_->to_host(outs[i] + first * d, plan.value(output), bytes_of(n * d));
    }
  }
  // Inputs that were lent are given back when they were read; results may be on their way.
  if (lent) queue_->wait_for(*read);
}

void DeviceProgram::jvp(const float* w, const std::vector<RowSource>& x, Index count,
                        const std::vector<const float*>& dxs, const float* dw,
                        const std::vector<float*>& ys, const std::vector<float*>& dys) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  DeviceRun run = parameters_.open(w, {});
  if (dw) run.tangent_w = parameters_.direction(dw);
  Batch batch;
  batch.x = x;
  batch.count = count;
  const Index most = std::min(count, rows_that_fit(*queue_, 2 * features(*graph_)));
  for (Index first = 0; first < count; first += most) {
    const Index n = std::min(most, count - first);
    DevicePlan& plan = plan_for(n, true);
    for (std::size_t i = 0; i < x.size(); ++i)
      upload_rows(*queue_, batch, x[i], first, n, plan.value(graph_->inputs()[i]));
    plan.forward(run);
    for (std::size_t i = 0; i < ys.size(); ++i) {
      const int output = graph_->outputs()[i];
      const Index d = plan.width(output);
      queue_->to_host(ys[i] + first * d, plan.value(output), bytes_of(n * d));
    }
    push_rows(*queue_, plan, run, first, dxs, dys);
  }
}

double DeviceProgram::value_and_grad(const float* w, const Batch& batch, TargetSpec target,
                                     std::shared_ptr<const Cost<float>> cost, float* dw,
                                     CallOptions options) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  DeviceObjective& objective =
      objective_for(batch.count, cost, target, batch.weight.data != nullptr, true);
  objective.load(batch, 0);
  std::vector<float> gradient(
      precision_ == DevicePrecision::FP16 ? static_cast<std::size_t>(graph_->n_params()) : 0);
  // The scale that training would settle at.
  for (double scale = precision_ == DevicePrecision::FP16 ? kFirstLossScale : 1;; scale /= 2) {
    DeviceRun run = parameters_.open(w, options, scale);
    run.dw = parameters_.gradient();
    objective.evaluate(run, parameters_.at(), results_.data(), true, true);
    objective.backward(run);
    parameters_.read_gradient(gradient.empty() ? dw : gradient.data());
    double results[2];
    results_.to_host(results, 2);
    if (gradient.empty()) return results[0];
    if (scale_all(gradient, static_cast<float>(1 / scale)) || scale <= kLeastLossScale ||
        !std::isfinite(results[0])) {
      give(*queue_, gradient, dw);
      return results[0];
    }
  }
}

double DeviceProgram::evaluate(const float* w, const Batch& data, TargetSpec target,
                               std::shared_ptr<const Cost<float>> cost, CallOptions options) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const bool nearest = graph_->stage(graph_->outputs()[0]).kind == Kind::Nearest;
  const Index most = rows_that_fit(*queue_, features(*graph_));
  double sum = 0, weight = 0, sum_factor = 1;
  DeviceRun run = parameters_.open(w, options);
  for (Index first = 0; first < data.count; first += most) {
    const Index n = std::min(most, data.count - first);
    // A Nearest output needs its chosen prototype, which only plans with gradients keep.
    DeviceObjective& objective =
        objective_for(n, cost, target, data.weight.data != nullptr, nearest);
    run.first_sample = first;
    objective.load(data, first);
    objective.evaluate(run, parameters_.at(), results_.data(), false, true);
    double results[2];
    results_.to_host(results, 2);
    sum += results[0];
    weight += results[1];
    sum_factor = objective.sum_factor();
  }
  return cost->reduction() == Reduction::Mean ? sum / weight : sum * sum_factor;
}

}  // namespace gradstack

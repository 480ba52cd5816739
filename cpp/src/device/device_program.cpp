#include "gradstack/device_program.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace gradstack {
namespace {

constexpr double kChunkBytes = 1 << 28;   // activations of one plan when predicting, at most
constexpr double kChunkShare = 1.0 / 16;  // and of the device's memory
constexpr std::size_t kKept = 4;          // plans

std::size_t bytes_of(Index n) { return static_cast<std::size_t>(n) * sizeof(float); }

const TableCost<float>& table_cost(const Cost<float>& cost) {
  const auto* table = dynamic_cast<const TableCost<float>*>(&cost);
  if (!table) throw std::invalid_argument("cost: a cost written in Python runs on the CPU only");
  return *table;
}

// Moves the entry that `fits` to the front, or puts a new one there.
template <class Entry, class Fits, class Make>
Entry& recent(std::list<std::unique_ptr<Entry>>& kept, Fits&& fits, Make&& make) {
  const auto found =
      std::find_if(kept.begin(), kept.end(), [&](const auto& entry) { return fits(*entry); });
  if (found != kept.end()) {
    kept.splice(kept.begin(), kept, found);
  } else {
    if (kept.size() == kKept) kept.pop_back();  // first, so that its memory can be used again
    try {
      kept.push_front(make());
    } catch (const DeviceOutOfMemory&) {
      if (kept.empty()) throw;
      kept.clear();
      kept.push_front(make());
    }
  }
  return *kept.front();
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
  const auto take = [&](const float* from, Index cols, float* to) {
    g.cols = cols;
    g.from = from;
    g.to = to;
    queue_->gather(g);
  };
  for (std::size_t i = 0; i < data.x.size(); ++i)
    take(data.x[i].data(), data.cols[i], plan_.value(plan_.graph().inputs()[i]));
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

DeviceLinearization::DeviceLinearization(std::shared_ptr<const Graph> graph,
                                         std::shared_ptr<DeviceQueue> queue, const float* w,
                                         const std::vector<RowSource>& x, Index count,
                                         CallOptions options)
    : queue_(std::move(queue)), graph_(std::move(graph)) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  plan_ = std::make_unique<DevicePlan>(
      graph_, queue_,
      DevicePlanOptions{.count = count, .gradients = true, .want_dx = true, .frozen = {}});
  const DeviceLayout& layout = plan_->layout();
  std::vector<float> padded(static_cast<std::size_t>(layout.size()));
  layout.spread(*graph_, w, padded.data());
  w_ = DeviceArray<float>(queue_, layout.size(), "parameters");
  dw_ = DeviceArray<float>(queue_, layout.size(), "gradient");
  at_ = DeviceArray<DeviceStep>(queue_, 1, "state of a run");
  w_.from_host(padded.data(), w_.size());
  DeviceStep at;
  at.step = options.step;
  at_.from_host(&at, 1);
  run_.w = w_.data();
  run_.train = options.train;
  run_.seed = options.seed;
  run_.at = at_.data();
  Batch batch;
  batch.x = x;
  batch.count = count;
  for (std::size_t i = 0; i < x.size(); ++i)
    upload_rows(*queue_, batch, x[i], 0, count, plan_->value(graph_->inputs()[i]));
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
  run_.dw = dw ? dw_.data() : nullptr;
  plan_->backward(run_);
  for (std::size_t i = 0; i < dxs.size(); ++i) {
    const int input = graph().inputs()[i];
    if (dxs[i]) queue_->to_host(dxs[i], plan_->grad(input), bytes_of(n * plan_->width(input)));
  }
  if (dw) plan_->layout().download(*queue_, graph(), dw_.data(), dw);
  if (lent) queue_->wait_for(*read);
}

DeviceProgram::DeviceProgram(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue)
    : graph_(std::move(graph)),
      queue_(std::move(queue)),
      layout_(*graph_),
      chunk_bytes_(kChunkBytes),
      padded_(static_cast<std::size_t>(layout_.size())) {
  check_device_graph(*graph_);
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  chunk_bytes_ = std::min(kChunkBytes, kChunkShare * static_cast<double>(queue_->memory().total));
  w_ = DeviceArray<float>(queue_, layout_.size(), "parameters");
  dw_ = DeviceArray<float>(queue_, layout_.size(), "gradient");
  at_ = DeviceArray<DeviceStep>(queue_, 1, "state of a run");
  results_ = DeviceArray<double>(queue_, 2, "state of a run");
}

Index DeviceProgram::chunk(Index count) const {
  Index features = 0;
  for (const Stage& stage : graph_->stages()) features += size_of(stage.shape);
  const double most =
      chunk_bytes_ / sizeof(float) / static_cast<double>(std::max(features, Index{1}));
  return std::min(count, std::max(Index{1024}, static_cast<Index>(most)));
}

void DeviceProgram::upload(const float* w) {
  layout_.spread(*graph_, w, padded_.data());
  w_.from_host(padded_.data(), w_.size());
}

DeviceRun DeviceProgram::open(const CallOptions& options) {
  DeviceStep at;
  at.step = options.step;
  at_.from_host(&at, 1);
  DeviceRun run;
  run.w = w_.data();
  run.train = options.train;
  run.seed = options.seed;
  run.at = at_.data();
  return run;
}

DevicePlan& DeviceProgram::plan_for(Index count) {
  return recent(
      plans_, [&](const DevicePlan& plan) { return plan.count() == count; },
      [&] {
        return std::make_unique<DevicePlan>(graph_, queue_,
                                            DevicePlanOptions{.count = count, .frozen = {}});
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
            DevicePlanOptions{.count = count, .gradients = gradients, .frozen = {}});
      });
}

void DeviceProgram::forward(const float* w, const std::vector<RowSource>& x, Index count,
                            const std::vector<float*>& outs, CallOptions options) {
  if (count == 0) return;
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  upload(w);
  DeviceRun run = open(options);
  Batch batch;
  batch.x = x;
  batch.count = count;
  const bool lent = on_device(*queue_, batch);
  const std::unique_ptr<DeviceFence> read = queue_->fence();
  const Index most = chunk(count);
  for (Index first = 0; first < count; first += most) {
    const Index n = std::min(most, count - first);
    DevicePlan& plan = plan_for(n);
    run.first_sample = first;
    for (std::size_t i = 0; i < x.size(); ++i)
      upload_rows(*queue_, batch, x[i], first, n, plan.value(graph_->inputs()[i]));
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

double DeviceProgram::value_and_grad(const float* w, const Batch& batch, TargetSpec target,
                                     std::shared_ptr<const Cost<float>> cost, float* dw,
                                     CallOptions options) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  DeviceObjective& objective =
      objective_for(batch.count, cost, target, batch.weight.data != nullptr, true);
  upload(w);
  DeviceRun run = open(options);
  run.dw = dw_.data();
  objective.load(batch, 0);
  objective.evaluate(run, at_.data(), results_.data(), true, true);
  objective.backward(run);
  layout_.download(*queue_, *graph_, dw_.data(), dw);
  double results[2];
  results_.to_host(results, 2);
  return results[0];
}

double DeviceProgram::evaluate(const float* w, const Batch& data, TargetSpec target,
                               std::shared_ptr<const Cost<float>> cost, CallOptions options) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const bool nearest = graph_->stage(graph_->outputs()[0]).kind == Kind::Nearest;
  const Index most = chunk(data.count);
  double sum = 0, weight = 0, sum_factor = 1;
  upload(w);
  DeviceRun run = open(options);
  for (Index first = 0; first < data.count; first += most) {
    const Index n = std::min(most, data.count - first);
    // A Nearest output needs its chosen prototype, which only plans with gradients keep.
    DeviceObjective& objective =
        objective_for(n, cost, target, data.weight.data != nullptr, nearest);
    run.first_sample = first;
    objective.load(data, first);
    objective.evaluate(run, at_.data(), results_.data(), false, true);
    double results[2];
    results_.to_host(results, 2);
    sum += results[0];
    weight += results[1];
    sum_factor = objective.sum_factor();
  }
  return cost->reduction() == Reduction::Mean ? sum / weight : sum * sum_factor;
}

}  // namespace gradstack

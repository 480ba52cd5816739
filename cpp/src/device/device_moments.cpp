// Second moments of what linear blocks see, for Kronecker-factored curvature.
#include <algorithm>
#include <stdexcept>

#include "at.hpp"
#include "gradstack/device_calculus.hpp"
#include "parts.hpp"
#include "recent.hpp"
#include "stage_calls.hpp"

namespace gradstack {

DeviceMoments::DeviceMoments(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                             std::vector<int> blocks)
    : graph_(std::move(graph)),
      queue_(std::move(queue)),
      blocks_(std::move(blocks)),
      parameters_(graph_, queue_) {
  check_device_graph(*graph_);
  Index most = 0;
  for (const int block : blocks_) {
    if (graph_->stage(block).kind != Kind::Linear)
      throw std::invalid_argument("blocks: '" + graph_->stage(block).name + "' is no linear block");
    most = std::max({most, inputs(block), outputs(block)});
  }
  made_.resize(at(most * most));
}

Index DeviceMoments::inputs(int block) const {
  return size_of(graph_->stage(graph_->stage(block).in[0]).shape);
}

Index DeviceMoments::outputs(int block) const { return size_of(graph_->stage(block).shape); }

DevicePlan& DeviceMoments::plan_for(Index samples, Index directions) {
  return recent(
      plans_,
      [&](const DevicePlan& plan) {
        return plan.count() == samples && plan.options().repeats == directions;
      },
      [&] {
        DevicePlanOptions options;
        options.count = samples;
        options.repeats = directions;
        options.gradients = true;
        return std::make_unique<DevicePlan>(graph_, queue_, std::move(options));
      });
}

// to (d + sums, d + sums) += v^T v, bordered with the sums of v's columns.
void DeviceMoments::add(Index rows, Index d, const float* v, bool sums, double* to) {
  if (product_.size() < d * d) product_ = DeviceArray<float>(queue_, d * d, "second moments");
  DeviceGemm g;
  g.m = g.n = d;
  g.k = rows;
  g.a = g.b = v;
  g.ta = true;
  g.c = product_.data();
  queue_->gemm(g);
  product_.to_host(made_.data(), d * d);
  const Index ld = d + (sums ? 1 : 0);
  for (Index i = 0; i < d; ++i)
    for (Index j = 0; j < d; ++j) to[i * ld + j] += made_[at(i * d + j)];
  if (!sums) return;
  queue_->column_sums(rows, d, v, product_.data(), false);
  product_.to_host(made_.data(), d);
  for (Index i = 0; i < d; ++i) {
    to[i * ld + d] += made_[at(i)];
    to[d * ld + i] = to[i * ld + d];
  }
  to[d * ld + d] += static_cast<double>(rows);
}

void DeviceMoments::evaluate(const float* w, const std::vector<RowSource>& x, Index count,
                             const float* dybar, Index directions, const std::vector<double*>& z,
                             const std::vector<double*>& ds) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const int output = graph_->outputs()[0];
  const Index d = size_of(graph_->stage(output).shape);
  const DeviceRun run = parameters_.open(w, {});
  Batch batch;
  batch.x = x;
  batch.count = count;
  const Index most = std::max(Index{1}, rows_that_fit(*queue_, 2 * features(*graph_)) / directions);
  for (Index first = 0; first < count; first += most) {
    DevicePlan& plan = plan_for(std::min(most, count - first), directions);
    for (std::size_t i = 0; i < x.size(); ++i)
      upload_rows(*queue_, batch, x[i], first, plan.count(), plan.value(graph_->inputs()[i]));
    plan.forward(run);
    queue_->to_device(plan.grad(output), dybar + first * directions * d, bytes_of(plan.rows() * d));
    plan.backward(run);
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const Stage& stage = graph_->stage(blocks_[i]);
      add(plan.count(), inputs(blocks_[i]), plan.value(stage.in[0]), stage.bias_id >= 0, z[i]);
      if (plan.reached(blocks_[i]))
        add(plan.rows(), outputs(blocks_[i]), plan.grad(blocks_[i]), false, ds[i]);
    }
  }
}

}  // namespace gradstack

#include <algorithm>
#include <cmath>

#include "gradstack/device_calculus.hpp"
#include "parts.hpp"
#include "recent.hpp"
#include "stage_calls.hpp"

namespace gradstack {
namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

// Room for n values; what it holds is lost.
float* room(DeviceArray<float>& array, const std::shared_ptr<DeviceQueue>& queue, Index n,
            const char* what) {
  if (array.size() < n) {
    array = {};  // first, so that its memory can be used again
    array = DeviceArray<float>(queue, n, what);
  }
  return array.data();
}

}  // namespace

DevicePerSample::DevicePerSample(std::shared_ptr<const Graph> graph,
                                 std::shared_ptr<DeviceQueue> queue,
                                 std::shared_ptr<const Cost<float>> cost, TargetSpec target)
    : graph_(std::move(graph)),
      queue_(std::move(queue)),
      cost_(std::move(cost)),
      target_(target),
      parameters_(graph_, queue_) {
  check_device_graph(*graph_);
}

DeviceObjective& DevicePerSample::objective_for(Index count, bool tangents) {
  return recent(
      objectives_,
      [&](DeviceObjective& o) {
        return o.plan().count() == count && o.plan().options().tangents == tangents;
      },
      [&] {
        return std::make_unique<DeviceObjective>(
            graph_, queue_, cost_, target_, false,
            DevicePlanOptions{
                .count = count, .gradients = true, .tangents = tangents, .frozen = {}});
      });
}

// f(run, objective, first, count) with every sample's own loss, and its gradient at the output.
// rows: a row of all parameters is made for every sample.
template <class F>
void DevicePerSample::each_part(const float* w, const Batch& batch, bool rows, bool tangents,
                                F&& f) {
  const Index most = rows_that_fit(
      *queue_, (tangents ? 3 : 2) * features(*graph_) + (rows ? graph_->n_params() : 0));
  const DeviceRun run = parameters_.open(w, {});
  for (Index first = 0; first < batch.count; first += most) {
    const Index count = std::min(most, batch.count - first);
    DeviceObjective& objective = objective_for(count, tangents);
    scale_ = cost_->reduction() == Reduction::Mean ? 1.0 : objective.sum_factor();
    objective.load(batch, first);
    objective.plan().forward(run);
    objective.sample_costs(parameters_.at(), scale_, nullptr);
    DeviceRun part = run;
    part.accumulate = first > 0;
    f(part, objective, first, count);
  }
}

void DevicePerSample::gradients(const float* w, const Batch& batch, float* rows, int) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  if (graph_->n_params() == 0) return;
  each_part(w, batch, true, false,
            [&](const DeviceRun& run, DeviceObjective& objective, Index first, Index count) {
              const Index size = count * graph_->n_params();
              float* made = room(rows_, queue_, size, "gradients of the samples");
              objective.backward(run);
              objective.plan().per_sample_gradients(made);
              queue_->to_host(rows + first * graph_->n_params(), made, bytes_of(size));
            });
}

void DevicePerSample::squared_norms(DeviceObjective& objective, float* host) {
  const Index n = objective.plan().count();
  float* norms = room(sums_, queue_, n, "norms of gradients");
  objective.plan().per_sample_squared_norms(norms, room(scratch_, queue_, n, "norms of gradients"));
  queue_->to_host(host, norms, bytes_of(n));
}

void DevicePerSample::norms(const float* w, const Batch& batch, float* norms, int) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  each_part(w, batch, false, false,
            [&](const DeviceRun& run, DeviceObjective& objective, Index first, Index count) {
              objective.backward(run);
              squared_norms(objective, norms + first);
              for (Index i = first; i < first + count; ++i) norms[i] = std::sqrt(norms[i]);
            });
}

// dw (+)= sum over the samples of factor * gradient.
void DevicePerSample::weighted_backward(DeviceObjective& objective, DeviceRun run,
                                        const float* factors) {
  objective.sample_costs(parameters_.at(), scale_, factors);
  run.dw = parameters_.gradient();
  objective.backward(run);
}

void DevicePerSample::clipped(const float* w, const Batch& batch, double max_norm, float* dw, int) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  std::vector<float> factors;
  each_part(w, batch, false, false,
            [&](const DeviceRun& run, DeviceObjective& objective, Index, Index count) {
              objective.backward(run);
              factors.resize(at(count));
              squared_norms(objective, factors.data());
              for (float& factor : factors) {
                const double norm = std::sqrt(static_cast<double>(factor));
                factor = static_cast<float>(std::min(1.0, norm > 0 ? max_norm / norm : 1.0) /
                                            static_cast<double>(batch.count));
              }
              sums_.from_host(factors.data(), count);
              weighted_backward(objective, run, sums_.data());
            });
  parameters_.read_gradient(dw);
}

// <g_b, v> is <dL/dybar, J v>.
void DevicePerSample::fisher_product(const float* w, const Batch& batch, const float* v,
                                     float* product, int) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const float* direction = parameters_.direction(v);
  const std::vector<char> moved(graph_->inputs().size(), 0);
  const int output = graph_->outputs()[0];
  each_part(w, batch, false, true,
            [&](DeviceRun run, DeviceObjective& objective, Index, Index count) {
              DevicePlan& plan = objective.plan();
              run.tangent_w = direction;
              plan.push(run, moved);
              float* factors = room(sums_, queue_, count, "products with gradients");
              if (plan.moves(output))
                queue_->row_dots({.rows = count,
                                  .d = plan.width(output),
                                  .a = plan.grad(output),
                                  .b = plan.tangent(output),
                                  .factor = 1.0F / static_cast<float>(batch.count),
                                  .sums = factors});
              else
                queue_->zero(factors, bytes_of(count));
              weighted_backward(objective, run, factors);
            });
  parameters_.read_gradient(product);
}

// Mean of the squares of gradients that are formed.
void DevicePerSample::fisher_diagonal(const float* w, const Batch& batch, float* diagonal, int) {
  const Index n = graph_->n_params();
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  if (n == 0) return;
  each_part(w, batch, true, false,
            [&](const DeviceRun& run, DeviceObjective& objective, Index first, Index count) {
              float* made = room(rows_, queue_, count * n, "gradients of the samples");
              float* sums = room(sums_, queue_, n, "squares of gradients");
              objective.backward(run);
              objective.plan().per_sample_gradients(made);
              queue_->binary(DeviceBinary::Mul, count * n, made, made, made);
              queue_->column_sums(count, n, made, sums, first > 0);
            });
  sums_.to_host(diagonal, n);
  for (Index i = 0; i < n; ++i) diagonal[i] /= static_cast<float>(batch.count);
}

DeviceGaussNewton::DeviceGaussNewton(std::shared_ptr<const Graph> graph,
                                     std::shared_ptr<DeviceQueue> queue,
                                     std::shared_ptr<const Cost<float>> cost, TargetSpec target)
    : graph_(std::move(graph)),
      queue_(std::move(queue)),
      cost_(std::move(cost)),
      target_(target),
      parameters_(graph_, queue_) {}

void DeviceGaussNewton::product(const float* w, const Batch& batch, const float* v, float* product,
                                int) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const bool weighted = batch.weight.data != nullptr;
  const Index most = rows_that_fit(*queue_, 3 * features(*graph_));
  const std::vector<char> moved(graph_->inputs().size(), 0);
  DeviceRun run = parameters_.open(w, {});
  run.dw = parameters_.gradient();
  run.tangent_w = parameters_.direction(v);
  for (Index first = 0; first < batch.count; first += most) {
    const Index count = std::min(most, batch.count - first);
    DeviceObjective& objective = recent(
        objectives_,
        [&](DeviceObjective& o) {
          return o.plan().count() == count && o.fits(cost_.get(), target_, weighted);
        },
        [&] {
          return std::make_unique<DeviceObjective>(
              graph_, queue_, cost_, target_, weighted,
              DevicePlanOptions{.count = count, .gradients = true, .tangents = true, .frozen = {}});
        });
    objective.load(batch, first);
    objective.plan().forward(run);
    objective.plan().push(run, moved);
    objective.curvature(parameters_.at(), cost_->reduction() == Reduction::Mean
                                              ? 1.0 / total_weight(*cost_, batch)
                                              : objective.sum_factor());
    run.accumulate = first > 0;
    objective.backward(run);
  }
  parameters_.read_gradient(product);
}

}  // namespace gradstack

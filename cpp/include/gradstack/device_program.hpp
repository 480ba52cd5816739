// Graphs called on a device: predictions, products with the Jacobian, losses and gradients, from
// and to the host's memory. The counterpart of program.hpp; thread safe, calls of one queue take
// turns.
#pragma once

#include <list>
#include <memory>
#include <vector>

#include "gradstack/device_data.hpp"
#include "gradstack/device_parameters.hpp"

namespace gradstack {

// C(y, G(x, w)) of `count` samples and its gradient.
class DeviceObjective {
 public:
  // Throws std::invalid_argument for costs written in Python.
  DeviceObjective(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                  std::shared_ptr<const Cost<float>> cost, TargetSpec target, bool weighted,
                  DevicePlanOptions options);

  // Rows [first, first + count) of the caller's batch.
  void load(const Batch& batch, Index first);
  // Rows order[at->first + i] of a resident data set; order null: at->first + i.
  void gather(const DeviceData& data, const Index* order, const DeviceStep* at);
  // Forward and cost. `average`: the loss and its gradient are those of the reduction, otherwise
  // of the weighted sum. Results as DeviceQueue::close_loss has them.
  void evaluate(const DeviceRun& run, DeviceStep* at, double* results, bool average,
                bool allow_non_finite);
  void backward(const DeviceRun& run) { plan_.backward(run); }

  // After forward: every sample's own loss, and its gradient at the output multiplied with `scale`
  // and weight[i] (device memory; null: 1).
  void sample_costs(DeviceStep* at, double scale, const float* weight);
  // After push: the output's gradient becomes (d2L/dybar2) (its tangent) times `scale` and the
  // sample weights.
  void curvature(DeviceStep* at, double scale);
  DevicePlan& plan() { return plan_; }
  bool fits(const Cost<float>* cost, TargetSpec target, bool weighted) const;
  // The factor of a sum reduction.
  double sum_factor() const { return cost_->sum_factor(width_); }

 private:
  std::shared_ptr<DeviceQueue> queue_;
  std::shared_ptr<const Cost<float>> cost_;
  TargetSpec target_;
  bool gradients_;
  DevicePlan plan_;
  DeviceCost call_;
  Index width_ = 0;
  DeviceArray<float> y_, weight_, class_weight_, loss_;
  DeviceArray<std::int64_t> labels_;
};

// A point (x, w) with its activations kept on the device.
class DeviceLinearization {
 public:
  DeviceLinearization(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                      const float* w, const std::vector<RowSource>& x, Index count, bool tangents,
                      CallOptions options, DevicePrecision precision = DevicePrecision::Float32);
  Index count() const { return plan_->count(); }
  const Graph& graph() const { return *graph_; }
  void output(std::size_t i, float* rows);  // (count, d)
  // dys: per output rows or null; dxs: per input rows or null; dw (P,) or null. All on the host.
  void vjp(const std::vector<const float*>& dys, const std::vector<float*>& dxs, float* dw);
  // dxs: per input rows or null; dw (P,) or null; dys: per output rows. Planned with tangents only.
  void jvp(const std::vector<const float*>& dxs, const float* dw, const std::vector<float*>& dys);

 private:
  void pull(const std::vector<const float*>& dys, const std::vector<float*>& dxs, float* dw);

  std::shared_ptr<DeviceQueue> queue_;
  std::shared_ptr<const Graph> graph_;
  DevicePrecision precision_;
  DeviceParameters parameters_;
  std::unique_ptr<DevicePlan> plan_;
  DeviceArray<float> staging_;
  DeviceRun run_;
};

class DeviceProgram {
 public:
  DeviceProgram(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                DevicePrecision precision = DevicePrecision::Float32);

  void forward(const float* w, const std::vector<RowSource>& x, Index count,
               const std::vector<float*>& outs, CallOptions options);
  double value_and_grad(const float* w, const Batch& batch, TargetSpec target,
                        std::shared_ptr<const Cost<float>> cost, float* dw, CallOptions options);
  double evaluate(const float* w, const Batch& data, TargetSpec target,
                  std::shared_ptr<const Cost<float>> cost, CallOptions options);
  // Outputs and their perturbations; dxs, dw, dys as in DeviceLinearization::jvp.
  void jvp(const float* w, const std::vector<RowSource>& x, Index count,
           const std::vector<const float*>& dxs, const float* dw, const std::vector<float*>& ys,
           const std::vector<float*>& dys);

  const Graph& graph() const { return *graph_; }
  const std::shared_ptr<const Graph>& shared_graph() const { return graph_; }
  const std::shared_ptr<DeviceQueue>& queue() const { return queue_; }
  DevicePrecision precision() const { return precision_; }

 private:
  DevicePlan& plan_for(Index count, bool tangents);
  DeviceObjective& objective_for(Index count, const std::shared_ptr<const Cost<float>>& cost,
                                 TargetSpec target, bool weighted, bool gradients);

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  DevicePrecision precision_;
  DeviceParameters parameters_;
  DeviceArray<double> results_;
  // The last few that were used, newest first.
  std::list<std::unique_ptr<DevicePlan>> plans_;
  std::list<std::unique_ptr<DeviceObjective>> objectives_, losses_;
};

// Perturbations of the inputs, `first` rows into dxs (per input rows or null), through the plan;
// rows of the outputs' into dys.
void push_rows(DeviceQueue& queue, DevicePlan& plan, const DeviceRun& run, Index first,
               const std::vector<const float*>& dxs, const std::vector<float*>& dys);

}  // namespace gradstack

// Derivatives beyond the training gradient on a device: the counterpart of calculus.hpp, from and
// to the host's memory. Batches go through in parts that fit a share of the device's memory; parts
// keep their plans between calls. Calls of one queue take turns.
#pragma once

#include <list>
#include <memory>
#include <vector>

#include "gradstack/calculus.hpp"
#include "gradstack/device_program.hpp"

namespace gradstack {

// d ybar / d variable for every sample, J_ij = d out_i / d in_j. A sample's rows (or columns, when
// there are fewer) go through the linearisation at once, as rows of one batch.
class DeviceJacobian {
 public:
  // wrt: as for Jacobian<T>.
  DeviceJacobian(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue, int wrt,
                 std::size_t output);
  Index rows() const { return out_; }
  Index cols() const { return in_; }
  void evaluate(const float* w, const std::vector<RowSource>& x, Index count, float* jacobian, int);

 private:
  struct Part {  // samples of a plan, and directions of each
    Index samples, directions;
  };
  Part part(Index count) const;
  DevicePlan& plan_for(Part part);
  void seed(Index first, Index directions);
  void reverse(DevicePlan& plan, DeviceRun run, float* to);
  void forward(DevicePlan& plan, const DeviceRun& run, float* to);

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  int wrt_, number_, output_;
  Index in_, out_;
  bool forward_mode_;
  DeviceParameters parameters_;
  std::list<std::unique_ptr<DevicePlan>> plans_;
  DeviceArray<float> seeds_, result_;
};

// Quantities of the per-sample gradients g_b = dL(x_b, y_b, w)/dw (not divided by B).
class DevicePerSample {
 public:
  DevicePerSample(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                  std::shared_ptr<const Cost<float>> cost, TargetSpec target);

  void gradients(const float* w, const Batch& batch, float* rows, int);
  void norms(const float* w, const Batch& batch, float* norms, int);
  void clipped(const float* w, const Batch& batch, double max_norm, float* dw, int);
  void fisher_diagonal(const float* w, const Batch& batch, float* diagonal, int);
  void fisher_product(const float* w, const Batch& batch, const float* v, float* product, int);

 private:
  template <class F>
  void each_part(const float* w, const Batch& batch, bool rows, bool tangents, F&& f);
  DeviceObjective& objective_for(Index count, bool tangents);
  void squared_norms(DeviceObjective& objective, float* host);
  void weighted_backward(DeviceObjective& objective, DeviceRun run, const float* factors);

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  std::shared_ptr<const Cost<float>> cost_;
  TargetSpec target_;
  DeviceParameters parameters_;
  std::list<std::unique_ptr<DeviceObjective>> objectives_;
  DeviceArray<float> rows_, sums_, scratch_;
  double scale_ = 1;  // of a sample's gradient in its own loss
};

// Products with the generalised Gauss-Newton matrix of the average loss, J^T (d2C/dybar2) J v.
class DeviceGaussNewton {
 public:
  DeviceGaussNewton(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                    std::shared_ptr<const Cost<float>> cost, TargetSpec target);
  void product(const float* w, const Batch& batch, const float* v, float* product, int);

 private:
  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  std::shared_ptr<const Cost<float>> cost_;
  TargetSpec target_;
  DeviceParameters parameters_;
  std::list<std::unique_ptr<DeviceObjective>> objectives_;
};

// Second moments of what linear blocks see: sums over a batch of [z 1]^T [z 1], z the input (no 1
// without a bias), and of ds^T ds, ds the gradients at the output s. Products are summed in float32
// within a part of the batch, parts in double.
class DeviceMoments {
 public:
  DeviceMoments(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                std::vector<int> blocks);
  // dybar: so many gradients at the output per sample, (count, directions, d), on the host. Per
  // block: z (in [+ 1], squared) and ds (out, out), which are added to.
  void evaluate(const float* w, const std::vector<RowSource>& x, Index count, const float* dybar,
                Index directions, const std::vector<double*>& z, const std::vector<double*>& ds);
  const Graph& graph() const { return *graph_; }
  const std::vector<int>& blocks() const { return blocks_; }
  Index inputs(int block) const;
  Index outputs(int block) const;

 private:
  DevicePlan& plan_for(Index samples, Index directions);
  void add(Index rows, Index d, const float* v, bool sums, double* to);

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  std::vector<int> blocks_;
  DeviceParameters parameters_;
  std::list<std::unique_ptr<DevicePlan>> plans_;
  DeviceArray<float> product_;
  std::vector<float> made_;
};

}  // namespace gradstack

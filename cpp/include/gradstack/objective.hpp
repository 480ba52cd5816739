// C(y, G(x, w)) and its gradient on batches of the caller's data.
#pragma once

#include <memory>
#include <vector>

#include "gradstack/cost.hpp"
#include "gradstack/data.hpp"
#include "gradstack/plan.hpp"
#include "gradstack/updater.hpp"

namespace gradstack {

// What the targets look like: dense rows of `dy` values, or labels.
struct TargetSpec {
  Index dy = 0;
  bool labels = false;
};

// Normaliser of the average loss over a batch: sum of sample weight times Cost::normaliser.
template <class T> double total_weight(const Cost<T>& cost, const Batch& batch);

// One plan with its cost and targets. Members taking a Worker are SPMD.
template <class T> class Objective {
 public:
  Objective(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels, PlanOptions options,
            std::shared_ptr<const Cost<T>> cost, TargetSpec target);

  // Selects samples [first, first + count) of the batch; leader only, before a barrier.
  // `scale` is what a sample of weight 1 multiplies its gradient with.
  void select(const Batch& batch, Index first, Index count, double scale);
  // Gathers the samples selected. Rows that are not finite are noted when `check_finite`.
  void load(const Batch& batch, const Worker& worker, bool check_finite);
  // Forward and cost: losses, and (when planned) the gradient of the outputs. Ends with a barrier.
  void evaluate(const Run<T>& run, const Worker& worker);
  void backward(const Run<T>& run, const Worker& worker) { plan_.backward(run, worker); }
  // dw (+)= sum over the samples of factor[s] * gradient of s, after evaluate.
  void weighted_backward(const Run<T>& run, const Worker& worker, const T* factor, T* dw,
                         bool accumulate);
  // After plan().forward and push: the output's gradient becomes (d2C/dybar2) (its tangent), and
  // with `gradient` the gradient of its tangent becomes dC/dybar. Ends with a barrier.
  void cost_curvature(const Run<T>& run, const Worker& worker, bool gradient);

  // Sum over the samples of weight * L, any worker after evaluate.
  double weighted_loss() const;
  // L of every sample, unweighted.
  const T* losses() const { return losses_; }
  // Row (of the caller's data) found not finite by the last load, or -1; any worker after evaluate.
  Index bad_row() const;
  Plan<T>& plan() { return plan_; }
  // The variable that the cost compares with the target.
  Variable<T>& compared();

 private:
  void load_block(const Batch& batch, Index block, bool check_finite);
  void load_targets(const Batch& batch, Index block);
  void cost(const Run<T>& run, const Worker& worker);
  CostArgs<T> cost_args(Index block, const Variable<T>& ybar);
  void evaluate_rows(const Run<T>& run);
  void curvature_rows(const Run<T>& run, bool gradient);
  void rows_of(const T* blocks, Index d, T* rows) const;
  void scaled_blocks_of(const T* rows, Index d, T* blocks) const;

  std::shared_ptr<const Cost<T>> cost_;
  TargetSpec target_;
  Plan<T> plan_;
  Arena arena_;
  int output_;
  Index first_ = 0;
  double scale_ = 1;
  // Per input: rows are used where they lie, one behind the other or (not null) each by itself.
  std::vector<char> direct_;
  std::vector<const T**> scattered_;
  T *targets_, *target_rows_, *weights_, *scales_, *losses_;
  T *rows_ybar_ = nullptr, *rows_grad_ = nullptr, *rows_v_ = nullptr;  // user costs
  std::int64_t* labels_;
  std::vector<double> block_loss_;
  std::vector<Index> block_bad_row_;
};

// Average loss and gradient of whole batches, scheduled by shape (never by thread count):
//   tiles:  one plan, every layer's output tiles shared among the workers;
//   chunks: narrow nets with large batches; fixed chunks of samples run through all layers by one
//           worker each, into a fixed number of gradient slots that are reduced in slot order.
template <class T> class BatchGradient {
 public:
  BatchGradient(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                std::shared_ptr<const Cost<T>> cost, TargetSpec target, Index batch, int workers,
                std::vector<char> frozen);

  struct Result {
    double loss = 0;     // average (or sum) over the batch
    double weight = 0;   // its normaliser
    Index bad_row = -1;  // a row that is not finite
    bool updated = false;
  };
  // SPMD. run.dw receives the gradient. With run.updater the parameters are updated, unless the
  // loss is not finite (and `allow_non_finite` is off), a row is bad, or the team was stopped. All
  // workers get the same result.
  Result run(const Run<T>& run, const Batch& batch, const Worker& worker, bool check_finite,
             bool allow_non_finite);
  int workers() const { return workers_; }
  // So many of the workers have something to do.
  int team() const;
  // Whether run honours Run::next_input.
  bool begins_next(const Run<T>& run) const;
  // Useful floating-point operations of one step on `batch` samples.
  double flops(Index batch) const;

 private:
  double unit(double weight) const;
  bool updates_at_once(const Run<T>& run, Index count) const;
  bool give_up(const Result& result, bool stopped, bool allow_non_finite) const;
  bool stopped(const Run<T>& run, const Worker& worker);
  Result run_tiles(const Run<T>& run, const Batch& batch, const Worker& worker, double weight,
                   bool check_finite, bool allow_non_finite);
  Result run_chunks(const Run<T>& run, const Batch& batch, const Worker& worker, double weight,
                    bool check_finite, bool allow_non_finite);
  void reduce_slots(T* dw, Index begin, Index n, Index slots, bool accumulate) const;

  std::shared_ptr<const Graph> graph_;
  const Kernels<T>& kernels_;
  std::shared_ptr<const Cost<T>> cost_;
  Index chunk_;
  bool chunked_;
  int workers_;
  std::vector<std::unique_ptr<Objective<T>>> objectives_;  // one, or one per worker
  std::vector<std::vector<T>> slots_;
  std::vector<double> slot_loss_;
  std::vector<Index> slot_bad_row_;
  bool stopped_ = false;  // what all workers have agreed on
};

extern template class Objective<float>;
extern template class Objective<double>;
extern template class BatchGradient<float>;
extern template class BatchGradient<double>;

}  // namespace gradstack

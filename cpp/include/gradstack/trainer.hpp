// Training: single steps on the user's batches, and epoch loops over the user's data.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "gradstack/objective.hpp"

namespace gradstack {

// The loss became NaN or infinite; the update of that step was not made.
class NonFiniteLoss : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The run was interrupted (Ctrl-C) between two updates.
class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("interrupted") {}
};

struct FitOptions {
  Index batch_size = 32;  // 0: the whole data set
  bool shuffle = true;
  std::uint64_t seed = 0;
  int threads = 0;                // 0: automatic
  bool check_finite = false;      // look at every row as it is gathered (memory maps)
  bool allow_non_finite = false;  // carry on when the loss is not finite
};

// Where an epoch loop is. Restoring it resumes with the same bits.
struct Position {
  std::int64_t epoch = 0;               // finished epochs
  std::int64_t step_in_epoch = 0;       // finished steps of the current epoch
  std::int64_t step = 0;                // finished steps in all
  double loss_sum = 0, weight_sum = 0;  // of the current epoch

  // Counts a step; `finished` receives the average loss of an epoch that ends with it.
  void close_step(double loss, double weight, Reduction reduction, Index steps_per_epoch,
                  std::vector<double>& finished) {
    loss_sum += reduction == Reduction::Mean ? loss * weight : loss;
    weight_sum += weight;
    ++step;
    if (++step_in_epoch < steps_per_epoch) return;
    finished.push_back(loss_sum / weight_sum);
    ++epoch;
    step_in_epoch = 0;
    loss_sum = weight_sum = 0;
  }
};

template <class T> class Trainer {
 public:
  Trainer(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
          std::shared_ptr<const Cost<T>> cost, std::shared_ptr<Optimizer<T>> optimizer,
          std::vector<char> frozen);

  // One step on a batch; returns its loss before the step. Throws NonFiniteLoss (w untouched).
  double step(T* w, const Batch& batch, TargetSpec target, double lr, int threads, bool train,
              std::uint64_t seed);

  // Opens an epoch loop over `data` (all rows; index is ignored). The data and w outlive the loop.
  void begin(T* w, const Batch& data, TargetSpec target, const FitOptions& options);
  // Makes n steps with these learning rates, crossing ends of epochs; returns the average losses of
  // the epochs that ended. `interrupted` is polled about every 50 ms on the calling thread.
  std::vector<double> run(const double* lrs, Index n, const std::function<bool()>& interrupted);

  Position position;
  double last_loss = 0;
  Index steps_per_epoch() const;
  const Graph& graph() const { return *graph_; }

 private:
  BatchGradient<T>& gradient_for(Index batch, TargetSpec target, int workers);
  int workers_for(Index batch, int requested) const;
  void open_step();
  const T* next_sample() const;
  void close_step(const typename BatchGradient<T>::Result& result, std::vector<double>& finished);
  [[noreturn]] void fail(const typename BatchGradient<T>::Result& result) const;

  std::shared_ptr<const Graph> graph_;
  const Kernels<T>& kernels_;
  std::shared_ptr<const Cost<T>> cost_;
  std::shared_ptr<Optimizer<T>> optimizer_;
  std::vector<char> frozen_;
  Updater<T> updater_;
  std::vector<T> dw_;
  // The plans of the last batch size used.
  std::unique_ptr<BatchGradient<T>> gradient_;
  Index gradient_batch_ = 0;
  TargetSpec gradient_target_;
  // The epoch loop.
  T* w_ = nullptr;
  Batch data_, batch_;
  TargetSpec target_;
  FitOptions options_;
  std::vector<Index> order_;
  std::int64_t order_epoch_ = -1;
};

extern template class Trainer<float>;
extern template class Trainer<double>;

}  // namespace gradstack

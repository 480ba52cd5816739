#include "gradstack/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "gradstack/random.hpp"

namespace gradstack {
namespace {

// Without the sign of a NaN, which says nothing.
std::string name_of(double loss) { return std::isnan(loss) ? "nan" : std::to_string(loss); }

}  // namespace

template <class T>
Trainer<T>::Trainer(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                    std::shared_ptr<const Cost<T>> cost, std::shared_ptr<Optimizer<T>> optimizer,
                    std::vector<char> frozen)
    : graph_(std::move(graph)),
      kernels_(kernels),
      cost_(std::move(cost)),
      optimizer_(std::move(optimizer)),
      frozen_(std::move(frozen)),
      updater_(*graph_, kernels_, *optimizer_, frozen_),
      dw_(static_cast<std::size_t>(graph_->n_params())) {}

template <class T> int Trainer<T>::workers_for(Index batch, int requested) const {
  // A single sample never pays for a barrier.
  if (batch == 1) return 1;
  return threads_for(6.0 * static_cast<double>(graph_->n_params()) * static_cast<double>(batch),
                     requested);
}

template <class T>
BatchGradient<T>& Trainer<T>::gradient_for(Index batch, TargetSpec target, int workers) {
  if (!gradient_ || gradient_batch_ != batch || gradient_->workers() != workers ||
      gradient_target_.dy != target.dy || gradient_target_.labels != target.labels) {
    gradient_ = std::make_unique<BatchGradient<T>>(graph_, kernels_, cost_, target, batch, workers,
                                                   frozen_);
    gradient_batch_ = batch;
    gradient_target_ = target;
  }
  return *gradient_;
}

template <class T>
double Trainer<T>::step(T* w, const Batch& batch, TargetSpec target, double lr, int threads,
                        bool train, std::uint64_t seed) {
  const int workers = workers_for(batch.count, threads);
  BatchGradient<T>& gradient = gradient_for(batch.count, target, workers);
  typename BatchGradient<T>::Result result;
  TeamError error;
  updater_.begin(w, lr);
  Run<T> run;
  run.w = w;
  run.dw = dw_.data();
  run.train = train;
  run.seed = seed;
  run.step = optimizer_->steps - 1;
  run.updater = &updater_;
  run.error = &error;
  run_team(gradient.team(), [&](const Worker& worker) {
    const auto mine = gradient.run(run, batch, worker, false, false);
    if (worker.leader()) result = mine;
  });
  if (!result.updated) updater_.cancel();
  error.rethrow();
  if (!result.updated)
    throw NonFiniteLoss("the loss is " + name_of(result.loss) + " at step " +
                        std::to_string(optimizer_->steps) + "; no update was made");
  last_loss = result.loss;
  return result.loss;
}

template <class T>
void Trainer<T>::begin(T* w, const Batch& data, TargetSpec target, const FitOptions& options) {
  if (data.count < 1) throw std::invalid_argument("X: expected at least one sample");
  w_ = w;
  data_ = data;
  data_.index = nullptr;
  data_.first = 0;
  batch_ = data_;
  target_ = target;
  options_ = options;
  if (options_.batch_size <= 0 || options_.batch_size > data.count)
    options_.batch_size = data.count;
  position = Position{};
  order_epoch_ = -1;
  order_.resize(options_.shuffle && options_.batch_size < data.count
                    ? static_cast<std::size_t>(data.count)
                    : 0);
}

template <class T> Index Trainer<T>::steps_per_epoch() const {
  return options_.batch_size > 0 ? (data_.count + options_.batch_size - 1) / options_.batch_size
                                 : 0;
}

// Selects the samples of the next step. A full batch needs no order.
template <class T> void Trainer<T>::open_step() {
  if (!order_.empty() && order_epoch_ != position.epoch) {
    permutation(options_.seed, static_cast<std::uint64_t>(position.epoch), data_.count,
                order_.data());
    order_epoch_ = position.epoch;
  }
  batch_.index = order_.empty() ? nullptr : order_.data();
  batch_.first = position.step_in_epoch * options_.batch_size;
  batch_.count = std::min(options_.batch_size, data_.count - batch_.first);
}

// Where the sample after this step's only one lies; null if it is not known yet or not usable as it
// is.
template <class T> const T* Trainer<T>::next_sample() const {
  const RowSource& x = data_.x[0];
  const bool known = position.step_in_epoch + 1 < steps_per_epoch();
  return known && is_native<T>(x) ? row_of<T>(x, batch_.row(1)) : nullptr;
}

template <class T>
void Trainer<T>::close_step(const typename BatchGradient<T>::Result& result,
                            std::vector<double>& finished) {
  last_loss = result.loss;
  position.close_step(result.loss, result.weight, cost_->reduction(), steps_per_epoch(), finished);
}

template <class T> void Trainer<T>::fail(const typename BatchGradient<T>::Result& result) const {
  const std::string where = "epoch " + std::to_string(position.epoch) + ", step " +
                            std::to_string(position.step_in_epoch) + " (step " +
                            std::to_string(position.step) + " in all)";
  if (result.bad_row >= 0)
    throw std::invalid_argument("X or y: row " + std::to_string(result.bad_row) +
                                " holds NaN or infinity, expected finite values");
  throw NonFiniteLoss("the loss is " + name_of(result.loss) + " at " + where +
                      "; the weights are those before that step");
}

template <class T>
std::vector<double> Trainer<T>::run(const double* lrs, Index n,
                                    const std::function<bool()>& interrupted) {
  if (!w_) throw std::invalid_argument("run: begin() comes first");
  const int workers = workers_for(options_.batch_size, options_.threads);
  BatchGradient<T>& gradient = gradient_for(options_.batch_size, target_, workers);
  std::vector<double> finished;
  finished.reserve(static_cast<std::size_t>(n / steps_per_epoch() + 1));
  typename BatchGradient<T>::Result last;
  bool complete = true;
  TeamError error;
  Poll poll(interrupted, error);
  Run<T> run;
  run.w = w_;
  run.dw = dw_.data();
  run.train = true;
  run.seed = options_.seed;
  run.updater = &updater_;
  run.error = &error;
  const bool begins_next = options_.batch_size == 1 && gradient.begins_next(run);
  run_team(gradient.team(), [&](Worker worker) {
    worker.stop = &error;
    if (worker.leader()) worker.poll = &poll;
    for (Index i = 0; i < n; ++i) {
      if (worker.leader()) {
        open_step();
        updater_.begin(w_, lrs[i]);
        run.step = position.step;
        run.begun = run.next_input != nullptr;
        run.next_input = begins_next && i + 1 < n ? next_sample() : nullptr;
      }
      worker.sync();
      const auto result =
          gradient.run(run, batch_, worker, options_.check_finite, options_.allow_non_finite);
      if (worker.leader()) {
        last = result;
        complete = result.updated;
        if (result.updated)
          close_step(result, finished);
        else
          updater_.cancel();
      }
      if (!result.updated) break;
    }
  });
  error.rethrow();
  if (error.stopped()) throw Interrupted();
  if (!complete) fail(last);
  return finished;
}

template class Trainer<float>;
template class Trainer<double>;

}  // namespace gradstack

// A graph ready to be called: predictions, both products with the Jacobian, losses and gradients.
// Thread safe: plans are pooled, every call works on plans of its own.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "gradstack/objective.hpp"

namespace gradstack {

// Options of a call. Dropout is active when `train`, with masks drawn for (seed, step, sample).
struct CallOptions {
  bool train = false;
  std::uint64_t seed = 0;
  std::int64_t step = 0;
  int threads = 0;  // 0: automatic
};

// A point (x, w) with its activations kept: the Jacobian's products there, as often as wanted.
template <class T> class Linearization {
 public:
  // x: rows of every input. Copies w.
  Linearization(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels, const T* w,
                const std::vector<RowSource>& x, Index count, bool tangents, CallOptions options);

  Index count() const { return plan_.count(); }
  void output(std::size_t i, T* rows);  // (count, d)
  // dys: per output (count, d) rows or null; dxs: per input rows or null; dw (P,) or null.
  void vjp(const std::vector<const T*>& dys, const std::vector<T*>& dxs, T* dw);
  // dxs: per input rows or null; dw (P,) or null; dys: per output rows. Planned with tangents only.
  void jvp(const std::vector<const T*>& dxs, const T* dw, const std::vector<T*>& dys);
  const Graph& graph() const { return plan_.graph(); }

 private:
  void call(const std::function<void(const Worker&)>& body);

  Plan<T> plan_;
  CallOptions options_;
  std::vector<T> w_;
  std::vector<std::vector<T>> x_;
  Run<T> run_;
  int workers_;
};

template <class T> class Program {
 public:
  Program(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels);
  ~Program();

  // outs: per output (count, d) rows.
  void forward(const T* w, const std::vector<RowSource>& x, Index count,
               const std::vector<T*>& outs, CallOptions options);
  // The same from rows of T without gaps, one array per input; for one sample nothing is allocated.
  void forward(const T* w, const T* const* x, Index count, T* const* outs, CallOptions options);
  // Average loss (or sum, see Cost::reduction) of a batch; dw (P,) receives its gradient.
  double value_and_grad(const T* w, const Batch& batch, TargetSpec target,
                        std::shared_ptr<const Cost<T>> cost, T* dw, CallOptions options);
  // Average loss over data of any size, without gradient.
  double evaluate(const T* w, const Batch& data, TargetSpec target,
                  std::shared_ptr<const Cost<T>> cost, CallOptions options);

  const Graph& graph() const { return *graph_; }
  const std::shared_ptr<const Graph>& shared_graph() const { return graph_; }
  const Kernels<T>& kernels() const { return kernels_; }

 private:
  template <class Bind>
  void run(const T* w, Bind&& bind, Index count, T* const* outs, CallOptions options);
  void copy_outputs(const Plan<T>& plan, const Worker& worker, Index first, T* const* outs) const;
  std::unique_ptr<Plan<T>> acquire(Index capacity);
  void release(std::unique_ptr<Plan<T>> plan);

  std::shared_ptr<const Graph> graph_;
  const Kernels<T>& kernels_;
  bool whole_batch_;  // an opaque block must see all samples of a call at once
  std::mutex mutex_;
  std::vector<std::unique_ptr<Plan<T>>> pool_;
  std::atomic<Plan<T>*> single_{nullptr};       // owned: for one sample even a lock would be felt
  std::unique_ptr<BatchGradient<T>> gradient_;  // of the last kind of value_and_grad call
  std::shared_ptr<const Cost<T>> gradient_cost_;
  Index gradient_batch_ = 0;
  TargetSpec gradient_target_;
};

extern template class Linearization<float>;
extern template class Linearization<double>;
extern template class Program<float>;
extern template class Program<double>;

}  // namespace gradstack

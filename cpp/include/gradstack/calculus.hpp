// Derivatives beyond the training gradient: Jacobians, per-sample gradients, curvature products,
// second derivatives with respect to the input. Objects keep their plans between calls; one call at
// a time.
#pragma once

#include <memory>
#include <vector>

#include "gradstack/objective.hpp"
#include "gradstack/program.hpp"

namespace gradstack {

// d ybar / d variable for every sample, J_ij = d out_i / d in_j.
template <class T> class Jacobian {
 public:
  static constexpr int kParameters = -1;

  // wrt: the stage whose output is differentiated by (an input, or any variable), or kParameters.
  Jacobian(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels, int wrt,
           std::size_t output);
  ~Jacobian();

  Index rows() const { return out_; }  // features of the output
  Index cols() const { return in_; }   // features of the variable, or parameters
  // jacobian: (count, rows, cols).
  void evaluate(const T* w, const std::vector<RowSource>& x, Index count, T* jacobian, int threads);

 private:
  // What one worker computes with.
  struct Desk {
    std::unique_ptr<Plan<T>> plan;
    std::vector<T> above, active, size;  // see through_linear
    std::vector<Index> rows, n_active;
  };
  void chunk(Desk& desk, Run<T> run, const std::vector<RowSource>& x, Index first, Index count,
             T* to);
  void forward_mode(Plan<T>& plan, const Run<T>& run, T* to);
  std::vector<Desk>& desks(Index capacity, int workers);
  void reverse_mode(Desk& desk, const Run<T>& run, T* to);
  void through_linear(Desk& desk, const T* w, Index samples, T* to);
  void find_active(Desk& desk, Index s, Index inner);

  std::shared_ptr<const Graph> graph_;
  const Kernels<T>& kernels_;
  int wrt_, output_;
  Index in_, out_;
  bool forward_mode_;
  int linear_ = -1;  // the block through which alone the variable acts, if linear and dense
  std::vector<Desk> single_, blocks_;  // for one sample; for blocks of samples
};

// Quantities of the per-sample gradients g_b = dL(x_b, y_b, w)/dw (not divided by B).
template <class T> class PerSample {
 public:
  PerSample(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
            std::shared_ptr<const Cost<T>> cost, TargetSpec target);

  void gradients(const T* w, const Batch& batch, T* rows, int threads);  // (B, P)
  void norms(const T* w, const Batch& batch, T* norms, int threads);  // (B,), without the gradients
  // Mean of g_b min(1, max_norm / ||g_b||).
  void clipped(const T* w, const Batch& batch, double max_norm, T* dw, int threads);
  void fisher_diagonal(const T* w, const Batch& batch, T* diagonal, int threads);  // mean of g_b^2
  void fisher_product(const T* w, const Batch& batch, const T* v, T* product,
                      int threads);  // mean of g_b <g_b, v>

 private:
  template <class F> void each_chunk(const T* w, const Batch& batch, int threads, F&& f);
  Objective<T>& objective(Index count);
  // Calls f(first row of the chunk, gradients of `count` samples) where no closed form exists.
  bool additive() const;
  void squared_norms(const Run<T>& run, const Worker& worker, Objective<T>& objective, T* norms);
  void gradient_rows(const Run<T>& run, const Worker& worker, Objective<T>& objective, T* rows);

  std::shared_ptr<const Graph> graph_;
  const Kernels<T>& kernels_;
  std::shared_ptr<const Cost<T>> cost_;
  TargetSpec target_;
  std::unique_ptr<Objective<T>> objective_;
  std::vector<T> scratch_, factors_;
};

// Products with the Hessian and the generalised Gauss-Newton matrix of the average loss.
template <class T> class Curvature {
 public:
  enum class Kind { Hessian, GaussNewton };
  Curvature(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
            std::shared_ptr<const Cost<T>> cost, TargetSpec target, Kind kind);

  // product = H v, all of length P. Throws std::invalid_argument where second derivatives are
  // missing (blocks or costs defined by the user).
  void product(const T* w, const Batch& batch, const T* v, T* product, int threads);

 private:
  std::shared_ptr<const Graph> graph_;
  const Kernels<T>& kernels_;
  std::shared_ptr<const Cost<T>> cost_;
  TargetSpec target_;
  Kind kind_;
  std::unique_ptr<Objective<T>> objective_;
};

// y, dy/dx and the second derivatives along each input of a net with one input and one output at
// fixed x, and the exact pullback of a cotangent of all three.
template <class T> class InputDerivatives {
 public:
  InputDerivatives(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels, const T* w,
                   const RowSource& x, Index count, int order, int threads);

  void values(T* y);                           // (B, out)
  void directional(T* jacobian, T* diagonal);  // (B, out, in) each; diagonal may be null
  void hessian(T* hessian);                    // (B, out, in, in); order 1 suffices
  // Gradient of <dy, y> + <djac, jacobian> + <ddiag, diagonal>; null cotangents are zero.
  void pullback(const T* dy, const T* djac, const T* ddiag, T* dx, T* dw);
  Index count() const { return plan_.count(); }
  Index in() const { return in_; }
  Index out() const { return out_; }
  Index n_params() const { return plan_.graph().n_params(); }
  int order() const { return plan_.options().jet_order; }

 private:
  void aim(Index j, Index block);
  template <class F> void team(F&& body);

  Plan<T> plan_;
  std::vector<T> w_, x_;
  int input_, output_;
  Index in_, out_;
  int workers_;
  Run<T> run_;
};

extern template class Jacobian<float>;
extern template class Jacobian<double>;
extern template class PerSample<float>;
extern template class PerSample<double>;
extern template class Curvature<float>;
extern template class Curvature<double>;
extern template class InputDerivatives<float>;
extern template class InputDerivatives<double>;

}  // namespace gradstack

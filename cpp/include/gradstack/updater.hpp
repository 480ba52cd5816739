// An update rule at work on a parameter vector: state, constants of the step, clipping, weight
// decay per parameter, masks and frozen parameters.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gradstack/backend.hpp"
#include "gradstack/graph.hpp"
#include "gradstack/parallel.hpp"
#include "gradstack/updates.hpp"

namespace gradstack {

struct OptimizerOptions {
  double clip_norm = 0;   // 0: none
  double clip_value = 0;  // 0: none
  bool decay_bias = true;
};

// Rule, hyperparameters and state; owned by the user's optimiser object and kept across fits.
template <class T> class Optimizer {
 public:
  // Throws std::invalid_argument for an unknown rule or a wrong number of hyperparameters.
  Optimizer(const std::string& rule, std::vector<double> hyper, Index n_params,
            OptimizerOptions options);

  int rule() const { return rule_; }
  Index n_params() const { return n_params_; }
  int n_state() const;
  const OptimizerOptions& options() const { return options_; }
  const std::vector<double>& hyper() const { return hyper_; }
  T* state(int i) {
    return state_.data() + static_cast<std::size_t>(i) * static_cast<std::size_t>(n_params_);
  }
  std::vector<T>& state() { return state_; }
  std::vector<double>& scalars() { return scalars_; }
  std::int64_t steps = 0;  // done so far

 private:
  int rule_;
  std::vector<double> hyper_;
  Index n_params_;
  OptimizerOptions options_;
  std::vector<T> state_;
  std::vector<double> scalars_;
};

// The rule's constants of step `optimizer.steps + 1`, which becomes the current one.
template <class T>
void open_step(Optimizer<T>& optimizer, double lr, double* with_decay, double* without_decay);

template <class T> class Updater {
 public:
  Updater(const Graph& graph, const Kernels<T>& kernels, Optimizer<T>& optimizer,
          const std::vector<char>& frozen);

  // Opens step `optimizer.steps + 1` on w: computes the rule's constants. One worker.
  void begin(T* w, double lr);
  // Takes `begin` back: the step was not made. One worker.
  void cancel();
  // Gradient of values [offset, offset + n) of a parameter is complete: update them.
  // Only when `fusable()`.
  void apply(int parameter, Index offset, Index n, T* g);
  // The same for `rows` rows of n values whose gradient is y x^T, which is not written down.
  // False, and nothing done, where it has to be.
  bool apply_outer(int parameter, Index offset, Index rows, Index n, const T* y, const T* x);
  // Updates everything from the whole gradient. SPMD; ends with a barrier.
  void apply_all(const Worker& worker, T* g);
  // Work divided in pieces for callers that complete the gradient piece by piece.
  Index pieces() const { return static_cast<Index>(pieces_.size()); }
  void apply_piece(Index piece, T* g);
  void piece_range(Index piece, Index* begin, Index* n) const;
  // Bits of EntryUpdate for every entry of w, n_params of them.
  void entries(std::uint8_t* what) const;
  // False if the whole gradient must be known before any of it is used (clipping by norm).
  bool fusable() const { return optimizer_.options().clip_norm == 0; }

 private:
  struct Piece {
    int parameter;
    Index offset, n;
  };
  UpdateArgs<T> arguments(int parameter, Index offset);
  void clip_value(T* g, Index n) const;
  void clip_norm(const Worker& worker, T* g);

  const Graph& graph_;
  const Kernels<T>& k_;
  Optimizer<T>& optimizer_;
  std::vector<char> frozen_;
  std::vector<char> is_bias_;                            // per parameter
  std::vector<const std::vector<std::uint8_t>*> masks_;  // per parameter, null: none
  std::vector<Piece> pieces_;
  std::vector<double> piece_norms_;
  T* w_ = nullptr;
  std::vector<double> scalars_before_;
  double with_decay_[kMaxUpdateConstants] = {}, without_decay_[kMaxUpdateConstants] = {};
};

extern template class Optimizer<float>;
extern template class Optimizer<double>;
extern template class Updater<float>;
extern template class Updater<double>;

}  // namespace gradstack

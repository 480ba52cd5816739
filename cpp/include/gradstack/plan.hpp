// A graph compiled for a batch size, a dtype, a backend and a set of wanted results. All memory is
// allocated here; running allocates nothing.
//
// Every member function that takes a Worker is SPMD: all workers of a team call it together.
#pragma once

#include <memory>
#include <vector>

#include "gradstack/arena.hpp"
#include "gradstack/backend.hpp"
#include "gradstack/fusion.hpp"
#include "gradstack/graph.hpp"
#include "gradstack/parallel.hpp"

namespace gradstack {

template <class T> class Block;
template <class T> struct LinearSpec;
template <class T> class Updater;

// What one run works on. `dw` has the layout of w; null when no parameter gradient is wanted.
template <class T> struct Run {
  const T* w = nullptr;
  T* dw = nullptr;
  bool accumulate = false;  // dw += instead of dw =
  bool train = false;       // dropout active
  std::uint64_t seed = 0;   // dropout stream
  std::int64_t step = 0;
  Index first_sample = 0;         // position of the plan's first sample in the batch
  bool same_inputs = false;       // those of the forward pass before: not gathered again
  const T* tangent_w = nullptr;   // direction of the parameters in push; null: zero
  Updater<T>* updater = nullptr;  // set: parameters are updated as soon as their dw is complete
  // Single samples: the input of the run after this one, whose first product is then made while the
  // updated weights are at hand; and that the run before has done so for this one.
  const T* next_input = nullptr;
  bool begun = false;
  TeamError* error = nullptr;
};

// A per-sample variable of the graph: the output of one stage, [block][d][lanes].
template <class T> struct Variable {
  Index d = 0;
  T* value = nullptr;
  T* grad = nullptr;  // dC/dvalue; null when not wanted
  // Jets: first and second derivative along the direction of the run, null where not planned or
  // identically zero, and the gradients with respect to them.
  T* tangent = nullptr;
  T* second = nullptr;
  T* grad_tangent = nullptr;
  T* grad_second = nullptr;
  // The same with samples as rows, in tiles of kPanel features: [block][panel][lanes][kPanel]. The
  // second operand of dW; null where no block asks for it. With one lane the values serve as tiles.
  T* tiles = nullptr;
  T* tangent_tiles = nullptr;
  T* second_tiles = nullptr;

  Index panels() const { return (d + kPanel - 1) / kPanel; }
};

// The caller's samples of an input: `ld` values apart, or (each not null) wherever they lie.
template <class T> struct InputRows {
  const T* rows = nullptr;
  Index ld = 0;
  const T* const* each = nullptr;
};

struct PlanOptions {
  Index batch = 1;
  bool fuse = true;       // false: every stage keeps its own value and gradient
  bool gradients = true;  // allocate for backward
  bool want_dx = false;   // gradients of the inputs
  bool want_dw = true;    // gradients of the parameters
  int want_stage = -1;    // gradient of this stage's output
  // Jets (not fused when they have a backward or are of second order).
  int jet_order = 0;                // 1: tangents, 2: second derivatives as well
  bool input_tangents = true;       // directions of the inputs
  bool parameter_tangents = false;  // a direction of the parameters (Run::tangent_w)
  bool jet_gradients = false;       // allocate for backward_jet
  std::vector<char> frozen;         // per parameter: its gradient is not wanted (empty: none)
};

// Samples per block of a plan for `batch` samples, with kernels of `vector` lanes.
Index lanes_for(Index vector, Index batch);

// How large a plan to make so that it serves all batches with blocks like those of `batch`; kLanes:
// as large as one likes.
Index capacity_for(Index vector, Index batch);

template <class T> class Plan {
 public:
  Plan(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels, PlanOptions options);
  ~Plan();
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // The number of samples of the next run, 1..options.batch.
  void set_count(Index count);
  Index count() const { return count_; }
  Index blocks() const { return n_blocks_; }
  Index lanes() const { return lanes_; }
  Index block_samples(Index block) const;  // samples in a block: lanes except in the last one

  // Input i of the next run is rows of `ld` values; they stay valid until the run has ended. Comes
  // after set_count. (A few rows that do not lie behind one another are copied now.)
  void bind_input(std::size_t i, const T* rows, Index ld);
  // The same for rows that lie apart; more than one lane. The caller writes where each one is to
  // what is returned.
  const T** bind_scattered(std::size_t i);
  // Plan-owned rows for input i, to be filled by the caller.
  T* input_rows(std::size_t i);

  void forward(const Run<T>& run, const Worker& worker);
  // From the gradients of the outputs (`variable(output).grad`) to those of everything wanted.
  void backward(const Run<T>& run, const Worker& worker);
  // Derivatives of all variables along `variable(input).tangent` and run.tangent_w; after forward.
  // Second derivatives belong to straight lines: those of the inputs are zero.
  void push(const Run<T>& run, const Worker& worker);
  // The gradient of a function of the outputs and of their derivatives, from `grad`, `grad_tangent`
  // and `grad_second` of the outputs; after push.
  void backward_jet(const Run<T>& run, const Worker& worker);

  // Per-sample parameter gradients, each with a backward pass from the outputs' gradients. SPMD;
  // complete on return. Except for the first, no parameter may be shared.
  void per_sample_gradients(const Run<T>& run, const Worker& worker, T* rows, Index ld);
  void per_sample_squared_norms(const Run<T>& run, const Worker& worker, T* norms);
  void per_sample_products(const Run<T>& run, const Worker& worker, const T* v, T* products);
  void per_sample_squares(const Run<T>& run, const Worker& worker, T* sum, bool accumulate);

  // The output of a stage. A view (reshape) is the variable that it views.
  Variable<T>& variable(int stage) { return variables_[index(fusion_.base[index(stage)])]; }
  const Variable<T>& variable(int stage) const {
    return variables_[index(fusion_.base[index(stage)])];
  }
  // Vector quantisation: the output is a Nearest block; its cost compares the prototype chosen
  // (this variable) with the block's input. Null for every other graph.
  Variable<T>* chosen_prototype() { return chosen_.get(); }

  const Graph& graph() const { return *graph_; }
  const Kernels<T>& kernels() const { return kernels_; }
  const PlanOptions& options() const { return options_; }
  // Some parameter belongs to two blocks: its gradient is complete only at the end of backward.
  bool shares_parameters() const { return shares_parameters_; }
  // Some block can make the first product of the next run (Run::next_input).
  bool begins_next() const;

 private:
  static std::size_t index(int id) { return static_cast<std::size_t>(id); }
  bool wants_dw(int parameter) const;
  template <class F> void backward_each(const Run<T>& run, const Worker& worker, F&& f);
  void find_shared_parameters();
  void find_wanted_gradients();
  void find_tangents();
  void allocate();
  void build_linear_specs();
  void build_blocks();
  std::unique_ptr<Block<T>> make_block(int stage, std::vector<char>& written,
                                       std::vector<char>& parameter_written);

  std::shared_ptr<const Graph> graph_;
  const Kernels<T>& kernels_;
  PlanOptions options_;
  Index lanes_, count_, n_blocks_;
  Arena arena_;
  Fusion fusion_;
  std::vector<char> wants_grad_, needs_tiles_, has_tangent_;  // per base
  std::vector<Variable<T>> variables_;
  std::vector<std::unique_ptr<LinearSpec<T>>> linear_;  // per stage, null for other kinds
  std::vector<std::unique_ptr<Block<T>>> blocks_;       // in order of execution
  std::vector<T*> owned_rows_;                          // per input
  std::vector<std::vector<const T*>> scattered_;        // per input
  std::vector<InputRows<T>> bound_;                     // per input
  std::unique_ptr<Variable<T>> chosen_;
  std::vector<int> parameter_uses_;  // blocks that a parameter belongs to
  bool shares_parameters_ = false;
  bool has_masks_ = false;
};

extern template class Plan<float>;
extern template class Plan<double>;

}  // namespace gradstack

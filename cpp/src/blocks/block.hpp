// The calculus of one kind of block on planned memory: forward, backward (both Jacobians applied to
// the cotangent) and jvp. Plan decides which buffers exist; a null gradient is not wanted.
#pragma once

#include <memory>

#include "gradstack/plan.hpp"

namespace gradstack {

// The part of a plan that changes from run to run, and the kernels.
template <class T> struct Geometry {
  const Plan<T>* plan;
  const Kernels<T>* k;
  Index lanes() const { return plan->lanes(); }
  Index blocks() const { return plan->blocks(); }
};

// One input of a block: the variable, and whether its gradient is added to (another consumer has
// written it already) or written.
template <class T> struct In {
  Variable<T>* v = nullptr;
  bool accumulate = false;
};

template <class T> class Block {
 public:
  explicit Block(Geometry<T> geometry) : g(geometry) {}
  virtual ~Block() = default;

  // Work that must be complete before any worker runs forward (masked weights).
  virtual void prepare(const Run<T>&, const Worker&) {}
  virtual void forward(const Run<T>& run, const Worker& worker) = 0;
  // Gradients of the inputs from the gradient of the output.
  virtual void backward_data(const Run<T>& run, const Worker& worker) = 0;
  // Gradients of the parameters; may run while the blocks before this one do backward_data.
  virtual void backward_weights(const Run<T>&, const Worker&) {}

  // Derivatives of the output along the run's direction (Variable::tangent, ::second).
  virtual void push(const Run<T>& run, const Worker& worker) = 0;
  // Gradients of the input's value, tangent and second derivative from those of the output: the
  // adjoint of forward and push together. On unfused plans.
  virtual void backward_jet(const Run<T>& run, const Worker& worker) = 0;
  virtual void backward_jet_weights(const Run<T>&, const Worker&) {}

  // Per-sample parameter gradients g_s, after backward_data. Blocks without parameters have none.
  // rows + s * ld is the gradient of sample s, in the layout of w.
  virtual void per_sample_gradients(const Worker&, T* /*rows*/, Index /*ld*/) {}
  // norms[s] += ||g_s||^2; products[s] += <g_s, v>; sum += sum of g_s^2 (or = on the first chunk).
  virtual void per_sample_squared_norms(const Worker&, T* /*norms*/) {}
  virtual void per_sample_products(const Worker&, const T* /*v*/, T* /*products*/) {}
  virtual void per_sample_squares(const Worker&, T* /*sum*/, bool /*accumulate*/) {}

 protected:
  Geometry<T> g;
};

// Pointwise function with its parameters.
struct Pointwise {
  int op = -1;
  const double* params = nullptr;
};

template <class T> struct LinearSpec {
  In<T> in;
  Variable<T>* s = nullptr;    // output of the linear block itself (may be z's memory)
  Variable<T>* out = nullptr;  // z = h(s) when fused, else s
  Pointwise fused;             // op < 0: none
  bool keeps_s = true;         // s survives forward (false: overwritten by z in place)
  bool consumer_applies_derivative = false;  // out->grad already holds dC/ds
  // The block that produced `in` fused a pointwise function and leaves h' to us.
  const LinearSpec* producer = nullptr;
  const Parameter* weight = nullptr;
  const Parameter* bias = nullptr;
  const std::vector<std::uint8_t>* mask = nullptr;
  int weight_id = -1, bias_id = -1;
  bool want_dw = false, want_db = false;
  bool accumulate_dw = false, accumulate_db = false;  // another block has written this gradient
  bool make_tiles = false;                            // of the input, for dW
  bool begins = false;          // reads the net's input, one sample at a time: see Run::next_input
  bool make_jet_tiles = false;  // and of its derivatives
};

template <class T> struct SparseSpec {
  In<T> in;
  Variable<T>* out = nullptr;
  const Connectivity* edges = nullptr;
  const Parameter* weight = nullptr;
  const Parameter* bias = nullptr;
  int weight_id = -1, bias_id = -1;
  bool want_dw = false, want_db = false;
  bool accumulate_dw = false, accumulate_db = false;  // another block has written this gradient
};

template <class T>
std::unique_ptr<Block<T>> make_linear(Geometry<T> g, const LinearSpec<T>* spec, Arena& arena);
template <class T> std::unique_ptr<Block<T>> make_sparse(Geometry<T> g, const SparseSpec<T>& spec);
template <class T>
std::unique_ptr<Block<T>> make_pointwise(Geometry<T> g, In<T> in, Variable<T>* out, Pointwise f);
template <class T>
std::unique_ptr<Block<T>> make_binary(Geometry<T> g, Kind kind, In<T> a, In<T> b, Variable<T>* out);
template <class T>
std::unique_ptr<Block<T>> make_concat(Geometry<T> g, std::vector<In<T>> in, Variable<T>* out);
template <class T>
std::unique_ptr<Block<T>> make_slice(Geometry<T> g, In<T> in, Index begin, Variable<T>* out);
template <class T>
std::unique_ptr<Block<T>> make_softmax(Geometry<T> g, In<T> in, Variable<T>* out, bool log,
                                       Arena& arena);
template <class T>
std::unique_ptr<Block<T>> make_dropout(Geometry<T> g, In<T> in, Variable<T>* out, double rate,
                                       int stage);
template <class T>
std::unique_ptr<Block<T>> make_nearest(Geometry<T> g, In<T> in, Variable<T>* out,
                                       Variable<T>* chosen, const Parameter* weight, int weight_id,
                                       bool want_dw, bool accumulate_dw, Arena& arena);
template <class T>
std::unique_ptr<Block<T>> make_opaque(Geometry<T> g, In<T> in, Variable<T>* out, const Stage& stage,
                                      Arena& arena);

}  // namespace gradstack

// One forward and backward pass of a Plan, seen as rows.
#pragma once

#include <vector>

#include "gradstack/plan.hpp"
#include "support/numbers.hpp"

namespace test {

// Where feature j of sample i lies in blocks of d features.
template <class T> Index block_position(const gradstack::Plan<T>& plan, Index i, Index j, Index d) {
  return (i / plan.lanes() * d + j) * plan.lanes() + i % plan.lanes();
}

template <class T>
std::vector<T> rows_of_blocks(const gradstack::Plan<T>& plan, const T* blocks, Index d) {
  std::vector<T> result(at(plan.count() * d));
  for (Index i = 0; i < plan.count(); ++i)
    for (Index j = 0; j < d; ++j) result[at(i * d + j)] = blocks[block_position(plan, i, j, d)];
  return result;
}

// dC/doutput = rows, zero in padding lanes.
template <class T>
void set_gradient(gradstack::Plan<T>& plan, int stage, const std::vector<T>& rows) {
  gradstack::Variable<T>& v = plan.variable(stage);
  for (Index i = 0; i < plan.blocks() * plan.lanes(); ++i)
    for (Index j = 0; j < v.d; ++j)
      v.grad[block_position(plan, i, j, v.d)] = i < plan.count() ? rows[at(i * v.d + j)] : T(0);
}

template <class T> struct Passes {
  std::vector<std::vector<T>> outputs, dxs;
  std::vector<T> dw;

  bool operator==(const Passes& other) const {
    for (std::size_t k = 0; k < outputs.size(); ++k)
      if (!same_bits(outputs[k], other.outputs[k])) return false;
    for (std::size_t k = 0; k < dxs.size(); ++k)
      if (!same_bits(dxs[k], other.dxs[k])) return false;
    return same_bits(dw, other.dw);
  }
};

// us: gradients of the outputs; outputs of one graph are distinct here. xs outlive the call.
template <class T>
Passes<T> run_passes(gradstack::Plan<T>& plan, const std::vector<T>& w,
                     const std::vector<std::vector<T>>& xs, const std::vector<std::vector<T>>& us,
                     Index count, int workers) {
  const Graph& graph = plan.graph();
  plan.set_count(count);
  for (std::size_t i = 0; i < xs.size(); ++i)
    plan.bind_input(i, xs[i].data(), gradstack::size_of(graph.stage(graph.inputs()[i]).shape));
  Passes<T> result;
  result.dw.assign(w.size(), T(0));
  gradstack::TeamError error;
  gradstack::Run<T> run;
  run.w = w.data();
  run.dw = result.dw.data();
  run.error = &error;
  gradstack::run_team(workers, [&](const gradstack::Worker& worker) { plan.forward(run, worker); });
  for (const int id : graph.outputs()) {
    const gradstack::Variable<T>& v = plan.variable(id);
    result.outputs.push_back(rows_of_blocks(plan, v.value, v.d));
  }
  for (std::size_t k = 0; k < us.size(); ++k) set_gradient(plan, graph.outputs()[k], us[k]);
  gradstack::run_team(workers,
                      [&](const gradstack::Worker& worker) { plan.backward(run, worker); });
  for (const int id : graph.inputs()) {
    const gradstack::Variable<T>& v = plan.variable(id);
    result.dxs.push_back(v.grad ? rows_of_blocks(plan, v.grad, v.d) : std::vector<T>{});
  }
  error.rethrow();
  return result;
}

}  // namespace test

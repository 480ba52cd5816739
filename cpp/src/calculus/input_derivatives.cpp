// Taylor mode: value, first and second derivative travel together along each input direction.
#include <algorithm>
#include <stdexcept>

#include "../rows.hpp"
#include "gradstack/calculus.hpp"

namespace gradstack {

template <class T>
InputDerivatives<T>::InputDerivatives(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                                      const T* w, const RowSource& x, Index count, int order,
                                      int threads)
    : plan_(graph, kernels,
            {.batch = count,
             .fuse = false,
             .gradients = true,
             .want_dx = true,
             .want_dw = true,
             .want_stage = -1,
             .jet_order = order,
             .input_tangents = true,
             .parameter_tangents = false,
             .jet_gradients = true,
             .frozen = {}}),
      w_(w, w + graph->n_params()),
      x_(static_cast<std::size_t>(count * x.cols)),
      input_(graph->inputs()[0]),
      output_(graph->outputs()[0]),
      in_(x.cols),
      out_(size_of(graph->stage(output_).shape)),
      workers_(count == 1 ? 1
                          : threads_for(6.0 * static_cast<double>(graph->n_params() * count * in_),
                                        threads)) {
  for (Index i = 0; i < count; ++i) gather_row(x, i, x_.data() + i * in_);
  plan_.bind_input(0, x_.data(), in_);
  run_.w = w_.data();
  team([&](const Worker& worker) { plan_.forward(run_, worker); });
}

template <class T> template <class F> void InputDerivatives<T>::team(F&& body) {
  TeamError error;
  run_.error = &error;
  run_team(workers_, [&](const Worker& worker) { body(worker); });
  error.rethrow();
}

// The direction e_j in one block; second derivatives of the inputs stay zero.
template <class T> void InputDerivatives<T>::aim(Index j, Index block) {
  block_unit(plan_, j, in_, block, plan_.variable(input_).tangent);
}

template <class T> void InputDerivatives<T>::values(T* y) {
  for (Index b = 0; b < plan_.blocks(); ++b)
    block_out(plan_, plan_.variable(output_).value, out_, b, y, out_);
}

template <class T> void InputDerivatives<T>::directional(T* jacobian, T* diagonal) {
  const Variable<T>& y = plan_.variable(output_);
  const Index lanes = plan_.lanes();
  team([&](const Worker& worker) {
    for (Index j = 0; j < in_; ++j) {
      worker.for_each(plan_.blocks(), [&](Index b) { aim(j, b); });
      worker.sync();
      plan_.push(run_, worker);
      worker.for_each(plan_.count(), [&](Index s) {
        for (Index i = 0; i < out_; ++i) {
          const Index from = (s / lanes * out_ + i) * lanes + s % lanes,
                      to = (s * out_ + i) * in_ + j;
          if (jacobian) jacobian[to] = y.tangent[from];
          if (diagonal) diagonal[to] = y.second[from];
        }
      });
      worker.sync();
    }
  });
}

// Column j of the Hessian of y_i: the adjoint of the derivative along e_j, started at e_i.
template <class T> void InputDerivatives<T>::hessian(T* hessian) {
  const Variable<T>&y = plan_.variable(output_), &x = plan_.variable(input_);
  const Index lanes = plan_.lanes();
  run_.dw = nullptr;
  team([&](const Worker& worker) {
    for (Index j = 0; j < in_; ++j) {
      worker.for_each(plan_.blocks(), [&](Index b) { aim(j, b); });
      worker.sync();
      plan_.push(run_, worker);
      for (Index i = 0; i < out_; ++i) {
        worker.for_each(plan_.blocks(), [&](Index b) {
          block_in<T>(plan_, nullptr, out_, b, y.grad, 0);
          block_unit(plan_, i, out_, b, y.grad_tangent);
          if (y.grad_second) block_in<T>(plan_, nullptr, out_, b, y.grad_second, 0);
        });
        worker.sync();
        plan_.backward_jet(run_, worker);
        worker.for_each(plan_.count(), [&](Index s) {
          for (Index k = 0; k < in_; ++k)
            hessian[((s * out_ + i) * in_ + k) * in_ + j] =
                x.grad[(s / lanes * in_ + k) * lanes + s % lanes];
        });
        worker.sync();
      }
    }
  });
}

template <class T>
void InputDerivatives<T>::pullback(const T* dy, const T* djac, const T* ddiag, T* dx, T* dw) {
  if (ddiag && order() < 2)
    throw std::invalid_argument("ddiag: second derivatives were not asked for (order=1)");
  const Variable<T>&y = plan_.variable(output_), &x = plan_.variable(input_);
  const Index lanes = plan_.lanes();
  std::fill(dx, dx + plan_.count() * in_, T(0));
  std::fill(dw, dw + plan_.graph().n_params(), T(0));
  run_.dw = dw;
  team([&](const Worker& worker) {
    Run<T> run = run_;
    for (Index j = 0; j < in_; ++j) {
      run.accumulate = j > 0;
      worker.for_each(plan_.blocks(), [&](Index b) {
        aim(j, b);
        // dy belongs to the value, which every direction shares: it enters once.
        block_in(plan_, j == 0 ? dy : nullptr, out_, b, y.grad, out_);
        block_in(plan_, djac ? djac + j : nullptr, out_, b, y.grad_tangent, out_ * in_, in_);
        if (y.grad_second)
          block_in(plan_, ddiag ? ddiag + j : nullptr, out_, b, y.grad_second, out_ * in_, in_);
      });
      worker.sync();
      plan_.push(run, worker);
      plan_.backward_jet(run, worker);
      worker.for_each(plan_.count(), [&](Index s) {
        for (Index k = 0; k < in_; ++k)
          dx[s * in_ + k] += x.grad[(s / lanes * in_ + k) * lanes + s % lanes];
      });
      worker.sync();
    }
  });
}

template class InputDerivatives<float>;
template class InputDerivatives<double>;

}  // namespace gradstack

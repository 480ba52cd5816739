// z = h(s), where it could not be fused into the Linear before it.
#include <algorithm>

#include "block.hpp"

namespace gradstack {
namespace {

template <class T> class PointwiseBlock final : public Block<T> {
 public:
  PointwiseBlock(Geometry<T> geometry, In<T> in, Variable<T>* out, Pointwise f)
      : Block<T>(geometry), in_(in), out_(out), f_(f), kernels_(geometry.k->pointwise[f.op]) {}

  void forward(const Run<T>&, const Worker& worker) override {
    each_block(worker, [&](Index at, Index n) {
      kernels_.forward(n, f_.params, in_.v->value + at, out_->value + at);
    });
  }

  void backward_data(const Run<T>&, const Worker& worker) override {
    if (!in_.v->grad) return;
    if (!in_.accumulate) {
      each_block(worker, [&](Index at, Index n) {
        kernels_.backward(n, f_.params, in_.v->value + at, out_->value + at, out_->grad + at,
                          in_.v->grad + at);
      });
      return;
    }
    each_part(worker, [&](Index at, Index n) {
      T part[kPart];
      kernels_.backward(n, f_.params, in_.v->value + at, out_->value + at, out_->grad + at, part);
      g.k->add(n, in_.v->grad + at, part, in_.v->grad + at);
    });
  }

  // z_t = h' s_t, z_tt = h'' s_t^2 + h' s_tt
  void push(const Run<T>&, const Worker& worker) override {
    if (!out_->tangent) return;
    each_part(worker, [&](Index at, Index n) {
      T h1[kPart], h2[kPart];
      derivative(1, at, n, h1);
      const T* t = in_.v->tangent + at;
      g.k->mul(n, h1, t, out_->tangent + at, false);
      if (!out_->second) return;
      derivative(2, at, n, h2);
      const T* q = in_.v->second + at;
      T* to = out_->second + at;
      for (Index i = 0; i < n; ++i) to[i] = h2[i] * t[i] * t[i] + h1[i] * q[i];
    });
  }

  // With cotangents g, g_t, g_tt of z, z_t, z_tt:
  //   dC/ds    = h' g + h'' s_t g_t + (h''' s_t^2 + h'' s_tt) g_tt
  //   dC/ds_t  = h' g_t + 2 h'' s_t g_tt
  //   dC/ds_tt = h' g_tt
  void backward_jet(const Run<T>&, const Worker& worker) override {
    const Variable<T>& s = *in_.v;
    if (!s.grad) return;
    each_part(worker, [&](Index at, Index n) {
      T h1[kPart], h2[kPart], h3[kPart], ds[kPart], dt[kPart], dq[kPart];
      derivative(1, at, n, h1);
      const T* grad = out_->grad + at;
      for (Index i = 0; i < n; ++i) ds[i] = h1[i] * grad[i];
      if (s.grad_tangent) {
        derivative(2, at, n, h2);
        const T *t = s.tangent + at, *gt = out_->grad_tangent + at;
        for (Index i = 0; i < n; ++i) {
          ds[i] += h2[i] * t[i] * gt[i];
          dt[i] = h1[i] * gt[i];
        }
      }
      if (s.grad_second) {
        derivative(3, at, n, h3);
        const T *t = s.tangent + at, *q = s.second + at, *gq = out_->grad_second + at;
        for (Index i = 0; i < n; ++i) {
          ds[i] += (h3[i] * t[i] * t[i] + h2[i] * q[i]) * gq[i];
          dt[i] += 2 * h2[i] * t[i] * gq[i];
          dq[i] = h1[i] * gq[i];
        }
      }
      give(n, ds, s.grad + at);
      if (s.grad_tangent) give(n, dt, s.grad_tangent + at);
      if (s.grad_second) give(n, dq, s.grad_second + at);
    });
  }

 private:
  using Block<T>::g;
  static constexpr Index kPart = 256;

  template <class F> void each_block(const Worker& worker, F&& f) const {
    const Index n = out_->d * g.lanes();
    worker.for_each(g.blocks(), [&](Index block) { f(block * n, n); });
  }

  template <class F> void each_part(const Worker& worker, F&& f) const {
    each_block(worker, [&](Index at, Index n) {
      for (Index i = 0; i < n; i += kPart) f(at + i, std::min(kPart, n - i));
    });
  }

  void derivative(int order, Index at, Index n, T* out) const {
    kernels_.derivative(n, f_.params, order, in_.v->value + at, out);
  }

  void give(Index n, const T* from, T* to) const { g.k->axpy(n, T(1), from, to, in_.accumulate); }

  In<T> in_;
  Variable<T>* out_;
  Pointwise f_;
  const PointwiseKernels<T>& kernels_;
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_pointwise(Geometry<T> g, In<T> in, Variable<T>* out, Pointwise f) {
  return std::make_unique<PointwiseBlock<T>>(g, in, out, f);
}

template std::unique_ptr<Block<float>> make_pointwise(Geometry<float>, In<float>, Variable<float>*,
                                                      Pointwise);
template std::unique_ptr<Block<double>> make_pointwise(Geometry<double>, In<double>,
                                                       Variable<double>*, Pointwise);

}  // namespace gradstack

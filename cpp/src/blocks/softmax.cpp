// Softmax and log-softmax over the features of a sample.
#include "block.hpp"

namespace gradstack {
namespace {

template <class T> class Softmax final : public Block<T> {
 public:
  Softmax(Geometry<T> geometry, In<T> in, Variable<T>* out, bool log, Arena& arena)
      : Block<T>(geometry), in_(in), out_(out), log_(log) {
    if (log && geometry.plan->options().tangents)
      scratch_ = arena.allocate<T>(out->d * geometry.lanes() * geometry.blocks());
  }

  void forward(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at) {
      g.k->softmax(out_->d, g.lanes(), in_.v->value + at, out_->value + at, log_);
    });
  }

  void backward_data(const Run<T>&, const Worker& worker) override {
    if (!in_.v->grad) return;
    each(worker, [&](Index at) {
      g.k->softmax_backward(out_->d, g.lanes(), out_->value + at, out_->grad + at,
                            in_.v->grad + at, log_, in_.accumulate);
    });
  }

  // The Jacobian of softmax, diag(p) - p p^T, is symmetric: its backward is its jvp.
  // Log-softmax: I - 1 p^T, so dz = ds - <p, ds>.
  void jvp(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at) {
      const T* ds = in_.v->tangent + at;
      T* dz = out_->tangent + at;
      if (!log_) {
        g.k->softmax_backward(out_->d, g.lanes(), out_->value + at, ds, dz, false, false);
        return;
      }
      const Index lanes = g.lanes(), n = out_->d * lanes;
      T* p = scratch_ + at;
      g.k->softmax(out_->d, lanes, in_.v->value + at, p, false);
      for (Index l = 0; l < lanes; ++l) {
        T mean = 0;
        for (Index i = l; i < n; i += lanes) mean += p[i] * ds[i];
        for (Index i = l; i < n; i += lanes) dz[i] = ds[i] - mean;
      }
    });
  }

 private:
  using Block<T>::g;

  template <class F> void each(const Worker& worker, F&& f) const {
    worker.for_each(g.blocks(), [&](Index block) { f(block * out_->d * g.lanes()); });
  }

  In<T> in_;
  Variable<T>* out_;
  bool log_;
  T* scratch_ = nullptr;
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_softmax(Geometry<T> g, In<T> in, Variable<T>* out, bool log, Arena& arena) {
  return std::make_unique<Softmax<T>>(g, in, out, log, arena);
}

template std::unique_ptr<Block<float>> make_softmax(Geometry<float>, In<float>, Variable<float>*, bool, Arena&);
template std::unique_ptr<Block<double>> make_softmax(Geometry<double>, In<double>, Variable<double>*, bool, Arena&);

}  // namespace gradstack

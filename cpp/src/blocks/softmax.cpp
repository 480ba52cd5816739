// Softmax and log-softmax over the features of a sample.
#include "block.hpp"

namespace gradstack {
namespace {

template <class T> class Softmax final : public Block<T> {
 public:
  Softmax(Geometry<T> geometry, In<T> in, Variable<T>* out, bool log, Arena& arena)
      : Block<T>(geometry), in_(in), out_(out), log_(log) {
    // Jets work with p = softmax(s), whether p or log p is the output.
    if (geometry.plan->options().jet_order > 0)
      p_ = arena.allocate<T>(out->d * geometry.lanes() * geometry.blocks());
  }

  void forward(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at) {
      g.k->softmax(out_->d, g.lanes(), in_.v->value + at, out_->value + at, log_);
      if (p_) g.k->softmax(out_->d, g.lanes(), in_.v->value + at, p_ + at, false);
    });
  }

  void backward_data(const Run<T>&, const Worker& worker) override {
    if (!in_.v->grad) return;
    each(worker, [&](Index at) {
      g.k->softmax_backward(out_->d, g.lanes(), out_->value + at, out_->grad + at, in_.v->grad + at,
                            log_, in_.accumulate);
    });
  }

  // l = log p: l_t = s_t - m_t and l_tt = s_tt - m_tt with the derivatives of m = log sum exp(s),
  // m_t = <p, s_t>, m_tt = <p, s_tt> + <p, s_t^2> - m_t^2. For p itself, p = exp(l):
  // p_t = p l_t, p_tt = p (l_tt + l_t^2).
  void push(const Run<T>&, const Worker& worker) override {
    if (!out_->tangent) return;
    each_lane(worker, [&](Index first, Index end, Index step) {
      const Moments m = moments(first, end, step);
      for (Index i = first; i < end; i += step) {
        const T lt = in_.v->tangent[i] - m.t;
        out_->tangent[i] = log_ ? lt : p_[i] * lt;
        if (!out_->second) continue;
        const T lq = in_.v->second[i] - m.q;
        out_->second[i] = log_ ? lq : p_[i] * (lq + lt * lt);
      }
    });
  }

  // The adjoint: first from p to l (exp has all derivatives p), then from l to s.
  void backward_jet(const Run<T>&, const Worker& worker) override {
    const Variable<T>& s = *in_.v;
    if (!s.grad) return;
    each_lane(worker, [&](Index first, Index end, Index step) {
      const Moments m = moments(first, end, step);
      T sum = 0, sum_t = 0, sum_q = 0;
      for (Index i = first; i < end; i += step) {
        const Cotangent c = cotangent(i, m);
        sum += c.v;
        sum_t += c.t;
        sum_q += c.q;
      }
      for (Index i = first; i < end; i += step) {
        const Cotangent c = cotangent(i, m);
        const T p = p_[i], t = s.tangent ? s.tangent[i] : T(0), centred = t - m.t;
        const T q = s.second ? s.second[i] : T(0);
        const T dm_tt = (q - m.pq) + (t * t - m.ptt) - 2 * m.t * centred;  // dm_tt/ds = p * this
        give(s.grad, i, c.v - p * (sum + centred * sum_t + dm_tt * sum_q));
        give(s.grad_tangent, i, c.t - p * (sum_t + 2 * centred * sum_q));
        give(s.grad_second, i, c.q - p * sum_q);
      }
    });
  }

 private:
  using Block<T>::g;

  struct Moments {
    T t = 0, q = 0;     // m_t, m_tt
    T pq = 0, ptt = 0;  // <p, s_tt>, <p, s_t^2>
  };
  struct Cotangent {
    T v = 0, t = 0, q = 0;
  };

  template <class F> void each(const Worker& worker, F&& f) const {
    worker.for_each(g.blocks(), [&](Index block) { f(block * out_->d * g.lanes()); });
  }

  // f(first, end, step) for every sample: its features are first, first + step, ... < end.
  template <class F> void each_lane(const Worker& worker, F&& f) const {
    const Index lanes = g.lanes(), n = out_->d * lanes;
    each(worker, [&](Index at) {
      for (Index lane = 0; lane < lanes; ++lane) f(at + lane, at + n, lanes);
    });
  }

  Moments moments(Index first, Index end, Index step) const {
    const Variable<T>& s = *in_.v;
    Moments m;
    for (Index i = first; i < end && s.tangent; i += step) {
      m.t += p_[i] * s.tangent[i];
      m.ptt += p_[i] * s.tangent[i] * s.tangent[i];
      if (s.second) m.pq += p_[i] * s.second[i];
    }
    m.q = m.pq + m.ptt - m.t * m.t;
    return m;
  }

  // Cotangents of l, l_t, l_tt at one entry.
  Cotangent cotangent(Index i, const Moments& m) const {
    const Variable<T>& s = *in_.v;
    const Cotangent c{out_->grad[i], out_->grad_tangent ? out_->grad_tangent[i] : T(0),
                      out_->grad_second ? out_->grad_second[i] : T(0)};
    if (log_) return c;
    const T lt = s.tangent ? s.tangent[i] - m.t : T(0), lq = s.second ? s.second[i] - m.q : T(0);
    return {p_[i] * (c.v + lt * c.t + (lt * lt + lq) * c.q), p_[i] * (c.t + 2 * lt * c.q),
            p_[i] * c.q};
  }

  void give(T* to, Index i, T value) const {
    if (to) to[i] = in_.accumulate ? to[i] + value : value;
  }

  In<T> in_;
  Variable<T>* out_;
  bool log_;
  T* p_ = nullptr;
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_softmax(Geometry<T> g, In<T> in, Variable<T>* out, bool log,
                                       Arena& arena) {
  return std::make_unique<Softmax<T>>(g, in, out, log, arena);
}

template std::unique_ptr<Block<float>> make_softmax(Geometry<float>, In<float>, Variable<float>*,
                                                    bool, Arena&);
template std::unique_ptr<Block<double>> make_softmax(Geometry<double>, In<double>,
                                                     Variable<double>*, bool, Arena&);

}  // namespace gradstack

// Sums, differences, products and quotients of two variables of one shape.
#include <algorithm>

#include "block.hpp"

namespace gradstack {
namespace {

// Value and derivatives of one entry along the run's direction.
template <class T> struct Jet { T v = 0, t = 0, q = 0; };

template <class T> class Binary final : public Block<T> {
 public:
  Binary(Geometry<T> geometry, Kind kind, In<T> a, In<T> b, Variable<T>* out)
      : Block<T>(geometry), kind_(kind), a_(a), b_(b), out_(out) {}

  void forward(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at, Index n) {
      const T *a = a_.v->value + at, *b = b_.v->value + at;
      T* z = out_->value + at;
      switch (kind_) {
        case Kind::Add:
          g.k->add(n, a, b, z);
          break;
        case Kind::Sub:
          g.k->axpy(n, T(1), a, z, false);
          g.k->axpy(n, T(-1), b, z, true);
          break;
        case Kind::Mul:
          g.k->mul(n, a, b, z, false);
          break;
        default:
          g.k->div(n, a, b, z);
      }
    });
  }

  void backward_data(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at, Index n) {
      if (a_.v->grad) pull(at, n, a_, true, a_.v->grad + at);
      if (b_.v->grad) pull(at, n, b_, false, b_.v->grad + at);
    });
  }

  // The rules of calculus for value, first and second derivative.
  void push(const Run<T>&, const Worker& worker) override {
    if (!out_->tangent) return;
    each(worker, [&](Index at, Index n) {
      for (Index i = at; i < at + n; ++i) {
        const Jet<T> a = jet(*a_.v, i), b = jet(*b_.v, i);
        Jet<T> z;
        switch (kind_) {
          case Kind::Add:
            z = {0, a.t + b.t, a.q + b.q};
            break;
          case Kind::Sub:
            z = {0, a.t - b.t, a.q - b.q};
            break;
          case Kind::Mul:
            z = product(a, b);
            break;
          default:
            z = product(a, reciprocal(b));
        }
        out_->tangent[i] = z.t;
        if (out_->second) out_->second[i] = z.q;
      }
    });
  }

  void backward_jet(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at, Index n) {
      for (Index i = at; i < at + n; ++i) {
        const Jet<T> a = jet(*a_.v, i), b = jet(*b_.v, i), cotangent = grad(i);
        switch (kind_) {
          case Kind::Add:
          case Kind::Sub: {
            const T sign = kind_ == Kind::Add ? T(1) : T(-1);
            give(a_, i, cotangent);
            // The same variable twice: what the first has written is added to.
            give(b_, i, {sign * cotangent.v, sign * cotangent.t, sign * cotangent.q});
            break;
          }
          case Kind::Mul:
            give(a_, i, product_adjoint(cotangent, b));
            give(b_, i, product_adjoint(cotangent, a));
            break;
          default: {
            const Jet<T> r = reciprocal(b);
            give(a_, i, product_adjoint(cotangent, r));
            give(b_, i, reciprocal_adjoint(product_adjoint(cotangent, a), b, r.v));
          }
        }
      }
    });
  }

 private:
  using Block<T>::g;

  template <class F> void each(const Worker& worker, F&& f) const {
    const Index n = out_->d * g.lanes();
    worker.for_each(g.blocks(), [&](Index block) { f(block * n, n); });
  }

  // to (+)= dz * dz/da (first) or dz * dz/db; every Jacobian here is diagonal.
  void pull(Index at, Index n, In<T> in, bool first, T* to) const {
    const T *a = a_.v->value + at, *b = b_.v->value + at, *dz = out_->grad + at;
    switch (kind_) {
      case Kind::Add:
        g.k->axpy(n, T(1), dz, to, in.accumulate);
        break;
      case Kind::Sub:
        g.k->axpy(n, first ? T(1) : T(-1), dz, to, in.accumulate);
        break;
      case Kind::Mul:
        g.k->mul(n, dz, first ? b : a, to, in.accumulate);
        break;
      default:
        quotient(at, n, first, in.accumulate, to);
    }
  }

  // z = a / b: dz/da = 1 / b, dz/db = -z / b.
  void quotient(Index at, Index n, bool first, bool accumulate, T* to) const {
    constexpr Index kPart = 256;
    T part[kPart];
    for (Index i = 0; i < n; i += kPart) {
      const Index m = std::min(kPart, n - i);
      g.k->div(m, out_->grad + at + i, b_.v->value + at + i, part);
      if (!first) g.k->mul(m, part, out_->value + at + i, part, false);
      g.k->axpy(m, first ? T(1) : T(-1), part, to + i, accumulate);
    }
  }

  static Jet<T> jet(const Variable<T>& v, Index i) {
    return {v.value[i], v.tangent ? v.tangent[i] : T(0), v.second ? v.second[i] : T(0)};
  }

  Jet<T> grad(Index i) const {
    return {out_->grad ? out_->grad[i] : T(0), out_->grad_tangent ? out_->grad_tangent[i] : T(0),
            out_->grad_second ? out_->grad_second[i] : T(0)};
  }

  static void give(const In<T>& in, Index i, Jet<T> c) {
    const auto write = [&](T* to, T value) {
      if (to) to[i] = in.accumulate ? to[i] + value : value;
    };
    write(in.v->grad, c.v);
    write(in.v->grad_tangent, c.t);
    write(in.v->grad_second, c.q);
  }

  static Jet<T> product(const Jet<T>& a, const Jet<T>& b) {
    return {a.v * b.v, a.t * b.v + a.v * b.t, a.q * b.v + 2 * a.t * b.t + a.v * b.q};
  }

  // Cotangent of a in a b.
  static Jet<T> product_adjoint(const Jet<T>& c, const Jet<T>& b) {
    return {c.v * b.v + c.t * b.t + c.q * b.q, c.t * b.v + 2 * c.q * b.t, c.q * b.v};
  }

  // r = 1 / b: r' = -r^2, r'' = 2 r^3, r''' = -6 r^4.
  static Jet<T> reciprocal(const Jet<T>& b) {
    const T r = 1 / b.v;
    return {r, -r * r * b.t, 2 * r * r * r * b.t * b.t - r * r * b.q};
  }

  static Jet<T> reciprocal_adjoint(const Jet<T>& c, const Jet<T>& b, T r) {
    const T h1 = -r * r, h2 = 2 * r * r * r, h3 = -6 * r * r * r * r;
    return {h1 * c.v + h2 * b.t * c.t + (h3 * b.t * b.t + h2 * b.q) * c.q,
            h1 * c.t + 2 * h2 * b.t * c.q, h1 * c.q};
  }

  Kind kind_;
  In<T> a_, b_;
  Variable<T>* out_;
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_binary(Geometry<T> g, Kind kind, In<T> a, In<T> b,
                                      Variable<T>* out) {
  return std::make_unique<Binary<T>>(g, kind, a, b, out);
}

template std::unique_ptr<Block<float>> make_binary(Geometry<float>, Kind, In<float>, In<float>,
                                                   Variable<float>*);
template std::unique_ptr<Block<double>> make_binary(Geometry<double>, Kind, In<double>, In<double>,
                                                    Variable<double>*);

}  // namespace gradstack

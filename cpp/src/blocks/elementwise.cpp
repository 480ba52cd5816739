// Blocks that treat every value alone, or only move values: pointwise, + - * /, concat, slice,
// dropout. Each works block by block of samples.
#include <algorithm>
#include <cstring>

#include "block.hpp"
#include "gradstack/random.hpp"

namespace gradstack {
namespace {

template <class T> class PointwiseBlock final : public Block<T> {
 public:
  PointwiseBlock(Geometry<T> geometry, In<T> in, Variable<T>* out, Pointwise f)
      : Block<T>(geometry), in_(in), out_(out), f_(f), kernels_(geometry.k->pointwise[f.op]) {}

  void forward(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at, Index n) {
      kernels_.forward(n, f_.params, in_.v->value + at, out_->value + at);
    });
  }

  void backward_data(const Run<T>&, const Worker& worker) override {
    if (!in_.v->grad) return;
    each(worker, [&](Index at, Index n) { times_derivative(at, n, out_->grad, in_.v->grad, in_.accumulate); });
  }

  void jvp(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at, Index n) { times_derivative(at, n, in_.v->tangent, out_->tangent, false); });
  }

 private:
  using Block<T>::g;

  template <class F> void each(const Worker& worker, F&& f) const {
    const Index n = out_->d * g.lanes();
    worker.for_each(g.blocks(), [&](Index block) { f(block * n, n); });
  }

  // to (+)= from * h'(s)
  void times_derivative(Index at, Index n, const T* from, T* to, bool accumulate) const {
    const T* s = in_.v->value + at;
    const T* z = out_->value + at;
    if (!accumulate) {
      kernels_.backward(n, f_.params, s, z, from + at, to + at);
      return;
    }
    T part[kPart];
    for (Index i = 0; i < n; i += kPart) {
      const Index m = std::min(kPart, n - i);
      kernels_.backward(m, f_.params, s + i, z + i, from + at + i, part);
      g.k->add(m, to + at + i, part, to + at + i);
    }
  }

  static constexpr Index kPart = 256;
  In<T> in_;
  Variable<T>* out_;
  Pointwise f_;
  const PointwiseKernels<T>& kernels_;
};

template <class T> class Binary final : public Block<T> {
 public:
  Binary(Geometry<T> geometry, Kind kind, In<T> a, In<T> b, Variable<T>* out)
      : Block<T>(geometry), kind_(kind), a_(a), b_(b), out_(out) {}

  void forward(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at, Index n) {
      const T *a = a_.v->value + at, *b = b_.v->value + at;
      T* z = out_->value + at;
      switch (kind_) {
        case Kind::Add: g.k->add(n, a, b, z); break;
        case Kind::Sub:
          g.k->axpy(n, T(1), a, z, false);
          g.k->axpy(n, T(-1), b, z, true);
          break;
        case Kind::Mul: g.k->mul(n, a, b, z, false); break;
        default: g.k->div(n, a, b, z);
      }
    });
  }

  void backward_data(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at, Index n) {
      const T* dz = out_->grad + at;
      if (a_.v->grad) pull(at, n, dz, a_, true, a_.v->grad + at);
      if (b_.v->grad) pull(at, n, dz, b_, false, b_.v->grad + at);
    });
  }

  void jvp(const Run<T>&, const Worker& worker) override {
    each(worker, [&](Index at, Index n) {
      T* dz = out_->tangent + at;
      pull(at, n, a_.v->tangent + at, {nullptr, false}, true, dz);
      pull(at, n, b_.v->tangent + at, {nullptr, true}, false, dz);
    });
  }

 private:
  using Block<T>::g;

  template <class F> void each(const Worker& worker, F&& f) const {
    const Index n = out_->d * g.lanes();
    worker.for_each(g.blocks(), [&](Index block) { f(block * n, n); });
  }

  // to (+)= from * dz/da (first) or dz/db. Every Jacobian here is diagonal, so the same product
  // serves backward and jvp.
  void pull(Index at, Index n, const T* from, In<T> in, bool first, T* to) const {
    const T *a = a_.v->value + at, *b = b_.v->value + at;
    switch (kind_) {
      case Kind::Add: g.k->axpy(n, T(1), from, to, in.accumulate); break;
      case Kind::Sub: g.k->axpy(n, first ? T(1) : T(-1), from, to, in.accumulate); break;
      case Kind::Mul: g.k->mul(n, from, first ? b : a, to, in.accumulate); break;
      default: quotient(at, n, from, first, in.accumulate, to);
    }
  }

  // z = a / b: dz/da = 1 / b, dz/db = -z / b.
  void quotient(Index at, Index n, const T* from, bool first, bool accumulate, T* to) const {
    constexpr Index kPart = 256;
    T part[kPart];
    for (Index i = 0; i < n; i += kPart) {
      const Index m = std::min(kPart, n - i);
      g.k->div(m, from + i, b_.v->value + at + i, part);
      if (first) {
        g.k->axpy(m, T(1), part, to + i, accumulate);
      } else {
        g.k->mul(m, part, out_->value + at + i, part, false);
        g.k->axpy(m, T(-1), part, to + i, accumulate);
      }
    }
  }

  Kind kind_;
  In<T> a_, b_;
  Variable<T>* out_;
};

// Concatenation and slicing: a block of features is contiguous inside a block of samples.
template <class T> class Move final : public Block<T> {
 public:
  struct Piece {
    In<T> in;
    Index in_begin, out_begin, n;  // features
  };

  Move(Geometry<T> geometry, std::vector<Piece> pieces, Variable<T>* out)
      : Block<T>(geometry), pieces_(std::move(pieces)), out_(out) {}

  void forward(const Run<T>&, const Worker& worker) override {
    each(worker, [&](const Piece& p, Index from, Index to, Index n) {
      g.k->axpy(n, T(1), p.in.v->value + from, out_->value + to, false);
    });
  }

  void backward_data(const Run<T>&, const Worker& worker) override {
    each(worker, [&](const Piece& p, Index from, Index to, Index n) {
      T* dz = p.in.v->grad;
      if (!dz) return;
      const bool partial = p.n < p.in.v->d;
      if (partial && !p.in.accumulate) clear(p, from);
      g.k->axpy(n, T(1), out_->grad + to, dz + from, p.in.accumulate || partial);
    });
  }

  void jvp(const Run<T>&, const Worker& worker) override {
    each(worker, [&](const Piece& p, Index from, Index to, Index n) {
      g.k->axpy(n, T(1), p.in.v->tangent + from, out_->tangent + to, false);
    });
  }

 private:
  using Block<T>::g;

  template <class F> void each(const Worker& worker, F&& f) const {
    const Index lanes = g.lanes();
    worker.for_each(g.blocks(), [&](Index block) {
      for (const Piece& p : pieces_)
        f(p, (block * p.in.v->d + p.in_begin) * lanes, (block * out_->d + p.out_begin) * lanes,
          p.n * lanes);
    });
  }

  // A slice is the first to write the gradient of its input: what it does not cover is zero.
  void clear(const Piece& p, Index from) const {
    const Index lanes = g.lanes();
    std::memset(p.in.v->grad + from - p.in_begin * lanes, 0,
                static_cast<std::size_t>(p.in.v->d * lanes) * sizeof(T));
  }

  std::vector<Piece> pieces_;
  Variable<T>* out_;
};

template <class T> class Dropout final : public Block<T> {
 public:
  Dropout(Geometry<T> geometry, In<T> in, Variable<T>* out, double rate, int stage)
      : Block<T>(geometry), in_(in), out_(out), scale_(static_cast<T>(1.0 / (1.0 - rate))),
        threshold_(probability_threshold(rate)), stage_(stage) {}

  void forward(const Run<T>& run, const Worker& worker) override {
    apply(run, worker, in_.v->value, out_->value, false);
  }
  void backward_data(const Run<T>& run, const Worker& worker) override {
    if (in_.v->grad) apply(run, worker, out_->grad, in_.v->grad, in_.accumulate);
  }
  void jvp(const Run<T>& run, const Worker& worker) override {
    apply(run, worker, in_.v->tangent, out_->tangent, false);
  }

 private:
  using Block<T>::g;

  void apply(const Run<T>& run, const Worker& worker, const T* from, T* to, bool accumulate) const {
    const Index lanes = g.lanes(), n = out_->d * lanes;
    worker.for_each(g.blocks(), [&](Index block) {
      if (!run.train) {
        g.k->axpy(n, T(1), from + block * n, to + block * n, accumulate);
        return;
      }
      std::uint64_t key[kLanes];
      for (Index l = 0; l < lanes; ++l)
        key[l] = sample_key(run.seed, static_cast<std::uint64_t>(stage_),
                            static_cast<std::uint64_t>(run.step),
                            static_cast<std::uint64_t>(run.first_sample + block * lanes + l));
      g.k->dropout(out_->d, lanes, key, threshold_, scale_, from + block * n, to + block * n,
                   accumulate);
    });
  }

  In<T> in_;
  Variable<T>* out_;
  T scale_;
  std::uint32_t threshold_;
  int stage_;
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_pointwise(Geometry<T> g, In<T> in, Variable<T>* out, Pointwise f) {
  return std::make_unique<PointwiseBlock<T>>(g, in, out, f);
}

template <class T>
std::unique_ptr<Block<T>> make_binary(Geometry<T> g, Kind kind, In<T> a, In<T> b, Variable<T>* out) {
  return std::make_unique<Binary<T>>(g, kind, a, b, out);
}

template <class T>
std::unique_ptr<Block<T>> make_concat(Geometry<T> g, std::vector<In<T>> in, Variable<T>* out) {
  std::vector<typename Move<T>::Piece> pieces;
  Index at = 0;
  for (const In<T>& i : in) {
    pieces.push_back({i, 0, at, i.v->d});
    at += i.v->d;
  }
  return std::make_unique<Move<T>>(g, std::move(pieces), out);
}

template <class T>
std::unique_ptr<Block<T>> make_slice(Geometry<T> g, In<T> in, Index begin, Variable<T>* out) {
  return std::make_unique<Move<T>>(
      g, std::vector<typename Move<T>::Piece>{{in, begin, 0, out->d}}, out);
}

template <class T>
std::unique_ptr<Block<T>> make_dropout(Geometry<T> g, In<T> in, Variable<T>* out, double rate, int stage) {
  return std::make_unique<Dropout<T>>(g, in, out, rate, stage);
}

#define GS_INSTANTIATE(T)                                                                          \
  template std::unique_ptr<Block<T>> make_pointwise(Geometry<T>, In<T>, Variable<T>*, Pointwise);  \
  template std::unique_ptr<Block<T>> make_binary(Geometry<T>, Kind, In<T>, In<T>, Variable<T>*);   \
  template std::unique_ptr<Block<T>> make_concat(Geometry<T>, std::vector<In<T>>, Variable<T>*);   \
  template std::unique_ptr<Block<T>> make_slice(Geometry<T>, In<T>, Index, Variable<T>*);          \
  template std::unique_ptr<Block<T>> make_dropout(Geometry<T>, In<T>, Variable<T>*, double, int);
GS_INSTANTIATE(float)
GS_INSTANTIATE(double)
#undef GS_INSTANTIATE

}  // namespace gradstack

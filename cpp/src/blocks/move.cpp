// Blocks that move values, or scale each by a number of its own: concat, slice, dropout. They are
// linear, so derivatives pass through them as values do.
#include <cstring>

#include "block.hpp"
#include "gradstack/random.hpp"

namespace gradstack {
namespace {

// Concatenation and slicing: a range of features is contiguous inside a block of samples.
template <class T> class Move final : public Block<T> {
 public:
  struct Piece {
    In<T> in;
    Index in_begin, out_begin, n;  // features
  };

  Move(Geometry<T> geometry, std::vector<Piece> pieces, Variable<T>* out)
      : Block<T>(geometry), pieces_(std::move(pieces)), out_(out) {}

  void forward(const Run<T>&, const Worker& worker) override { carry(worker, &Variable<T>::value); }

  void backward_data(const Run<T>&, const Worker& worker) override {
    carry_back(worker, &Variable<T>::grad);
  }

  void push(const Run<T>&, const Worker& worker) override {
    if (out_->tangent) carry(worker, &Variable<T>::tangent);
    if (out_->second) carry(worker, &Variable<T>::second);
  }

  void backward_jet(const Run<T>&, const Worker& worker) override {
    carry_back(worker, &Variable<T>::grad);
    carry_back(worker, &Variable<T>::grad_tangent);
    carry_back(worker, &Variable<T>::grad_second);
  }

 private:
  using Block<T>::g;
  using Field = T* Variable<T>::*;

  template <class F> void each(const Worker& worker, F&& f) const {
    const Index lanes = g.lanes();
    worker.for_each(g.blocks(), [&](Index block) {
      for (const Piece& p : pieces_)
        f(p, (block * p.in.v->d + p.in_begin) * lanes, (block * out_->d + p.out_begin) * lanes,
          p.n * lanes);
    });
  }

  // A piece without this field has a zero derivative; the output's memory for it stays zero.
  void carry(const Worker& worker, Field field) const {
    each(worker, [&](const Piece& p, Index from, Index to, Index n) {
      if (const T* source = p.in.v->*field)
        g.k->axpy(n, T(1), source + from, out_->*field + to, false);
    });
  }

  void carry_back(const Worker& worker, Field field) const {
    each(worker, [&](const Piece& p, Index from, Index to, Index n) {
      T* grad = p.in.v->*field;
      if (!grad) return;
      const bool partial = p.n < p.in.v->d;
      if (partial && !p.in.accumulate) clear(p, grad + from);
      g.k->axpy(n, T(1), out_->*field + to, grad + from, p.in.accumulate || partial);
    });
  }

  // A slice is the first to write the gradient of its input: what it does not cover is zero.
  void clear(const Piece& p, T* piece) const {
    const Index lanes = g.lanes();
    std::memset(piece - p.in_begin * lanes, 0,
                static_cast<std::size_t>(p.in.v->d * lanes) * sizeof(T));
  }

  std::vector<Piece> pieces_;
  Variable<T>* out_;
};

template <class T> class Dropout final : public Block<T> {
 public:
  Dropout(Geometry<T> geometry, In<T> in, Variable<T>* out, double rate, int stage)
      : Block<T>(geometry),
        in_(in),
        out_(out),
        scale_(static_cast<T>(1.0 / (1.0 - rate))),
        threshold_(probability_threshold(rate)),
        stage_(stage) {}

  void forward(const Run<T>& run, const Worker& worker) override {
    apply(run, worker, in_.v->value, out_->value, false);
  }
  void backward_data(const Run<T>& run, const Worker& worker) override {
    if (in_.v->grad) apply(run, worker, out_->grad, in_.v->grad, in_.accumulate);
  }
  void push(const Run<T>& run, const Worker& worker) override {
    if (out_->tangent) apply(run, worker, in_.v->tangent, out_->tangent, false);
    if (out_->second) apply(run, worker, in_.v->second, out_->second, false);
  }
  void backward_jet(const Run<T>& run, const Worker& worker) override {
    backward_data(run, worker);
    const Variable<T>& s = *in_.v;
    if (s.grad_tangent) apply(run, worker, out_->grad_tangent, s.grad_tangent, in_.accumulate);
    if (s.grad_second) apply(run, worker, out_->grad_second, s.grad_second, in_.accumulate);
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
  return std::make_unique<Move<T>>(g, std::vector<typename Move<T>::Piece>{{in, begin, 0, out->d}},
                                   out);
}

template <class T>
std::unique_ptr<Block<T>> make_dropout(Geometry<T> g, In<T> in, Variable<T>* out, double rate,
                                       int stage) {
  return std::make_unique<Dropout<T>>(g, in, out, rate, stage);
}

#define GS_INSTANTIATE(T)                                                                        \
  template std::unique_ptr<Block<T>> make_concat(Geometry<T>, std::vector<In<T>>, Variable<T>*); \
  template std::unique_ptr<Block<T>> make_slice(Geometry<T>, In<T>, Index, Variable<T>*);        \
  template std::unique_ptr<Block<T>> make_dropout(Geometry<T>, In<T>, Variable<T>*, double, int);
GS_INSTANTIATE(float)
GS_INSTANTIATE(double)
#undef GS_INSTANTIATE

}  // namespace gradstack

// A block implemented by the user (a Python module): rows in, rows out, called by one worker for
// the whole batch.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "block.hpp"

namespace gradstack {
namespace {

template <class T> class Opaque final : public Block<T> {
 public:
  Opaque(Geometry<T> geometry, In<T> in, Variable<T>* out, const Stage& stage, Arena& arena)
      : Block<T>(geometry),
        in_(in),
        out_(out),
        stage_(stage),
        f_(*stage.opaque),
        samples_(geometry.blocks() * geometry.lanes()),
        x_(arena.allocate<T>(samples_ * in.v->d)),
        dx_(arena.allocate<T>(samples_ * in.v->d)),
        y_(arena.allocate<T>(samples_ * out->d)) {}

  void forward(const Run<T>& run, const Worker& worker) override {
    once(run, worker, [&](Index count) {
      to_rows(in_.v->value, in_.v->d, x_);
      f_.forward(count, in_.v->d, out_->d, x_, y_);
      from_rows(y_, out_->d, out_->value);
    });
  }

  void backward_data(const Run<T>& run, const Worker& worker) override {
    if (!in_.v->grad) return;
    once(run, worker, [&](Index count) {
      const Index n = in_.v->d;
      to_rows(in_.v->value, n, x_);
      to_rows(out_->grad, out_->d, y_);
      f_.vjp(count, n, out_->d, x_, y_, dx_);
      add_gradient();
    });
  }

  void push(const Run<T>& run, const Worker& worker) override {
    if (!out_->tangent) return;
    once(run, worker, [&](Index count) {
      const Index n = in_.v->d;
      if (out_->second) refuse_second_order();
      to_rows(in_.v->tangent, n, dx_);
      // No perturbation in, none out: a block before all that moves needs no jvp.
      if (std::all_of(dx_, dx_ + count * n, [](T dx) { return dx == T(0); })) {
        std::fill(out_->tangent, out_->tangent + samples_ * out_->d, T(0));
        return;
      }
      to_rows(in_.v->value, n, x_);
      f_.jvp(count, n, out_->d, x_, dx_, y_);
      from_rows(y_, out_->d, out_->tangent);
    });
  }

  void backward_jet(const Run<T>& run, const Worker& worker) override {
    if (!in_.v->grad) return;
    // Only along a perturbation would its second derivative be needed.
    if (!in_.v->tangent) return backward_data(run, worker);
    once(run, worker, [this](Index) { refuse_second_order(); });
  }

 private:
  using Block<T>::g;

  [[noreturn]] void refuse_second_order() const {
    throw std::invalid_argument("block '" + stage_.name +
                                "' is written in Python and has first derivatives only: "
                                "second-order quantities need blocks of the library");
  }

  template <class F> void once(const Run<T>& run, const Worker& worker, F&& f) const {
    if (!worker.leader() || run.error->stopped()) return;
    try {
      f(g.plan->count());
    } catch (...) {
      run.error->capture();
    }
  }

  void to_rows(const T* blocks, Index d, T* rows) const {
    const Index lanes = g.lanes();
    for (Index b = 0; b < g.blocks(); ++b)
      g.k->block_to_rows(g.plan->block_samples(b), d, lanes, blocks + b * d * lanes,
                         rows + b * lanes * d, d, false);
  }

  void from_rows(const T* rows, Index d, T* blocks) const {
    const Index lanes = g.lanes();
    for (Index b = 0; b < g.blocks(); ++b)
      g.k->rows_to_block(g.plan->block_samples(b), d, lanes, rows + b * lanes * d, d,
                         blocks + b * d * lanes);
  }

  // Padding lanes hold a copy of the last sample, but their gradient is zero.
  void add_gradient() const {
    const Index lanes = g.lanes(), n = in_.v->d;
    for (Index b = 0; b < g.blocks(); ++b)
      for (Index l = 0; l < lanes; ++l) {
        const bool real = l < g.plan->block_samples(b);
        for (Index j = 0; j < n; ++j) {
          T& to = in_.v->grad[(b * n + j) * lanes + l];
          const T value = real ? dx_[(b * lanes + l) * n + j] : T(0);
          to = in_.accumulate ? to + value : value;
        }
      }
  }

  In<T> in_;
  Variable<T>* out_;
  const Stage& stage_;
  const OpaqueFunction& f_;
  Index samples_;
  T *x_, *dx_, *y_;
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_opaque(Geometry<T> g, In<T> in, Variable<T>* out, const Stage& stage,
                                      Arena& arena) {
  return std::make_unique<Opaque<T>>(g, in, out, stage, arena);
}

template std::unique_ptr<Block<float>> make_opaque(Geometry<float>, In<float>, Variable<float>*,
                                                   const Stage&, Arena&);
template std::unique_ptr<Block<double>> make_opaque(Geometry<double>, In<double>, Variable<double>*,
                                                    const Stage&, Arena&);

}  // namespace gradstack

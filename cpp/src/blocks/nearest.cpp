// The nearest-neighbour model: argmin_k ||x - w_k||^2. Its output is an index; what a cost sees is
// the prototype chosen, and only the prototypes get a gradient.
#include <algorithm>
#include <cstring>

#include "block.hpp"
#include "gradstack/updater.hpp"

namespace gradstack {
namespace {

template <class T> class Nearest final : public Block<T> {
 public:
  Nearest(Geometry<T> geometry, In<T> in, Variable<T>* out, Variable<T>* chosen,
          const Parameter* weight, int weight_id, bool want_dw, bool accumulate_dw, Arena& arena)
      : Block<T>(geometry),
        in_(in),
        out_(out),
        chosen_(chosen),
        w_(*weight),
        weight_id_(weight_id),
        want_dw_(want_dw),
        accumulate_dw_(accumulate_dw),
        prototypes_(weight->shape[0]),
        d_(weight->shape[1]),
        half_norm_(arena.allocate<T>(prototypes_)),
        scores_(arena.allocate<T>(geometry.blocks() * kGroup * geometry.lanes())) {}

  // argmax_k <x, w_k> - ||w_k||^2 / 2 is the same k, and its bulk is one matrix product.
  void prepare(const Run<T>& run, const Worker& worker) override {
    const T* w = run.w + w_.offset;
    worker.for_each(prototypes_, [&](Index k) {
      T sum = 0;
      for (Index i = 0; i < d_; ++i) sum += w[k * d_ + i] * w[k * d_ + i];
      half_norm_[k] = -sum / 2;
    });
  }

  void forward(const Run<T>& run, const Worker& worker) override {
    const T* w = run.w + w_.offset;
    worker.for_each(g.blocks(), [&](Index block) {
      search(w, block);
      if (chosen_) copy_chosen(w, block);
    });
  }

  void backward_data(const Run<T>&, const Worker& worker) override {
    if (!in_.v->grad || in_.accumulate) return;
    const Index n = d_ * g.lanes();
    worker.for_each(g.blocks(), [&](Index block) {
      std::memset(in_.v->grad + block * n, 0, static_cast<std::size_t>(n) * sizeof(T));
    });
  }

  void backward_weights(const Run<T>& run, const Worker& worker) override {
    if (!want_dw_ || !chosen_ || !chosen_->grad) return;
    const Index lanes = g.lanes(), samples = g.plan->count();
    // A worker owns a range of prototypes and reads all samples in order.
    worker.for_each(prototypes_, [&](Index k) {
      T* dw = run.dw + w_.offset + k * d_;
      if (!run.accumulate && !accumulate_dw_)
        std::memset(dw, 0, static_cast<std::size_t>(d_) * sizeof(T));
      for (Index i = 0; i < samples; ++i) {
        const Index block = i / lanes, lane = i % lanes;
        if (static_cast<Index>(out_->value[i]) != k) continue;
        const T* from = chosen_->grad + block * d_ * lanes + lane;
        for (Index j = 0; j < d_; ++j) dw[j] += from[j * lanes];
      }
      if (run.updater) run.updater->apply(weight_id_, k * d_, d_, dw);
    });
  }

  void per_sample_gradients(const Worker& worker, T* rows, Index ld) override {
    const Index lanes = g.lanes();
    worker.for_each(g.plan->count(), [&](Index s) {
      T* dw = rows + s * ld + w_.offset;
      if (!accumulate_dw_) std::memset(dw, 0, static_cast<std::size_t>(w_.size) * sizeof(T));
      const T* from = chosen_->grad + s / lanes * d_ * lanes + s % lanes;
      for (Index j = 0; j < d_; ++j)
        dw[static_cast<Index>(out_->value[s]) * d_ + j] += from[j * lanes];
    });
  }

  // The index is piecewise constant: its derivatives stay zero, and none passes back through it.
  void push(const Run<T>&, const Worker&) override {}
  void backward_jet(const Run<T>& run, const Worker& worker) override {
    backward_data(run, worker);
    if (in_.accumulate || !worker.leader()) return;
    const std::size_t bytes = static_cast<std::size_t>(d_ * g.lanes() * g.blocks()) * sizeof(T);
    if (in_.v->grad_tangent) std::memset(in_.v->grad_tangent, 0, bytes);
    if (in_.v->grad_second) std::memset(in_.v->grad_second, 0, bytes);
  }
  void backward_jet_weights(const Run<T>& run, const Worker& worker) override {
    if (want_dw_ && !run.accumulate && !accumulate_dw_ && worker.leader())
      std::memset(run.dw + w_.offset, 0, static_cast<std::size_t>(w_.size) * sizeof(T));
  }

 private:
  using Block<T>::g;
  static constexpr Index kGroup = 48;  // prototypes scored at a time

  void search(const T* w, Index block) const {
    const Index lanes = g.lanes();
    const T* x = in_.v->value + block * d_ * lanes;
    T* scores = scores_ + block * kGroup * lanes;
    T* index = out_->value + block * lanes;
    T best[kLanes];
    for (Index first = 0; first < prototypes_; first += kGroup) {
      const Index n = std::min(kGroup, prototypes_ - first);
      g.k->gemm({.m = n,
                 .n = lanes,
                 .k = d_,
                 .a = w + first * d_,
                 .a_row = d_,
                 .a_col = 1,
                 .b = x,
                 .ldb = lanes,
                 .c = scores,
                 .ldc = lanes,
                 .bias = half_norm_ + first});
      for (Index k = 0; k < n; ++k)
        for (Index l = 0; l < lanes; ++l) {
          const T score = scores[k * lanes + l];
          const bool better = first + k == 0 || score > best[l];  // ties: the first prototype
          best[l] = better ? score : best[l];
          index[l] = better ? static_cast<T>(first + k) : index[l];
        }
    }
  }

  void copy_chosen(const T* w, Index block) const {
    const Index lanes = g.lanes();
    for (Index l = 0; l < lanes; ++l) {
      const T* from = w + static_cast<Index>(out_->value[block * lanes + l]) * d_;
      for (Index j = 0; j < d_; ++j) chosen_->value[(block * d_ + j) * lanes + l] = from[j];
    }
  }

  In<T> in_;
  Variable<T>* out_;
  Variable<T>* chosen_;
  const Parameter& w_;
  int weight_id_;
  bool want_dw_, accumulate_dw_;
  Index prototypes_, d_;
  T* half_norm_;
  T* scores_;
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_nearest(Geometry<T> g, In<T> in, Variable<T>* out,
                                       Variable<T>* chosen, const Parameter* weight, int weight_id,
                                       bool want_dw, bool accumulate_dw, Arena& arena) {
  return std::make_unique<Nearest<T>>(g, in, out, chosen, weight, weight_id, want_dw, accumulate_dw,
                                      arena);
}

template std::unique_ptr<Block<float>> make_nearest(Geometry<float>, In<float>, Variable<float>*,
                                                    Variable<float>*, const Parameter*, int, bool,
                                                    bool, Arena&);
template std::unique_ptr<Block<double>> make_nearest(Geometry<double>, In<double>,
                                                     Variable<double>*, Variable<double>*,
                                                     const Parameter*, int, bool, bool, Arena&);

}  // namespace gradstack

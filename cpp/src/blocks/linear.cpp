// s = W z + b, with the pointwise block behind it fused: bias and h in the forward epilogue, h' of
// the block below in the dZ epilogue, the update behind dW.
#include <algorithm>

#include "block.hpp"
#include "gradstack/updater.hpp"

namespace gradstack {
namespace {

// Rows of an output handled per call: big enough to amortise the call, small enough to divide the
// narrow layers among threads. Results do not depend on it.
constexpr Index kTileRows = 24;

Index tiles(Index rows) { return (rows + kTileRows - 1) / kTileRows; }

template <class T> class Linear final : public Block<T> {
 public:
  Linear(Geometry<T> geometry, const LinearSpec<T>* spec, Arena& arena)
      : Block<T>(geometry), p_(*spec), out_(p_.weight->shape[0]), in_(p_.weight->shape[1]) {
    if (!p_.mask) return;
    masked_w_ = arena.allocate<T>(out_ * in_);
    mask_ = arena.allocate<T>(out_ * in_);
    if (geometry.plan->options().tangents) masked_direction_ = arena.allocate<T>(out_ * in_);
    for (Index i = 0; i < out_ * in_; ++i) mask_[i] = T((*p_.mask)[static_cast<std::size_t>(i)] != 0);
  }

  void prepare(const Run<T>& run, const Worker& worker) override {
    if (!p_.mask) return;
    worker.for_each(out_, [&](Index row) { apply_mask(run.w + p_.weight->offset, masked_w_, row); });
  }

  void forward(const Run<T>& run, const Worker& worker) override {
    const T* w = weights(run);
    const T* bias = p_.bias ? run.w + p_.bias->offset : nullptr;
    const Index lanes = g.lanes(), blocks = g.blocks();
    worker.for_each(tiles(out_) * blocks, [&](Index item) {
      const Index r0 = item / blocks * kTileRows, block = item % blocks;
      const Index rows = std::min(kTileRows, out_ - r0);
      const T* z = p_.in.v->value + block * in_ * lanes;
      T* s = p_.s->value + (block * out_ + r0) * lanes;
      if (p_.make_rows && r0 == 0) transpose_input(block, z);
      product(rows, w + r0 * in_, z, bias ? bias + r0 : nullptr, s, false);
      if (p_.fused.op >= 0)
        g.k->pointwise[p_.fused.op].forward(rows * lanes, p_.fused.params, s,
                                            p_.out->value + (block * out_ + r0) * lanes);
    });
  }

  void backward_data(const Run<T>& run, const Worker& worker) override {
    if (!p_.out->grad) return;  // nothing above the inputs is wanted here
    const Index lanes = g.lanes(), blocks = g.blocks();
    if (p_.fused.op >= 0 && !p_.consumer_applies_derivative) {
      worker.for_each(blocks, [&](Index block) { apply_derivative(p_, block, 0, out_); });
      worker.sync();
    }
    T* dz = p_.in.v->grad;
    if (!dz) return;
    const T* w = weights(run);
    worker.for_each(tiles(in_) * blocks, [&](Index item) {
      const Index r0 = item / blocks * kTileRows, block = item % blocks;
      const Index rows = std::min(kTileRows, in_ - r0);
      const T* ds = p_.s->grad + block * out_ * lanes;
      T* tile = dz + (block * in_ + r0) * lanes;
      if (lanes == 1)
        g.k->gemv_t(out_, rows, w + r0, in_, ds, tile, p_.in.accumulate);
      else
        g.k->gemm({.m = rows, .n = lanes, .k = out_, .a = w + r0, .a_row = 1, .a_col = in_,
                   .b = ds, .ldb = lanes, .c = tile, .ldc = lanes, .accumulate = p_.in.accumulate});
      if (p_.producer) apply_derivative(*p_.producer, block, r0, rows);
    });
  }

  void backward_weights(const Run<T>& run, const Worker& worker) override {
    if (!p_.want_dw && !p_.want_db) return;
    worker.for_each(tiles(out_), [&](Index tile) {
      const Index r0 = tile * kTileRows, rows = std::min(kTileRows, out_ - r0);
      if (p_.want_dw) weight_gradient(run, r0, rows);
      if (p_.want_db) bias_gradient(run, r0, rows);
    });
  }

  // ds = W dz + dW z + db
  void jvp(const Run<T>& run, const Worker& worker) override {
    const T* w = weights(run);
    const T* dw = run.tangent_w ? run.tangent_w + p_.weight->offset : nullptr;
    const T* db = run.tangent_w && p_.bias ? run.tangent_w + p_.bias->offset : nullptr;
    if (dw && p_.mask) {
      worker.for_each(out_, [&](Index row) { apply_mask(dw, masked_direction_, row); });
      worker.sync();
      dw = masked_direction_;
    }
    const Index lanes = g.lanes(), blocks = g.blocks();
    worker.for_each(tiles(out_) * blocks, [&](Index item) {
      const Index r0 = item / blocks * kTileRows, block = item % blocks;
      const Index rows = std::min(kTileRows, out_ - r0), at = (block * out_ + r0) * lanes;
      T* ds = p_.s->tangent + at;
      product(rows, w + r0 * in_, p_.in.v->tangent + block * in_ * lanes, db ? db + r0 : nullptr,
              ds, false);
      if (dw) product(rows, dw + r0 * in_, p_.in.v->value + block * in_ * lanes, nullptr, ds, true);
      if (p_.fused.op >= 0)
        g.k->pointwise[p_.fused.op].backward(rows * lanes, p_.fused.params,
                                             p_.keeps_s ? p_.s->value + at : nullptr,
                                             p_.out->value + at, ds, p_.out->tangent + at);
    });
  }

 private:
  using Block<T>::g;

  const T* weights(const Run<T>& run) const { return p_.mask ? masked_w_ : run.w + p_.weight->offset; }

  void apply_mask(const T* from, T* to, Index row) const {
    g.k->mul(in_, from + row * in_, mask_ + row * in_, to + row * in_, false);
  }

  // s = W z + bias (or s += W z) for `rows` rows of one block.
  void product(Index rows, const T* w, const T* z, const T* bias, T* s, bool accumulate) const {
    const Index lanes = g.lanes();
    if (lanes == 1 && !accumulate)
      g.k->gemv(rows, in_, w, in_, z, bias, s);
    else
      g.k->gemm({.m = rows, .n = lanes, .k = in_, .a = w, .a_row = in_, .a_col = 1, .b = z,
                 .ldb = lanes, .c = s, .ldc = lanes, .bias = bias, .accumulate = accumulate});
  }

  void transpose_input(Index block, const T* z) const {
    const Index lanes = g.lanes();
    g.k->block_to_rows(lanes, in_, lanes, z, p_.in.v->rows + block * lanes * p_.in.v->ld_rows,
                       p_.in.v->ld_rows, false);
  }

  // ds = dz * h'(s) on rows r0.. of the output of `spec`.
  void apply_derivative(const LinearSpec<T>& spec, Index block, Index r0, Index rows) const {
    const Index lanes = g.lanes(), at = (block * spec.out->d + r0) * lanes;
    g.k->pointwise[spec.fused.op].backward(
        rows * lanes, spec.fused.params, spec.keeps_s ? spec.s->value + at : nullptr,
        spec.out->value + at, spec.out->grad + at, spec.s->grad + at);
  }

  void weight_gradient(const Run<T>& run, Index r0, Index rows) const {
    const Index lanes = g.lanes(), samples = g.plan->count();
    T* dw = run.dw + p_.weight->offset + r0 * in_;
    const T* ds = p_.s->grad + r0 * lanes;
    const T* z = p_.in.v->rows;
    const Index ldz = p_.in.v->ld_rows, full = samples / lanes, rest = samples % lanes;
    bool accumulate = run.accumulate || p_.accumulate_dw;
    if (lanes == 1) {
      g.k->ger(rows, in_, ds, z, dw, in_, accumulate);
    } else {
      Gemm<T> product{.m = rows, .n = in_, .k = lanes, .segments = full, .a = ds, .a_row = lanes,
                      .a_col = 1, .a_seg = out_ * lanes, .b = z, .ldb = ldz, .b_seg = lanes * ldz,
                      .c = dw, .ldc = in_, .accumulate = accumulate};
      if (full > 0) g.k->gemm(product);
      if (rest > 0) {
        product.k = rest;
        product.segments = 1;
        product.a += full * product.a_seg;
        product.b += full * product.b_seg;
        product.accumulate = accumulate || full > 0;
        g.k->gemm(product);
      }
    }
    if (p_.mask)
      g.k->mul(rows * in_, dw, mask_ + r0 * in_, dw, false);
    if (run.updater) run.updater->apply(p_.weight_id, r0 * in_, rows * in_, dw);
  }

  void bias_gradient(const Run<T>& run, Index r0, Index rows) const {
    const Index lanes = g.lanes();
    T* db = run.dw + p_.bias->offset + r0;
    g.k->sum_lanes(rows, lanes, g.blocks(), out_ * lanes, p_.s->grad + r0 * lanes, db,
                   run.accumulate || p_.accumulate_db);
    if (run.updater) run.updater->apply(p_.bias_id, r0, rows, db);
  }

  const LinearSpec<T>& p_;
  Index out_, in_;
  T* masked_w_ = nullptr;
  T* masked_direction_ = nullptr;
  T* mask_ = nullptr;
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_linear(Geometry<T> g, const LinearSpec<T>* spec, Arena& arena) {
  return std::make_unique<Linear<T>>(g, spec, arena);
}

template std::unique_ptr<Block<float>> make_linear(Geometry<float>, const LinearSpec<float>*, Arena&);
template std::unique_ptr<Block<double>> make_linear(Geometry<double>, const LinearSpec<double>*, Arena&);

}  // namespace gradstack

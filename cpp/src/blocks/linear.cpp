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
    if (geometry.plan->options().parameter_tangents)
      masked_direction_ = arena.allocate<T>(out_ * in_);
    for (Index i = 0; i < out_ * in_; ++i)
      mask_[i] = T((*p_.mask)[static_cast<std::size_t>(i)] != 0);
  }

  void prepare(const Run<T>& run, const Worker& worker) override {
    if (!p_.mask) return;
    worker.for_each(out_,
                    [&](Index row) { apply_mask(run.w + p_.weight->offset, masked_w_, row); });
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
    const Index blocks = g.blocks();
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
      pull(block, r0, rows, w, p_.s->grad, dz, p_.in.accumulate);
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

  // s_t = W z_t + V z + v_b along the direction (z_t, V, v_b); s_tt = W z_tt.
  void push(const Run<T>& run, const Worker& worker) override {
    if (!p_.s->tangent) return;
    const T* w = weights(run);
    const T* direction = masked_direction(run, worker);
    const T* bias = direction && p_.bias ? run.tangent_w + p_.bias->offset : nullptr;
    const Index lanes = g.lanes(), blocks = g.blocks();
    const Variable<T>& z = *p_.in.v;
    worker.for_each(tiles(out_) * blocks, [&](Index item) {
      const Index r0 = item / blocks * kTileRows, block = item % blocks;
      const Index rows = std::min(kTileRows, out_ - r0), at = (block * out_ + r0) * lanes;
      const Index from = block * in_ * lanes;
      T* ds = p_.s->tangent + at;
      const T* db = bias ? bias + r0 : nullptr;
      if (z.tangent) product(rows, w + r0 * in_, z.tangent + from, db, ds, false);
      if (direction)
        product(rows, direction + r0 * in_, z.value + from, z.tangent ? nullptr : db, ds,
                z.tangent);
      if (p_.s->second)
        product(rows, w + r0 * in_, z.second + from, nullptr, p_.s->second + at, false);
      if (p_.make_jet_rows && r0 == 0) transpose_jet(block);
      if (p_.fused.op >= 0)
        g.k->pointwise[p_.fused.op].backward(rows * lanes, p_.fused.params,
                                             p_.keeps_s ? p_.s->value + at : nullptr,
                                             p_.out->value + at, ds, p_.out->tangent + at);
    });
  }

  // With cotangents g, g_t, g_tt of s, s_t, s_tt:
  //   dC/dz = W^T g + V^T g_t,  dC/dz_t = W^T g_t,  dC/dz_tt = W^T g_tt.
  void backward_jet(const Run<T>& run, const Worker& worker) override {
    const Variable<T>&z = *p_.in.v, &s = *p_.s;
    if (!z.grad) return;
    const T* w = weights(run);
    const T* direction = p_.mask && run.tangent_w ? masked_direction_ : parameter_direction(run);
    const Index blocks = g.blocks();
    worker.for_each(tiles(in_) * blocks, [&](Index item) {
      const Index r0 = item / blocks * kTileRows, block = item % blocks;
      const Index rows = std::min(kTileRows, in_ - r0);
      pull(block, r0, rows, w, s.grad, z.grad, p_.in.accumulate);
      if (direction && s.grad_tangent)
        pull(block, r0, rows, direction, s.grad_tangent, z.grad, true);
      if (z.grad_tangent)
        pull(block, r0, rows, w, s.grad_tangent, z.grad_tangent, p_.in.accumulate);
      if (z.grad_second) pull(block, r0, rows, w, s.grad_second, z.grad_second, p_.in.accumulate);
    });
  }

  // dC/dW = g z^T + g_t z_t^T + g_tt z_tt^T, dC/db = sum of g.
  void backward_jet_weights(const Run<T>& run, const Worker& worker) override {
    if (!p_.want_dw && !p_.want_db) return;
    const Variable<T>&z = *p_.in.v, &s = *p_.s;
    worker.for_each(tiles(out_), [&](Index tile) {
      const Index r0 = tile * kTileRows, rows = std::min(kTileRows, out_ - r0);
      if (p_.want_dw) {
        T* dw = run.dw + p_.weight->offset + r0 * in_;
        outer_products(r0, rows, s.grad, z.rows, z.ld_rows, dw, run.accumulate || p_.accumulate_dw);
        if (z.tangent_rows) outer_products(r0, rows, s.grad_tangent, z.tangent_rows, in_, dw, true);
        if (z.second_rows) outer_products(r0, rows, s.grad_second, z.second_rows, in_, dw, true);
        if (p_.mask) g.k->mul(rows * in_, dw, mask_ + r0 * in_, dw, false);
      }
      if (p_.want_db) bias_gradient(run, r0, rows);
    });
  }

  // g_s = ds_s z_s^T (and ds_s for the bias).
  void per_sample_gradients(const Worker& worker, T* rows, Index ld) override {
    const Index lanes = g.lanes();
    worker.for_each(g.plan->count(), [&](Index s) {
      std::vector<T> ds(static_cast<std::size_t>(out_));
      for (Index i = 0; i < out_; ++i)
        ds[static_cast<std::size_t>(i)] = p_.s->grad[(s / lanes * out_ + i) * lanes + s % lanes];
      T* dw = rows + s * ld + p_.weight->offset;
      g.k->ger(out_, in_, ds.data(), p_.in.v->rows + s * p_.in.v->ld_rows, dw, in_,
               p_.accumulate_dw);
      if (p_.mask) g.k->mul(out_ * in_, dw, mask_, dw, false);
      if (p_.bias)
        g.k->axpy(out_, T(1), ds.data(), rows + s * ld + p_.bias->offset, p_.accumulate_db);
    });
  }

  // ||ds z^T||^2 = ||ds||^2 ||z||^2, with a mask the sum over its connections.
  void per_sample_squared_norms(const Worker& worker, T* norms) override {
    const Index lanes = g.lanes();
    worker.for_each(g.blocks(), [&](Index block) {
      const T* z = p_.in.v->value + block * in_ * lanes;
      const T* ds = p_.s->grad + block * out_ * lanes;
      T zz[kLanes] = {}, sum[kLanes] = {};
      if (!p_.mask) add_squares(in_, z, zz);
      for (Index i = 0; i < out_; ++i) {
        if (p_.mask) {
          std::fill_n(zz, lanes, T(0));
          for (Index j = 0; j < in_; ++j)
            if (mask_[i * in_ + j] != T(0)) add_squares(1, z + j * lanes, zz);
        }
        for (Index l = 0; l < lanes; ++l)
          sum[l] += ds[i * lanes + l] * ds[i * lanes + l] * (zz[l] + (p_.bias ? T(1) : T(0)));
      }
      for (Index l = 0; l < g.plan->block_samples(block); ++l) norms[block * lanes + l] += sum[l];
    });
  }

  // <ds z^T, V> + <ds, v_b> = <ds, V z + v_b>
  void per_sample_products(const Worker& worker, const T* v, T* products) override {
    const Index lanes = g.lanes();
    worker.for_each(g.blocks(), [&](Index block) {
      T sum[kLanes] = {};
      for (Index r0 = 0; r0 < out_; r0 += kTileRows) {
        const Index rows = std::min(kTileRows, out_ - r0);
        const T* direction = v + p_.weight->offset + r0 * in_;
        std::vector<T> masked;
        if (p_.mask) {
          masked.resize(static_cast<std::size_t>(rows * in_));
          g.k->mul(rows * in_, direction, mask_ + r0 * in_, masked.data(), false);
          direction = masked.data();
        }
        T change[kTileRows * kLanes];
        product(rows, direction, p_.in.v->value + block * in_ * lanes,
                p_.bias ? v + p_.bias->offset + r0 : nullptr, change, false);
        const T* ds = p_.s->grad + (block * out_ + r0) * lanes;
        for (Index i = 0; i < rows * lanes; ++i) sum[i % lanes] += ds[i] * change[i];
      }
      for (Index l = 0; l < g.plan->block_samples(block); ++l)
        products[block * lanes + l] += sum[l];
    });
  }

  // sum over samples of (ds z^T)^2 = (ds^2) (z^2)^T
  void per_sample_squares(const Worker& worker, T* total, bool accumulate) override {
    const Index lanes = g.lanes(), samples = g.plan->count();
    if (worker.leader()) squared_rows_.resize(static_cast<std::size_t>(samples * in_));
    worker.sync();
    worker.for_each(samples, [&](Index s) {
      const T* z = p_.in.v->rows + s * p_.in.v->ld_rows;
      g.k->mul(in_, z, z, squared_rows_.data() + s * in_, false);
    });
    worker.sync();
    worker.for_each(tiles(out_), [&](Index tile) {
      const Index r0 = tile * kTileRows, rows = std::min(kTileRows, out_ - r0);
      std::vector<T> squared(static_cast<std::size_t>(g.blocks() * out_ * lanes));
      for (Index block = 0; block < g.blocks(); ++block) {
        const Index at = (block * out_ + r0) * lanes;
        g.k->mul(rows * lanes, p_.s->grad + at, p_.s->grad + at, squared.data() + at, false);
      }
      T* dw = total + p_.weight->offset + r0 * in_;
      outer_products(r0, rows, squared.data(), squared_rows_.data(), in_, dw, accumulate);
      if (p_.mask) g.k->mul(rows * in_, dw, mask_ + r0 * in_, dw, false);
      if (p_.bias)
        g.k->sum_lanes(rows, lanes, g.blocks(), out_ * lanes, squared.data() + r0 * lanes,
                       total + p_.bias->offset + r0, accumulate);
    });
  }

 private:
  using Block<T>::g;

  // sums[l] += squares of lane l over `rows` rows.
  void add_squares(Index rows, const T* x, T* sums) const {
    const Index lanes = g.lanes();
    for (Index j = 0; j < rows; ++j)
      for (Index l = 0; l < lanes; ++l) sums[l] += x[j * lanes + l] * x[j * lanes + l];
  }

  const T* weights(const Run<T>& run) const {
    return p_.mask ? masked_w_ : run.w + p_.weight->offset;
  }

  void apply_mask(const T* from, T* to, Index row) const {
    g.k->mul(in_, from + row * in_, mask_ + row * in_, to + row * in_, false);
  }

  // s = W z + bias (or s += W z) for `rows` rows of one block.
  void product(Index rows, const T* w, const T* z, const T* bias, T* s, bool accumulate) const {
    const Index lanes = g.lanes();
    if (lanes == 1 && !accumulate)
      g.k->gemv(rows, in_, w, in_, z, bias, s);
    else
      g.k->gemm({.m = rows,
                 .n = lanes,
                 .k = in_,
                 .a = w,
                 .a_row = in_,
                 .a_col = 1,
                 .b = z,
                 .ldb = lanes,
                 .c = s,
                 .ldc = lanes,
                 .bias = bias,
                 .accumulate = accumulate});
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
    T* dw = run.dw + p_.weight->offset + r0 * in_;
    outer_products(r0, rows, p_.s->grad, p_.in.v->rows, p_.in.v->ld_rows, dw,
                   run.accumulate || p_.accumulate_dw);
    if (p_.mask) g.k->mul(rows * in_, dw, mask_ + r0 * in_, dw, false);
    if (run.updater) run.updater->apply(p_.weight_id, r0 * in_, rows * in_, dw);
  }

  // Rows r0.. of sum over samples of ds z^T; z is (samples, in) with row stride ldz.
  void outer_products(Index r0, Index rows, const T* grad, const T* z, Index ldz, T* dw,
                      bool accumulate) const {
    const Index lanes = g.lanes(), samples = g.plan->count();
    const Index full = samples / lanes, rest = samples % lanes;
    const T* ds = grad + r0 * lanes;
    if (lanes == 1) {
      g.k->ger(rows, in_, ds, z, dw, in_, accumulate);
      return;
    }
    Gemm<T> product{.m = rows,
                    .n = in_,
                    .k = lanes,
                    .segments = full,
                    .a = ds,
                    .a_row = lanes,
                    .a_col = 1,
                    .a_seg = out_ * lanes,
                    .b = z,
                    .ldb = ldz,
                    .b_seg = lanes * ldz,
                    .c = dw,
                    .ldc = in_,
                    .accumulate = accumulate};
    if (full > 0) g.k->gemm(product);
    if (rest == 0) return;
    product.k = rest;
    product.segments = 1;
    product.a += full * product.a_seg;
    product.b += full * product.b_seg;
    product.accumulate = accumulate || full > 0;
    g.k->gemm(product);
  }

  // Rows r0.. of z (+)= W^T s in one block.
  void pull(Index block, Index r0, Index rows, const T* w, const T* s, T* z,
            bool accumulate) const {
    const Index lanes = g.lanes();
    const T* from = s + block * out_ * lanes;
    T* to = z + (block * in_ + r0) * lanes;
    if (lanes == 1)
      g.k->gemv_t(out_, rows, w + r0, in_, from, to, accumulate);
    else
      g.k->gemm({.m = rows,
                 .n = lanes,
                 .k = out_,
                 .a = w + r0,
                 .a_row = 1,
                 .a_col = in_,
                 .b = from,
                 .ldb = lanes,
                 .c = to,
                 .ldc = lanes,
                 .accumulate = accumulate});
  }

  const T* parameter_direction(const Run<T>& run) const {
    return run.tangent_w ? run.tangent_w + p_.weight->offset : nullptr;
  }

  // The weights' direction without its masked entries; SPMD, complete on return.
  const T* masked_direction(const Run<T>& run, const Worker& worker) const {
    const T* direction = parameter_direction(run);
    if (!direction || !p_.mask) return direction;
    worker.for_each(out_, [&](Index row) { apply_mask(direction, masked_direction_, row); });
    worker.sync();
    return masked_direction_;
  }

  void transpose_jet(Index block) const {
    const Index lanes = g.lanes(), from = block * in_ * lanes;
    const Variable<T>& z = *p_.in.v;
    g.k->block_to_rows(lanes, in_, lanes, z.tangent + from, z.tangent_rows + from, in_, false);
    if (z.second_rows)
      g.k->block_to_rows(lanes, in_, lanes, z.second + from, z.second_rows + from, in_, false);
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
  std::vector<T> squared_rows_;  // z^2, for per_sample_squares
};

}  // namespace

template <class T>
std::unique_ptr<Block<T>> make_linear(Geometry<T> g, const LinearSpec<T>* spec, Arena& arena) {
  return std::make_unique<Linear<T>>(g, spec, arena);
}

template std::unique_ptr<Block<float>> make_linear(Geometry<float>, const LinearSpec<float>*,
                                                   Arena&);
template std::unique_ptr<Block<double>> make_linear(Geometry<double>, const LinearSpec<double>*,
                                                    Arena&);

}  // namespace gradstack

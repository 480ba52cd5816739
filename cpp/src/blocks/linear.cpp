// s = W z + b, with the pointwise block behind it fused: bias and h in the forward epilogue, h' of
// the block below in the dZ epilogue, the update behind dW.
#include <algorithm>

#include "block.hpp"
#include "dense_products.hpp"
#include "gradstack/updater.hpp"

namespace gradstack {
namespace {

template <class T> class Linear final : public Block<T> {
 public:
  Linear(Geometry<T> geometry, const LinearSpec<T>* spec, Arena& arena)
      : Block<T>(geometry),
        p_(*spec),
        out_(p_.weight->shape[0]),
        in_(p_.weight->shape[1]),
        dense_{geometry, out_, in_} {
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
    const Index lanes = g.lanes();
    const Cut cut = dense_.forward_cut(worker);
    worker.for_each(cut.items(), [&](Index i) {
      const Item item = dense_.item(cut, i, out_);
      if (p_.make_tiles) make_tiles(cut, item, p_.in.v->value, p_.in.v->tiles);
      if (!run.begun || !p_.begins)
        dense_.forward(item, w, p_.in.v->value, bias, p_.s->value, false);
      else if (bias)
        g.k->add(item.rows, p_.s->value + item.r0, bias + item.r0, p_.s->value + item.r0);
      if (p_.fused.op < 0) return;
      for (Index b = item.block; b < item.block + item.blocks; ++b) {
        const Index at = (b * out_ + item.r0) * lanes;
        g.k->pointwise[p_.fused.op].forward(item.rows * lanes, p_.fused.params, p_.s->value + at,
                                            p_.out->value + at);
      }
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
    const Cut cut = dense_.backward_cut(worker);
    worker.for_each(cut.items(), [&](Index i) {
      const Item item = dense_.item(cut, i, in_);
      dense_.backward(item, w, p_.s->grad, dz, p_.in.accumulate);
      if (!p_.producer) return;
      for (Index b = item.block; b < item.block + item.blocks; ++b)
        apply_derivative(*p_.producer, b, item.r0, item.rows);
    });
  }

  void backward_weights(const Run<T>& run, const Worker& worker) override {
    if (!p_.want_dw && !p_.want_db) return;
    const Cut cut = dense_.weights_cut(worker);
    T* dw = run.dw + p_.weight->offset;
    // A gradient that the update uses up at once need not be kept: the worker's items share the
    // place of its first one, which so stays in cache.
    const Index place = run.updater ? cut.items() * worker.id / worker.count : -1;
    worker.for_each(cut.items(), [&](Index i) {
      const Item item(cut, i, out_, 1);
      const Index row = place < 0 ? item.r0 : place * cut.rows;
      if (p_.want_dw && run.next_input && p_.begins)
        update_and_begin(run, item.r0, item.rows, dw + row * in_);
      else if (p_.want_dw)
        weight_gradient(run, item.r0, item.rows, dw + row * in_);
      if (p_.want_db) bias_gradient(run, item.r0, item.rows);
    });
  }

  // s_t = W z_t + V z + v_b along the direction (z_t, V, v_b); s_tt = W z_tt.
  void push(const Run<T>& run, const Worker& worker) override {
    if (!p_.s->tangent) return;
    const T* w = weights(run);
    const T* direction = masked_direction(run, worker);
    const T* bias = direction && p_.bias ? run.tangent_w + p_.bias->offset : nullptr;
    const Index lanes = g.lanes();
    const Variable<T>& z = *p_.in.v;
    const Cut cut = dense_.forward_cut(worker);
    worker.for_each(cut.items(), [&](Index i) {
      const Item item = dense_.item(cut, i, out_);
      if (z.tangent) dense_.forward(item, w, z.tangent, bias, p_.s->tangent, false);
      if (direction)
        dense_.forward(item, direction, z.value, z.tangent ? nullptr : bias, p_.s->tangent,
                       z.tangent);
      if (p_.s->second) dense_.forward(item, w, z.second, nullptr, p_.s->second, false);
      if (p_.make_jet_tiles) {
        make_tiles(cut, item, z.tangent, z.tangent_tiles);
        if (z.second) make_tiles(cut, item, z.second, z.second_tiles);
      }
      if (p_.fused.op < 0) return;
      for (Index b = item.block; b < item.block + item.blocks; ++b) {
        const Index at = (b * out_ + item.r0) * lanes;
        g.k->pointwise[p_.fused.op].backward(
            item.rows * lanes, p_.fused.params, p_.keeps_s ? p_.s->value + at : nullptr,
            p_.out->value + at, p_.s->tangent + at, p_.out->tangent + at);
      }
    });
  }

  // With cotangents g, g_t, g_tt of s, s_t, s_tt:
  //   dC/dz = W^T g + V^T g_t,  dC/dz_t = W^T g_t,  dC/dz_tt = W^T g_tt.
  void backward_jet(const Run<T>& run, const Worker& worker) override {
    const Variable<T>&z = *p_.in.v, &s = *p_.s;
    if (!z.grad) return;
    const T* w = weights(run);
    const T* direction = p_.mask && run.tangent_w ? masked_direction_ : parameter_direction(run);
    const Cut cut = dense_.backward_cut(worker);
    worker.for_each(cut.items(), [&](Index i) {
      const Item item = dense_.item(cut, i, in_);
      dense_.backward(item, w, s.grad, z.grad, p_.in.accumulate);
      if (direction && s.grad_tangent)
        dense_.backward(item, direction, s.grad_tangent, z.grad, true);
      if (z.grad_tangent)
        dense_.backward(item, w, s.grad_tangent, z.grad_tangent, p_.in.accumulate);
      if (z.grad_second) dense_.backward(item, w, s.grad_second, z.grad_second, p_.in.accumulate);
    });
  }

  // dC/dW = g z^T + g_t z_t^T + g_tt z_tt^T, dC/db = sum of g.
  void backward_jet_weights(const Run<T>& run, const Worker& worker) override {
    if (!p_.want_dw && !p_.want_db) return;
    const Variable<T>&z = *p_.in.v, &s = *p_.s;
    const Cut cut = dense_.weights_cut(worker);
    worker.for_each(cut.items(), [&](Index i) {
      const Index r0 = i * cut.rows, rows = std::min(cut.rows, out_ - r0);
      if (p_.want_dw) {
        T* dw = run.dw + p_.weight->offset + r0 * in_;
        dense_.weights(r0, rows, s.grad, z.tiles, dw, run.accumulate || p_.accumulate_dw);
        if (z.tangent_tiles) dense_.weights(r0, rows, s.grad_tangent, z.tangent_tiles, dw, true);
        if (z.second_tiles) dense_.weights(r0, rows, s.grad_second, z.second_tiles, dw, true);
        if (p_.mask) g.k->mul(rows * in_, dw, mask_ + r0 * in_, dw, false);
      }
      if (p_.want_db) bias_gradient(run, r0, rows);
    });
  }

  // g_s = ds_s z_s^T (and ds_s for the bias).
  void per_sample_gradients(const Worker& worker, T* rows, Index ld) override {
    const Index lanes = g.lanes();
    worker.for_each(g.plan->count(), [&](Index s) {
      std::vector<T> ds(static_cast<std::size_t>(out_)), z(static_cast<std::size_t>(in_));
      for (Index j = 0; j < in_; j += kPanel)
        std::copy_n(p_.in.v->tiles + dense_.tile_at(s, j), std::min(kPanel, in_ - j), z.data() + j);
      for (Index i = 0; i < out_; ++i)
        ds[static_cast<std::size_t>(i)] = p_.s->grad[(s / lanes * out_ + i) * lanes + s % lanes];
      T* dw = rows + s * ld + p_.weight->offset;
      g.k->ger(out_, in_, ds.data(), z.data(), dw, in_, p_.accumulate_dw);
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
        dense_.forward(rows, 1, direction, p_.in.v->value + block * in_ * lanes,
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
    const Index lanes = g.lanes(), size = dense_.tile_at(lanes, 0);  // of a block's tiles
    if (worker.leader()) squared_tiles_.resize(static_cast<std::size_t>(g.blocks() * size));
    worker.sync();
    worker.for_each(g.blocks(), [&](Index block) {
      const T* z = p_.in.v->tiles + block * size;
      g.k->mul(size, z, z, squared_tiles_.data() + block * size, false);
    });
    worker.sync();
    const Cut cut = dense_.weights_cut(worker);
    worker.for_each(cut.items(), [&](Index i) {
      const Index r0 = i * cut.rows, rows = std::min(cut.rows, out_ - r0);
      std::vector<T> squared(static_cast<std::size_t>(g.blocks() * out_ * lanes));
      for (Index block = 0; block < g.blocks(); ++block) {
        const Index at = (block * out_ + r0) * lanes;
        g.k->mul(rows * lanes, p_.s->grad + at, p_.s->grad + at, squared.data() + at, false);
      }
      T* dw = total + p_.weight->offset + r0 * in_;
      dense_.weights(r0, rows, squared.data(), squared_tiles_.data(), dw, accumulate);
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

  // Tiles of an item's blocks; the panels are divided among the row groups of the cut.
  void make_tiles(const Cut& cut, const Item& item, const T* z, T* tiles) const {
    const Index lanes = g.lanes(), panels = p_.in.v->panels();
    const Index from = panels * item.group / cut.row_groups;
    const Index to = panels * (item.group + 1) / cut.row_groups;
    for (Index b = item.block; b < item.block + item.blocks; ++b)
      for (Index j = from * kPanel; j < std::min(in_, to * kPanel); j += kPanel)
        g.k->block_to_rows(lanes, std::min(kPanel, in_ - j), lanes, z + (b * in_ + j) * lanes,
                           tiles + dense_.tile_at(b * lanes, j), kPanel, false);
  }

  // ds = dz * h'(s) on rows r0.. of the output of `spec`.
  void apply_derivative(const LinearSpec<T>& spec, Index block, Index r0, Index rows) const {
    const Index lanes = g.lanes(), at = (block * spec.out->d + r0) * lanes;
    g.k->pointwise[spec.fused.op].backward(
        rows * lanes, spec.fused.params, spec.keeps_s ? spec.s->value + at : nullptr,
        spec.out->value + at, spec.out->grad + at, spec.s->grad + at);
  }

  // To `dw`, then into the update; or at once, with a single sample.
  void weight_gradient(const Run<T>& run, Index r0, Index rows, T* dw) const {
    const bool accumulate = run.accumulate || p_.accumulate_dw;
    if (run.updater && dense_.one_sample() && !accumulate &&
        run.updater->apply_outer(p_.weight_id, r0 * in_, rows, in_, p_.s->grad + r0,
                                 p_.in.v->tiles))
      return;
    dense_.weights(r0, rows, p_.s->grad, p_.in.v->tiles, dw, accumulate);
    if (p_.mask) g.k->mul(rows * in_, dw, mask_ + r0 * in_, dw, false);
    if (run.updater) run.updater->apply(p_.weight_id, r0 * in_, rows * in_, dw);
  }

  // A few rows at a time, which are multiplied with the next sample before they leave the cache.
  // (Nobody needs this sample's s any more.)
  void update_and_begin(const Run<T>& run, Index r0, Index rows, T* dw) const {
    constexpr Index kRows = 8;
    for (Index r = 0; r < rows; r += kRows) {
      const Index n = std::min(kRows, rows - r);
      weight_gradient(run, r0 + r, n, dw + r * in_);
      g.k->gemv(n, in_, run.w + p_.weight->offset + (r0 + r) * in_, in_, run.next_input, nullptr,
                p_.s->value + r0 + r);
    }
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

  void bias_gradient(const Run<T>& run, Index r0, Index rows) const {
    const Index lanes = g.lanes();
    T* db = run.dw + p_.bias->offset + r0;
    g.k->sum_lanes(rows, lanes, g.blocks(), out_ * lanes, p_.s->grad + r0 * lanes, db,
                   run.accumulate || p_.accumulate_db);
    if (run.updater) run.updater->apply(p_.bias_id, r0, rows, db);
  }

  const LinearSpec<T>& p_;
  Index out_, in_;
  DenseProducts<T> dense_;
  T* masked_w_ = nullptr;
  T* masked_direction_ = nullptr;
  T* mask_ = nullptr;
  std::vector<T> squared_tiles_;  // z^2, for per_sample_squares
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

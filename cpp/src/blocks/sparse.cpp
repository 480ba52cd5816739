// s[i] = sum over the edges (i, j) of w[i, j] z[j], + b[i]: the work is proportional to the edges.
#include <algorithm>

#include "block.hpp"
#include "gradstack/updater.hpp"

namespace gradstack {
namespace {

// Units, and edges, handled per call. Results do not depend on them.
constexpr Index kUnits = 32;
constexpr Index kEdges = 1024;

Index pieces(Index n, Index size) { return (n + size - 1) / size; }

template <class T> class Sparse final : public Block<T> {
 public:
  Sparse(Geometry<T> geometry, const SparseSpec<T>& spec)
      : Block<T>(geometry),
        p_(spec),
        out_(spec.edges->out()),
        in_(spec.edges->in()),
        edges_(spec.edges->size()) {}

  void forward(const Run<T>& run, const Worker& worker) override {
    const T* bias = p_.bias ? run.w + p_.bias->offset : nullptr;
    to_outputs(worker, [&](Index r0, Index rows, Index block) {
      product(r0, rows, block, weights(run.w), p_.in.v->value, bias, p_.out->value, false);
    });
  }

  void backward_data(const Run<T>& run, const Worker& worker) override {
    if (!p_.in.v->grad || !p_.out->grad) return;
    to_inputs(worker, [&](Index r0, Index rows, Index block) {
      pull(r0, rows, block, weights(run.w), p_.out->grad, p_.in.v->grad, p_.in.accumulate);
    });
  }

  void backward_weights(const Run<T>& run, const Worker& worker) override {
    if (p_.want_dw) {
      each_edge(worker, [&](Index e0, Index n) {
        T* dw = run.dw + p_.weight->offset + e0;
        edge_products(e0, n, p_.out->grad, p_.in.v->value, dw, run.accumulate || p_.accumulate_dw);
        if (run.updater) run.updater->apply(p_.weight_id, e0, n, dw);
      });
    }
    if (p_.want_db) bias_gradient(run, worker);
  }

  // s_t = W z_t + V z + v_b along the direction (z_t, V, v_b); s_tt = W z_tt.
  void push(const Run<T>& run, const Worker& worker) override {
    if (!p_.out->tangent) return;
    const Variable<T>& z = *p_.in.v;
    const T* direction = run.tangent_w ? weights(run.tangent_w) : nullptr;
    const T* bias = run.tangent_w && p_.bias ? run.tangent_w + p_.bias->offset : nullptr;
    to_outputs(worker, [&](Index r0, Index rows, Index block) {
      T* to = p_.out->tangent;
      if (z.tangent) product(r0, rows, block, weights(run.w), z.tangent, bias, to, false);
      if (direction)
        product(r0, rows, block, direction, z.value, z.tangent ? nullptr : bias, to, z.tangent);
      if (p_.out->second && z.second)
        product(r0, rows, block, weights(run.w), z.second, nullptr, p_.out->second, false);
    });
  }

  // With cotangents g, g_t, g_tt of s, s_t, s_tt:
  //   dC/dz = W^T g + V^T g_t,  dC/dz_t = W^T g_t,  dC/dz_tt = W^T g_tt.
  void backward_jet(const Run<T>& run, const Worker& worker) override {
    const Variable<T>&z = *p_.in.v, &s = *p_.out;
    if (!z.grad) return;
    const T* w = weights(run.w);
    const T* direction = run.tangent_w ? weights(run.tangent_w) : nullptr;
    to_inputs(worker, [&](Index r0, Index rows, Index block) {
      pull(r0, rows, block, w, s.grad, z.grad, p_.in.accumulate);
      if (direction && s.grad_tangent)
        pull(r0, rows, block, direction, s.grad_tangent, z.grad, true);
      if (z.grad_tangent)
        pull(r0, rows, block, w, s.grad_tangent, z.grad_tangent, p_.in.accumulate);
      if (z.grad_second) pull(r0, rows, block, w, s.grad_second, z.grad_second, p_.in.accumulate);
    });
  }

  // dC/dw = g z + g_t z_t + g_tt z_tt on every edge, dC/db = sum of g.
  void backward_jet_weights(const Run<T>& run, const Worker& worker) override {
    const Variable<T>&z = *p_.in.v, &s = *p_.out;
    if (p_.want_dw) {
      each_edge(worker, [&](Index e0, Index n) {
        T* dw = run.dw + p_.weight->offset + e0;
        edge_products(e0, n, s.grad, z.value, dw, run.accumulate || p_.accumulate_dw);
        if (z.tangent && s.grad_tangent) edge_products(e0, n, s.grad_tangent, z.tangent, dw, true);
        if (z.second && s.grad_second) edge_products(e0, n, s.grad_second, z.second, dw, true);
      });
    }
    if (p_.want_db) bias_gradient(run, worker);
  }

  // g_s = ds_s[i] z_s[j] on every edge (and ds_s for the bias).
  void per_sample_gradients(const Worker& worker, T* rows, Index ld) override {
    const Index lanes = g.lanes();
    const std::int32_t* edges = p_.edges->edges().data();
    worker.for_each(g.plan->count(), [&](Index s) {
      const T* ds = p_.out->grad + s / lanes * out_ * lanes + s % lanes;
      const T* z = p_.in.v->value + s / lanes * in_ * lanes + s % lanes;
      T* dw = rows + s * ld + p_.weight->offset;
      for (Index e = 0; e < edges_; ++e) {
        const T product = ds[edges[2 * e] * lanes] * z[edges[2 * e + 1] * lanes];
        dw[e] = p_.accumulate_dw ? dw[e] + product : product;
      }
      if (!p_.bias) return;
      T* db = rows + s * ld + p_.bias->offset;
      for (Index i = 0; i < out_; ++i)
        db[i] = p_.accumulate_db ? db[i] + ds[i * lanes] : ds[i * lanes];
    });
  }

  // sum over i of ds[i]^2 (sum over UP(i) of z[j]^2 + 1)
  void per_sample_squared_norms(const Worker& worker, T* norms) override {
    const Index lanes = g.lanes();
    const Terms& up = p_.edges->by_out();
    worker.for_each(g.blocks(), [&](Index block) {
      const T* z = p_.in.v->value + block * in_ * lanes;
      const T* ds = p_.out->grad + block * out_ * lanes;
      T sum[kLanes] = {};
      for (Index i = 0; i < out_; ++i) {
        T squares[kLanes];
        std::fill_n(squares, lanes, p_.bias ? T(1) : T(0));
        for (Index t = up.begin[at(i)]; t < up.begin[at(i + 1)]; ++t) {
          const T* from = z + up.other[at(t)] * lanes;
          for (Index l = 0; l < lanes; ++l) squares[l] += from[l] * from[l];
        }
        for (Index l = 0; l < lanes; ++l)
          sum[l] += ds[i * lanes + l] * ds[i * lanes + l] * squares[l];
      }
      for (Index l = 0; l < g.plan->block_samples(block); ++l) norms[block * lanes + l] += sum[l];
    });
  }

  // <ds, V z + v_b>
  void per_sample_products(const Worker& worker, const T* v, T* products) override {
    const Index lanes = g.lanes();
    worker.for_each(g.blocks(), [&](Index block) {
      T sum[kLanes] = {}, change[kUnits * kLanes];
      for (Index r0 = 0; r0 < out_; r0 += kUnits) {
        const Index rows = std::min(kUnits, out_ - r0);
        gather(p_.edges->by_out(), r0, rows, weights(v), p_.in.v->value + block * in_ * lanes,
               p_.bias ? v + p_.bias->offset + r0 : nullptr, change, false);
        const T* ds = p_.out->grad + (block * out_ + r0) * lanes;
        for (Index i = 0; i < rows * lanes; ++i) sum[i % lanes] += ds[i] * change[i];
      }
      for (Index l = 0; l < g.plan->block_samples(block); ++l)
        products[block * lanes + l] += sum[l];
    });
  }

  // sum over samples of ds[i]^2 z[j]^2
  void per_sample_squares(const Worker& worker, T* total, bool accumulate) override {
    const Index lanes = g.lanes(), blocks = g.blocks();
    if (worker.leader()) {
      ds_squared_.resize(at(blocks * out_ * lanes));
      z_squared_.resize(at(blocks * in_ * lanes));
    }
    worker.sync();
    worker.for_each(blocks, [&](Index block) {
      const Index s = block * out_ * lanes, z = block * in_ * lanes;
      g.k->mul(out_ * lanes, p_.out->grad + s, p_.out->grad + s, ds_squared_.data() + s, false);
      g.k->mul(in_ * lanes, p_.in.v->value + z, p_.in.v->value + z, z_squared_.data() + z, false);
    });
    worker.sync();
    each_edge(worker, [&](Index e0, Index n) {
      edge_products(e0, n, ds_squared_.data(), z_squared_.data(), total + p_.weight->offset + e0,
                    accumulate);
    });
    if (p_.bias)
      units(worker, [&](Index r0, Index rows) {
        g.k->sum_lanes(rows, lanes, blocks, out_ * lanes, ds_squared_.data() + r0 * lanes,
                       total + p_.bias->offset + r0, accumulate);
      });
  }

 private:
  using Block<T>::g;

  static std::size_t at(Index i) { return static_cast<std::size_t>(i); }

  const T* weights(const T* w) const { return w + p_.weight->offset; }

  // f(first row, rows, block) for all rows of a variable with `n` units.
  template <class F> void rows_of(const Worker& worker, Index n, F&& f) const {
    const Index blocks = g.blocks();
    worker.for_each(pieces(n, kUnits) * blocks, [&](Index item) {
      const Index r0 = item / blocks * kUnits;
      f(r0, std::min(kUnits, n - r0), item % blocks);
    });
  }
  template <class F> void to_outputs(const Worker& worker, F&& f) const {
    rows_of(worker, out_, f);
  }
  template <class F> void to_inputs(const Worker& worker, F&& f) const { rows_of(worker, in_, f); }
  template <class F> void units(const Worker& worker, F&& f) const {
    worker.for_each(pieces(out_, kUnits), [&](Index piece) {
      f(piece * kUnits, std::min(kUnits, out_ - piece * kUnits));
    });
  }
  template <class F> void each_edge(const Worker& worker, F&& f) const {
    worker.for_each(pieces(edges_, kEdges), [&](Index piece) {
      f(piece * kEdges, std::min(kEdges, edges_ - piece * kEdges));
    });
  }

  // y (+)= M x (+ bias) for rows r0.. of a matrix given by its terms; x and y belong to one block.
  void gather(const Terms& terms, Index r0, Index rows, const T* w, const T* x, const T* bias, T* y,
              bool accumulate) const {
    g.k->sparse_rows({.rows = rows,
                      .lanes = g.lanes(),
                      .begin = terms.begin.data() + r0,
                      .other = terms.other.data(),
                      .edge = terms.edge.data(),
                      .w = w,
                      .x = x,
                      .y = y,
                      .bias = bias,
                      .accumulate = accumulate});
  }
  void product(Index r0, Index rows, Index block, const T* w, const T* z, const T* bias, T* s,
               bool accumulate) const {
    const Index lanes = g.lanes();
    gather(p_.edges->by_out(), r0, rows, w, z + block * in_ * lanes, bias ? bias + r0 : nullptr,
           s + (block * out_ + r0) * lanes, accumulate);
  }
  void pull(Index r0, Index rows, Index block, const T* w, const T* s, T* z,
            bool accumulate) const {
    const Index lanes = g.lanes();
    gather(p_.edges->by_in(), r0, rows, w, s + block * out_ * lanes, nullptr,
           z + (block * in_ + r0) * lanes, accumulate);
  }

  // dw[e] (+)= sum over samples of ds[i] z[j]; in the padding of the last block ds is zero.
  void edge_products(Index e0, Index n, const T* ds, const T* z, T* dw, bool accumulate) const {
    const Index lanes = g.lanes();
    g.k->sparse_products({.n = n,
                          .lanes = lanes,
                          .segments = g.blocks(),
                          .edges = p_.edges->edges().data() + 2 * e0,
                          .a = ds,
                          .a_segment = out_ * lanes,
                          .b = z,
                          .b_segment = in_ * lanes,
                          .out = dw,
                          .accumulate = accumulate});
  }

  void bias_gradient(const Run<T>& run, const Worker& worker) const {
    const Index lanes = g.lanes();
    units(worker, [&](Index r0, Index rows) {
      T* db = run.dw + p_.bias->offset + r0;
      g.k->sum_lanes(rows, lanes, g.blocks(), out_ * lanes, p_.out->grad + r0 * lanes, db,
                     run.accumulate || p_.accumulate_db);
      if (run.updater) run.updater->apply(p_.bias_id, r0, rows, db);
    });
  }

  const SparseSpec<T> p_;
  Index out_, in_, edges_;
  std::vector<T> ds_squared_, z_squared_;  // for per_sample_squares
};

}  // namespace

template <class T> std::unique_ptr<Block<T>> make_sparse(Geometry<T> g, const SparseSpec<T>& spec) {
  return std::make_unique<Sparse<T>>(g, spec);
}

template std::unique_ptr<Block<float>> make_sparse(Geometry<float>, const SparseSpec<float>&);
template std::unique_ptr<Block<double>> make_sparse(Geometry<double>, const SparseSpec<double>&);

}  // namespace gradstack

// The three products of a dense layer with weights W[out][in], on the blocks of its variables, and
// how they are divided among workers.
#pragma once

#include "block.hpp"
#include "cut.hpp"

namespace gradstack {

template <class T> struct DenseProducts {
  Geometry<T> g;
  Index out, in;
  // A few samples, a block each. They are not divided among workers: they share what is read of W.
  bool one_lane = g.lanes() == 1;

  // Rows of a product so many that what they read of W, or write of dW, stays in the L2 cache.
  static constexpr Index kMostRows = 192;
  // Blocks that share what a group of rows reads of W. On the way back that is columns, which are
  // dear to fetch: twice as many share them.
  static constexpr Index kMostBlocks = 4;

  bool one_sample() const { return one_lane && g.blocks() == 1; }
  Cut forward_cut(const Worker& worker) const {
    return {out, kMostRows, one_lane ? 1 : g.blocks(), kMostBlocks, worker.count};
  }
  Cut backward_cut(const Worker& worker) const {
    return {in, kMostRows, one_lane ? 1 : g.blocks(), 2 * kMostBlocks, worker.count};
  }
  Item item(const Cut& cut, Index i, Index rows) const {
    Item item(cut, i, rows, one_lane ? 1 : g.blocks());
    if (one_lane) item.blocks = g.blocks();
    return item;
  }
  Cut weights_cut(const Worker& worker) const {
    const Index cache = one_lane ? 16 << 10 : 160 << 10;
    const Index fit = cache / (in * static_cast<Index>(sizeof(T)));
    return {out, std::clamp(fit, kTileRows, kMostRows), 1, 1, worker.count};
  }

  // s = W z + bias (or s += W z) for the rows and blocks of an item.
  void forward(const Item& item, const T* w, const T* z, const T* bias, T* s,
               bool accumulate) const {
    const Index lanes = g.lanes();
    forward(item.rows, item.blocks, w + item.r0 * in, z + item.block * in * lanes,
            bias ? bias + item.r0 : nullptr, s + (item.block * out + item.r0) * lanes, accumulate);
  }

  // The same for the first rows and blocks. (A call would be felt with a single sample.)
  GS_INLINE void forward(Index rows, Index blocks, const T* w, const T* z, const T* bias, T* s,
                         bool accumulate) const {
    const Index lanes = g.lanes();
    if (one_lane && !accumulate && blocks == 1)
      g.k->gemv(rows, in, w, in, z, bias, s);
    else if (one_lane && !accumulate)
      g.k->gemv_few(blocks, rows, in, w, in, z, in, bias, s, out);
    else
      g.k->gemm({.m = rows,
                 .n = lanes,
                 .k = in,
                 .a = w,
                 .a_row = in,
                 .a_col = 1,
                 .b = z,
                 .ldb = lanes,
                 .c = s,
                 .ldc = lanes,
                 .blocks = blocks,
                 .b_block = in * lanes,
                 .c_block = out * lanes,
                 .bias = bias,
                 .accumulate = accumulate});
  }

  // Place of feature j (a multiple of kPanel) of sample s in the tiles of the input.
  Index tile_at(Index s, Index j) const {
    const Index lanes = g.lanes();
    if (one_lane) return s * in + j;
    return (s / lanes * panels() * lanes + j / kPanel * lanes + s % lanes) * kPanel;
  }

  // Rows r0.. of sum over samples of ds z^T.
  void weights(Index r0, Index rows, const T* grad, const T* tiles, T* dw, bool accumulate) const {
    const Index lanes = g.lanes(), whole = in / kPanel;
    const T* ds = grad + r0 * lanes;
    if (one_sample()) return g.k->ger(rows, in, ds, tiles, dw, in, accumulate);
    if (one_lane)
      return g.k->gemm({.m = rows,
                        .n = in,
                        .k = g.blocks(),
                        .a = ds,
                        .a_row = 1,
                        .a_col = out,
                        .b = tiles,
                        .ldb = in,
                        .c = dw,
                        .ldc = in,
                        .accumulate = accumulate});
    if (whole > 0) panel_products(rows, ds, kPanel, whole, tiles, dw, accumulate);
    if (in > whole * kPanel)
      panel_products(rows, ds, in - whole * kPanel, 1, tiles + tile_at(0, whole * kPanel),
                     dw + whole * kPanel, accumulate);
  }

  // z (+)= W^T s for the rows (of z) and blocks of an item.
  void backward(const Item& item, const T* w, const T* s, T* z, bool accumulate) const {
    const Index lanes = g.lanes();
    w += item.r0;
    s += item.block * out * lanes;
    z += (item.block * in + item.r0) * lanes;
    if (one_sample())
      g.k->gemv_t(out, item.rows, w, in, s, z, accumulate);
    else if (one_lane)
      g.k->gemm({.m = item.blocks,
                 .n = item.rows,
                 .k = out,
                 .a = s,
                 .a_row = out,
                 .a_col = 1,
                 .b = w,
                 .ldb = in,
                 .c = z,
                 .ldc = in,
                 .accumulate = accumulate});
    else
      g.k->gemm({.m = item.rows,
                 .n = lanes,
                 .k = out,
                 .a = w,
                 .a_row = 1,
                 .a_col = in,
                 .b = s,
                 .ldb = lanes,
                 .c = z,
                 .ldc = lanes,
                 .blocks = item.blocks,
                 .b_block = out * lanes,
                 .c_block = in * lanes,
                 .accumulate = accumulate});
  }

 private:
  Index panels() const { return (in + kPanel - 1) / kPanel; }

  // For `panels` panels, n features of each.
  void panel_products(Index rows, const T* ds, Index n, Index panels, const T* tiles, T* dw,
                      bool accumulate) const {
    const Index lanes = g.lanes(), samples = g.plan->count();
    const Index full = samples / lanes, rest = samples % lanes;
    Gemm<T> product{.m = rows,
                    .n = n,
                    .k = lanes,
                    .segments = full,
                    .a = ds,
                    .a_row = lanes,
                    .a_col = 1,
                    .a_seg = out * lanes,
                    .b = tiles,
                    .ldb = kPanel,
                    .b_seg = tile_at(lanes, 0),
                    .c = dw,
                    .ldc = in,
                    .blocks = panels,
                    .b_block = lanes * kPanel,
                    .c_block = kPanel,
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
};

}  // namespace gradstack

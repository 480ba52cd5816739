// The fully fused MLP (device_mlp.hpp): all layers of a tile of 128 samples in one kernel.
//
// A warp has 16 of the samples and, in registers, all features of a layer's sums; its activations
// and the weights are in shared memory as halves. Forward, warps meet only to share weights.
// Backward, dC/ds of a layer is in shared memory: with the layer's input it gives dW, whose 16 x 32
// units the warps share out, and with the weights dC/dz of the layer below, in registers again.
// Blocks of threads take tiles in turns and add their dW to a slot of their own in global memory;
// another kernel adds up the slots, in order.
#pragma once

#include "fused_tile.hpp"

namespace gradstack::device {

// Of a block: what every device from sm_80 on can give. Two blocks fit on sm_80 and sm_90 where
// weights are few.
inline constexpr int kMlpShared = 99 * 1024;

// How a kernel divides its work and its shared memory; by shapes alone.
struct MlpWork {
  int blocks = 0;
  bool resident = false;               // all weights stay in shared memory
  int weights_at[kMlpLayers] = {};     // in halves, behind the tiles
  int shared = 0;                      // bytes
  bool keeps_s[kMlpLayers] = {};       // what is kept of a layer is s, not z
  Index slot_at[kMlpLayers + 1] = {};  // of layers within a slot; the last: its size
};

// `tiles` of activations come first in shared memory, `used_from` is the first layer whose weights
// are used.
template <int kWidth> MlpWork mlp_work(const DeviceMlp& m, Index blocks, int tiles, int used_from) {
  MlpWork work;
  work.blocks = static_cast<int>(blocks);
  int at = tiles * Tile<kWidth>::kHalves;
  const int most = kMlpShared / 2 - 16;
  work.resident = true;
  for (int l = 0; l < m.layers; ++l) {
    work.keeps_s[l] = mlp_keeps_input(m.layer[l].op);
    work.slot_at[l + 1] = work.slot_at[l] + mlp_slot(m.layer[l]);
    if (l < used_from) continue;
    work.weights_at[l] = at;
    at += static_cast<int>(mlp_pad(m.layer[l].out)) * kWidth;
    work.resident = work.resident && m.layer[l].in <= kWidth && at <= most;
  }
  if (!work.resident) {
    for (int& weights : work.weights_at) weights = tiles * Tile<kWidth>::kHalves;
    at = tiles * Tile<kWidth>::kHalves + Tile<kWidth>::kWeights;
  }
  work.shared = 2 * at + 32;  // the maxima of the warps at the end
  return work;
}
static_assert(2 * (2 * Tile<128>::kHalves + Tile<128>::kWeights) + 32 <= kMlpShared);

// What both directions share.
template <class Half, int kWidth> struct MlpKernel {
  using T = Tile<kWidth>;
  DeviceMlp m;
  MlpWork work;

  // Columns of a layer's input are taken kWidth at a time.
  static GS_TILE int chunk_cols(const DeviceMlpLayer& layer, Index first) {
    const Index left = mlp_pad(layer.in) - first;
    return static_cast<int>(left < kWidth ? left : kWidth);
  }
  GS_TILE SharedHalves weights(const Block& block, int l) const {
    return block.shared() + work.weights_at[l];
  }
  GS_TILE void load_resident(const Block& block, int from) const {
    if (!work.resident) return;
    for (int l = from; l < m.layers; ++l)
      T::template load_weights<Half>(block, weights(block, l), m.layer[l], 0,
                                     chunk_cols(m.layer[l], 0));
    block.barrier();
  }
  GS_TILE int tiles() const { return static_cast<int>((m.count + kMlpTile - 1) / kMlpTile); }
  GS_TILE int samples_of(int tile) const {
    const Index left = m.count - Index{kMlpTile} * tile;
    return static_cast<int>(left < kMlpTile ? left : kMlpTile);
  }
};

template <class Half, int kWidth> struct MlpForward : MlpKernel<Half, kWidth> {
  using Base = MlpKernel<Half, kWidth>;
  using T = Tile<kWidth>;
  using Base::m;
  using Base::work;
  static constexpr int kResident = 2;  // blocks that share a processor's registers

  GS_TILE void operator()(const Block& block) const {
    this->load_resident(block, 0);
    const int tiles = this->tiles();
    for (int tile = block.index(); tile < tiles; tile += work.blocks)
      for (int l = 0; l < m.layers; ++l) run_layer(block, tile, l);
  }

 private:
  GS_TILE void run_layer(const Block& block, int tile, int l) const {
    const DeviceMlpLayer& layer = m.layer[l];
    const SharedHalves z = block.shared(), w = this->weights(block, l);
    const Index sample = Index{kMlpTile} * tile;
    const FloatRows x(m.x, m.layer[0].in);
    const int samples = this->samples_of(tile), pairs = static_cast<int>(mlp_pad(layer.out)) / 16;
    PerWarp<typename T::Sums> sums;
    block.each_warp([&](int warp) { T::clear(sums[warp]); });
    for (Index first = 0; first < layer.in; first += kWidth) {
      const int cols = this->chunk_cols(layer, first);
      if (!work.resident) {
        block.barrier();  // the weights of before have been used
        T::template load_weights<Half>(block, w, layer, static_cast<int>(first), cols);
        block.barrier();
      }
      block.each_warp([&](int warp) {
        if (l == 0) {
          T::template load_input<Half>(z, warp, x, sample, samples, first, cols);
          sync_warp();
        }
        T::template multiply<Half, false>(sums[warp], z, warp, w, cols / 16, pairs);
        sync_warp();
      });
    }
    block.each_warp([&](int warp) {
      close(sums[warp], z, warp, l, sample, samples);
      sync_warp();
    });
  }

  // v += bias.
  static GS_TILE void add_bias(float (&v)[4], const DeviceMlpLayer& layer, int col) {
    if (!layer.bias) return;
    GS_UNROLL
    for (int i = 0; i < 4; ++i)
      if (const int c = col + T::col_of(i); c < layer.out) v[i] += load_float(layer.bias + c);
  }

  // From the sums of layer l to its activations, in shared memory or, of the last, in ybar.
  GS_TILE void close(const typename T::Sums& sums, SharedHalves z, int warp, int l, Index sample,
                     int samples) const {
    const DeviceMlpLayer& layer = m.layer[l];
    const Index width = mlp_pad(layer.out);
    const bool last = l + 1 == m.layers, keeps_s = work.keeps_s[l];
    T::each_eight(sums, static_cast<int>(width), warp, [&](float(&v)[4], int row, int col) {
      add_bias(v, layer, col);
      std::uint32_t s[2], p[2];
      pack<Half>(s, v);
      apply<Half>(layer.op, v, s);
      GS_UNROLL
      for (int i = 0; i < 4; ++i)
        if (col + T::col_of(i) >= layer.out) v[i] = 0;  // h(0) may be anything
      pack<Half>(p, v);
      GS_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int r = row + T::row_of(2 * i), c = col;
        if (!last) z.set_pair(place<kWidth>(r, c), p[i]);
        if (r >= samples) continue;
        if (last) store_columns(m.ybar, layer.out, sample + r, c, v[2 * i], v[2 * i + 1]);
        if (layer.kept) store_pair(layer.kept + (sample + r) * width + c, keeps_s ? s[i] : p[i]);
      }
    });
  }
};

template <class Half, int kWidth> struct MlpBackward : MlpKernel<Half, kWidth> {
  using Base = MlpKernel<Half, kWidth>;
  using T = Tile<kWidth>;
  using Base::m;
  using Base::work;
  // Blocks that share a processor's registers.
  static constexpr int kResident = kWidth > 64 ? 1 : 2;
  static constexpr int kUnit = 512;  // 16 outputs by 32 inputs

  GS_TILE void operator()(const Block& block) const {
    this->load_resident(block, m.dx ? 0 : 1);
    const int tiles = this->tiles();
    for (int tile = block.index(); tile < tiles; tile += work.blocks) {
      const Index sample = Index{kMlpTile} * tile;
      const int samples = this->samples_of(tile);
      const float scale = scale_of(block, sample, samples);
      PerWarp<typename T::Sums> sums;  // dC/dz
      block.each_warp([&](int warp) { open(sums[warp], warp, sample, samples, scale); });
      for (int l = m.layers; l-- > 0;) {
        block.each_warp([&](int warp) { close(sums[warp], block, warp, l, sample, samples); });
        run_layer(sums, block, l, sample, samples, scale, tile == block.index());
      }
    }
  }

 private:
  static GS_TILE SharedHalves input_tile(const Block& block) { return block.shared() + T::kHalves; }

  // The power of two that dybar of a tile is multiplied with to use the range of halves.
  GS_TILE float scale_of(const Block& block, Index sample, int samples) const {
    if constexpr (!Half::kNarrowRange) {
      return 1;
    } else {
      const DeviceMlpLayer& last = m.layer[m.layers - 1];
      const FloatRows dybar(m.dybar, last.out);
      const SharedHalves maxima = block.shared() + (work.shared / 2 - 16);
      block.barrier();  // those of before have been read
      block.each_warp([&](int warp) {
        Registers<std::uint32_t, 1> most;
        each_lane([&](int, int held) { most.r[held][0] = 0; });
        T::share_groups(warp, static_cast<int>(mlp_pad(last.out)), [&](int row, int col, int held) {
          if (row >= samples) return;
          float v[8];
          dybar.load(v, sample + row, col);
          GS_UNROLL
          for (int i = 0; i < 8; ++i) {
            const std::uint32_t magnitude = as_bits(v[i]) & 0x7fffffffU;
            if (magnitude > most.r[held][0]) most.r[held][0] = magnitude;
          }
        });
        maxima.set_pair(2 * warp, warp_max(most));
      });
      block.barrier();
      std::uint32_t most = 0;
      for (int warp = 0; warp < kWarps; ++warp)
        if (const std::uint32_t of = maxima.pair(2 * warp); of > most) most = of;
      return mlp_scale(most);
    }
  }

  // dC/dz of the last layer.
  GS_TILE void open(typename T::Sums& sums, int warp, Index sample, int samples,
                    float scale) const {
    const Index out = m.layer[m.layers - 1].out;
    each_lane([&](int lane, int held) {
      GS_UNROLL
      for (int i = 0; i < kWidth / 2; i += 2) {
        const int row = T::row(warp, lane) + T::row_of(i % 4);
        const int col = i / 4 * 8 + T::col(lane);
        float v[2] = {};
        if (row < samples && col < out) load_columns(v, m.dybar, out, sample + row, col);
        sums.r[held][i] = v[0] * scale;
        sums.r[held][i + 1] = v[1] * scale;
      }
    });
  }

  // dC/ds = dC/dz h' of layer l, into the first tile.
  GS_TILE void close(const typename T::Sums& sums, const Block& block, int warp, int l,
                     Index sample, int samples) const {
    const DeviceMlpLayer& layer = m.layer[l];
    const SharedHalves ds = block.shared(), z = input_tile(block);
    const Index width = mlp_pad(layer.out);
    const bool last = l + 1 == m.layers, keeps_s = work.keeps_s[l];
    T::each_eight(sums, static_cast<int>(width), warp, [&](float(&v)[4], int row, int col) {
      std::uint32_t p[2];
      if (layer.op.id > 0) {
        float kept[4] = {};
        GS_UNROLL
        for (int i = 0; i < 4; i += 2) {
          const int r = row + T::row_of(i), c = col;
          if (last && !keeps_s) {
            if (r < samples && c < layer.out)
              load_columns(kept + i, m.ybar, layer.out, sample + r, c);
          } else {
            std::uint32_t pair = 0;
            if (!keeps_s)
              pair = z.pair(place<kWidth>(r, c));  // the input of the layer above, still there
            else if (r < samples)
              pair = load_pair(layer.kept + (sample + r) * width + c);
            kept[i] = Half::low(pair);
            kept[i + 1] = Half::high(pair);
          }
        }
        times_slope(layer.op, v, kept);
      }
      GS_UNROLL
      for (int i = 0; i < 4; ++i)
        if (row + T::row_of(i) >= samples || col + T::col_of(i) >= layer.out) v[i] = 0;
      pack<Half>(p, v);
      GS_UNROLL
      for (int i = 0; i < 2; ++i) ds.set_pair(place<kWidth>(row + T::row_of(2 * i), col), p[i]);
    });
    sync_warp();
  }

  // From dC/ds of layer l, in the first tile, to dW, db and dC/dz of the layer below.
  GS_TILE void run_layer(PerWarp<typename T::Sums>& sums, const Block& block, int l, Index sample,
                         int samples, float scale, bool fresh) const {
    const DeviceMlpLayer& layer = m.layer[l];
    const SharedHalves ds = block.shared(), z = input_tile(block), w = this->weights(block, l);
    const bool below = l > 0 || m.dx;
    const int steps = static_cast<int>(mlp_pad(layer.out)) / 16;
    for (Index first = 0; first < layer.in; first += kWidth) {
      const int cols = this->chunk_cols(layer, first);
      if (first > 0) block.barrier();  // the chunk of before has been used
      block.each_warp(
          [&](int warp) { load_layer_input(z, warp, l, sample, samples, first, cols); });
      if (below && !work.resident)
        T::template load_weights<Half>(block, w, layer, static_cast<int>(first), cols);
      block.barrier();
      block.each_warp([&](int warp) {
        if (layer.dw || layer.db)
          add_units(ds, z, warp, layer, first, cols, (samples + 15) / 16, 1 / scale,
                    m.slots + block.index() * work.slot_at[m.layers] + work.slot_at[l], fresh);
        if (!below) return;
        T::clear(sums[warp]);
        T::template multiply<Half, true>(sums[warp], ds, warp, w, steps, cols / 16);
      });
      if (l == 0 && m.dx)
        block.each_warp([&](int warp) {
          close_input(sums[warp], warp, sample, samples, first, cols, 1 / scale);
        });
    }
    block.barrier();  // both tiles have been used
  }

  // The warp's rows of what layer l multiplied.
  GS_TILE void load_layer_input(SharedHalves z, int warp, int l, Index sample, int samples,
                                Index first, int cols) const {
    if (l == 0) {
      const FloatRows x(m.x, m.layer[0].in);
      return T::template load_input<Half>(z, warp, x, sample, samples, first, cols);
    }
    const DeviceMlpLayer& layer = m.layer[l - 1];
    if (!work.keeps_s[l - 1]) {
      T::share_groups(warp, cols, [&](int row, int col, int) {
        std::uint32_t p[4] = {};
        if (row < samples) load_words(p, layer.kept + (sample + row) * cols + col);
        z.set_eight(place<kWidth>(row, col), p);
      });
      return;
    }
    T::template share_groups<1>(warp, cols, [&](int row, int col, int) {
      std::uint32_t p[4] = {};
      if (row < samples) {
        load_words(p, layer.kept + (sample + row) * cols + col);
        float v[8];
        unpack<Half>(v, p);
        value_of_kept(layer.op, v);
        GS_UNROLL
        for (int i = 0; i < 8; ++i)
          if (col + i >= layer.out) v[i] = 0;
        pack<Half>(p, v);
      }
      z.set_eight(place<kWidth>(row, col), p);
    });
  }

  // Adds dW = (dC/ds)^T z of the columns [first, first + cols) and, with the first columns, db to
  // the slot. Sums over samples are products of their own: with ones.
  static GS_TILE void add_units(SharedHalves ds, SharedHalves z, int warp,
                                const DeviceMlpLayer& layer, Index first, int cols, int steps,
                                float factor, float* slot, bool fresh) {
    const int rows = static_cast<int>(mlp_pad(layer.out)) / 16;
    float* units = slot + first / 32 * rows * kUnit;
    float* bias = slot + mlp_slot(layer) - mlp_pad(layer.out);
    const int count = rows * ((cols + 31) / 32);
    for (int unit = warp; unit < count; unit += kWarps) {
      const int block_of_cols =
          static_cast<int>(static_cast<unsigned>(unit) / static_cast<unsigned>(rows));
      const int row = 16 * (unit - block_of_cols * rows), col = 32 * block_of_cols;
      const bool both = col + 16 < cols, with_bias = layer.db && first == 0 && col == 0;
      Registers<float, 16> old, sums;
      Registers<float, 4> bias_sums;
      Registers<std::uint32_t, 4> ones;
      each_lane([&](int lane, int held) {
        GS_UNROLL
        for (int i = 0; i < 16; ++i) sums.r[held][i] = 0;
        GS_UNROLL
        for (int i = 0; i < 4; ++i) bias_sums.r[held][i] = 0, ones.r[held][i] = Half::kOnes;
        GS_UNROLL
        for (int i = 0; i < 16; ++i) old.r[held][i] = 0;
        if (fresh) return;
        GS_UNROLL
        for (int q = 0; q < 4; ++q)  // early: they are needed last
          load_four(old.r[held] + 4 * q, units + unit * kUnit + 4 * (32 * q + lane));
      });
      GS_ROLLED  // unrolled, it spills on sm_80
      for (int k = 0; k < steps; ++k) {
        Registers<std::uint32_t, 4> a, b;
        load_matrices<true>(a, ds, [&](int lane) {
          return place<kWidth>(16 * k + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8);
        });
        const auto load = [&](int at) {
          load_matrices<true>(b, z, [&](int lane) {
            return place<kWidth>(16 * k + lane % 16, at + lane / 16 * 8);
          });
        };
        load(col);
        multiply_add<Half>(sums, 0, a, b, 0);
        multiply_add<Half>(sums, 1, a, b, 2);
        if (both) {
          load(col + 16);
          multiply_add<Half>(sums, 2, a, b, 0);
          multiply_add<Half>(sums, 3, a, b, 2);
        }
        if (with_bias) multiply_add<Half>(bias_sums, 0, a, ones, 0);
      }
      each_lane([&](int lane, int held) {
        GS_UNROLL
        for (int i = 0; i < 16; ++i) old.r[held][i] += factor * sums.r[held][i];
        GS_UNROLL
        for (int q = 0; q < 4; ++q)
          store_four(units + unit * kUnit + 4 * (32 * q + lane), old.r[held] + 4 * q);
        if (!with_bias || lane % 4 > 0) return;  // all columns are the same
        GS_UNROLL
        for (int i = 0; i < 2; ++i) {
          float* to = bias + row + lane / 4 + 8 * i;
          *to = (fresh ? 0.0F : *to) + factor * bias_sums.r[held][2 * i];
        }
      });
      sync_warp();
    }
  }

  GS_TILE void close_input(const typename T::Sums& sums, int warp, Index sample, int samples,
                           Index first, int cols, float factor) const {
    const Index in = m.layer[0].in;
    T::each_eight(sums, cols, warp, [&](float(&v)[4], int row, int col) {
      GS_UNROLL
      for (int i = 0; i < 2; ++i)
        if (const int r = row + T::row_of(2 * i); r < samples)
          store_columns(m.dx, in, sample + r, first + col, factor * v[2 * i],
                        factor * v[2 * i + 1]);
    });
  }
};

// Adds up the slots in order: value i of a slot is an entry of some dW or db.
struct MlpGradients {
  DeviceMlp m;
  MlpWork work;

  GS_HD void operator()(Index i) const {
    int l = 0;
    while (i >= work.slot_at[l + 1]) ++l;
    const DeviceMlpLayer& layer = m.layer[l];
    const Index at = i - work.slot_at[l];
    const Index units = work.slot_at[l + 1] - work.slot_at[l] - mlp_pad(layer.out);
    float* to = nullptr;
    if (at >= units) {
      if (at - units < layer.out && layer.db) to = layer.db + (at - units);
    } else if (layer.dw) {
      const Index rows = mlp_pad(layer.out) / 16, unit = at / 512;
      const int q = static_cast<int>(at % 512 / 128), lane = static_cast<int>(at % 128 / 4),
                r = static_cast<int>(at % 4);
      const Index row = unit % rows * 16 + lane / 4 + r / 2 * 8;
      const Index col = unit / rows * 32 + q * 8 + lane % 4 * 2 + r % 2;
      if (row < layer.out && col < layer.in) to = layer.dw + row * layer.in + col;
    }
    if (!to) return;
    float sum = 0;
    const float* from = m.slots + i;
    for (int slot = 0; slot < work.blocks; ++slot, from += work.slot_at[m.layers]) sum += *from;
    *to = m.accumulate ? *to + sum : sum;
  }
};

}  // namespace gradstack::device

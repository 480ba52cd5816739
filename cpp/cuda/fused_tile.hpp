// Pieces of the fused MLP: tiles of halves in shared memory, what fills them, and the two products
// of tiles.
#pragma once

#include "fused_warp.hpp"
#include "gradstack/device_mlp.hpp"
#include "gradstack/ops.hpp"

namespace gradstack::device {

// Where element (row, col) of a tile with rows of kWidth halves lies. Groups of eight halves change
// places within a row, so that the same group of eight neighbouring rows, which ldmatrix loads
// together, is in eight different banks.
template <int kWidth> GS_HD constexpr int place(int row, int col) {
  return row * kWidth + (((col >> 3) ^ (row & 7)) << 3) + (col & 7);
}

// Row kI of the op table.
template <int kI, class List> struct OpAt;
template <int kI, class Op, class... Rest>
struct OpAt<kI, OpList<Op, Rest...>> : OpAt<kI - 1, OpList<Rest...>> {};
template <class Op, class... Rest> struct OpAt<0, OpList<Op, Rest...>> { using Type = Op; };

// f(op) with the functor of an op, found by halving; nothing for none and for the identity, row 0.
template <int kFrom, int kTo, class F> GS_TILE void visit_between(const DeviceOp& op, F&& f) {
  constexpr int kMiddle = (kFrom + kTo) / 2;
  if constexpr (kTo - kFrom == 1) {
    f(typename OpAt<kFrom, PointwiseOps>::Type(op.p));
  } else if (op.id < kMiddle) {
    visit_between<kFrom, kMiddle>(op, static_cast<F&&>(f));
  } else {
    visit_between<kMiddle, kTo>(op, static_cast<F&&>(f));
  }
}
template <class F> GS_TILE void visit(const DeviceOp& op, F&& f) {
  if (op.id > 0) visit_between<1, kNumOps>(op, static_cast<F&&>(f));
}

template <class Half, int kN> GS_TILE void pack(std::uint32_t (&p)[kN], const float (&v)[2 * kN]) {
  GS_UNROLL
  for (int i = 0; i < kN; ++i) p[i] = Half::pack(v[2 * i], v[2 * i + 1]);
}
template <class Half, int kN>
GS_TILE void unpack(float (&v)[2 * kN], const std::uint32_t (&p)[kN]) {
  GS_UNROLL
  for (int i = 0; i < kN; ++i) v[2 * i] = Half::low(p[i]), v[2 * i + 1] = Half::high(p[i]);
}

// v = h(s); ops whose h' is not had from z see the s that is kept.
template <class Half, int kN>
GS_TILE void apply(const DeviceOp& op, float (&v)[2 * kN], const std::uint32_t (&s)[kN]) {
  visit(op, [&](auto h) {
    if constexpr (!decltype(h)::has_d1_from_z) unpack<Half>(v, s);
    GS_UNROLL
    for (int i = 0; i < 2 * kN; ++i) v[i] = h.h(v[i]);
  });
}
// v *= h', from what is kept: z or s.
template <int kN>
GS_TILE void times_slope(const DeviceOp& op, float (&v)[kN], const float (&kept)[kN]) {
  visit(op, [&](auto h) {
    GS_UNROLL
    for (int i = 0; i < kN; ++i) {
      if constexpr (decltype(h)::has_d1_from_z)
        v[i] *= h.d1_from_z(kept[i]);
      else
        v[i] *= h.d1(kept[i]);
    }
  });
}
// z from what is kept.
GS_TILE void value_of_kept(const DeviceOp& op, float (&v)[8]) {
  visit(op, [&](auto h) {
    if constexpr (!decltype(h)::has_d1_from_z) {
      GS_UNROLL
      for (int i = 0; i < 8; ++i) v[i] = h.h(v[i]);
    }
  });
}

// Rows of float32 in global memory.
struct FloatRows {
  const float* data;
  Index cols;
  bool aligned;  // rows begin where 16 bytes can be loaded at once
  GS_TILE FloatRows(const float* rows, Index columns)
      : data(rows),
        cols(columns),
        aligned(columns % 4 == 0 && reinterpret_cast<std::uintptr_t>(rows) % 16 == 0) {}
  // Eight values from `col` on; 0 beyond the row's end.
  GS_TILE void load(float (&v)[8], Index row, Index col) const {
    const float* from = data + row * cols + col;
    if (aligned && col + 8 <= cols) {
      std::uint32_t words[2][4];
      load_words(words[0], from);
      load_words(words[1], from + 4);
      GS_UNROLL
      for (int i = 0; i < 8; ++i) v[i] = as_float(words[i / 4][i % 4]);
    } else {
      GS_UNROLL
      for (int i = 0; i < 8; ++i) v[i] = col + i < cols ? load_float(from + i) : 0.0F;
    }
  }
};

// Two neighbouring values of rows in global memory, as far as the row goes.
GS_TILE void store_columns(float* rows, Index cols, Index row, Index col, float a, float b) {
  float* to = rows + row * cols + col;
  if (cols % 2 == 0 && reinterpret_cast<std::uintptr_t>(rows) % 8 == 0) {
    if (col < cols) store_two(to, a, b);
  } else {
    if (col < cols) to[0] = a;
    if (col + 1 < cols) to[1] = b;
  }
}

// And two from there: both columns are the row's, or only the first.
GS_TILE void load_columns(float* v, const float* rows, Index cols, Index row, Index col) {
  const float* from = rows + row * cols + col;
  if (cols % 2 == 0 && reinterpret_cast<std::uintptr_t>(rows) % 8 == 0) {
    load_two(v, from);
  } else {
    v[0] = load_float(from);
    v[1] = col + 1 < cols ? load_float(from + 1) : 0.0F;
  }
}

// The power of two that brings a largest magnitude with these bits to 16..32, where fp16 has room
// above and below.
GS_TILE float mlp_scale(std::uint32_t bits) {
  const std::uint32_t exponent = bits >> 23;
  if (bits == 0 || exponent == 255) return 1;
  return as_float((exponent < 5 ? 253 : 258 - exponent) << 23);  // its inverse is a normal number
}

template <int kWidth> struct Tile {
  static constexpr int kGroups = kWidth / 8;
  static constexpr int kHalves = kMlpTile * kWidth;  // of activations
  static constexpr int kWeights = kWidth * kWidth;   // halves of a layer's weights at most
  static constexpr int kRows = kMlpTile / kWarps;    // samples of a warp
  using Sums = Registers<float, kWidth / 2>;         // 16 samples by kWidth features
  static_assert(kRows == 16, "a warp has one row of fragments");

  static GS_TILE void clear(Sums& sums) {
    each_lane([&](int, int held) {
      GS_UNROLL
      for (int i = 0; i < kWidth / 2; ++i) sums.r[held][i] = 0;
    });
  }

  // Weights (rows, cols) from column `first` on as a tile; padding is 0.
  template <class Half>
  static GS_TILE void load_weights(const Block& block, SharedHalves to, const DeviceMlpLayer& layer,
                                   int first, int cols) {
    const FloatRows w(layer.w, layer.in);
    const int groups = cols / 8;
    block.share(static_cast<int>(mlp_pad(layer.out)) * groups, [&](int i) {
      const int row = static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(groups));
      const int col = 8 * (i - row * groups);
      float v[8] = {};
      if (row < layer.out) w.load(v, row, first + col);
      std::uint32_t p[4];
      pack<Half>(p, v);
      to.set_eight(place<kWidth>(row, col), p);
    });
  }

  // f(row, col, held) for the groups of eight of a warp's rows up to `cols`.
  template <int kAtOnce = 4, class F> static GS_TILE void share_groups(int warp, int cols, F&& f) {
    const int groups = cols / 8;
    share_lanes<kAtOnce>(kRows * groups, [&](int i, int held) {
      const int row = static_cast<int>(static_cast<unsigned>(i) / static_cast<unsigned>(groups));
      f(warp * kRows + row, 8 * (i - row * groups), held);
    });
  }

  // The input's columns from `first` on, of the warp's samples.
  template <class Half>
  static GS_TILE void load_input(SharedHalves to, int warp, const FloatRows& x, Index sample,
                                 int samples, Index first, int cols) {
    share_groups(warp, cols, [&](int row, int col, int) {
      float v[8] = {};
      if (row < samples) x.load(v, sample + row, first + col);
      std::uint32_t p[4];
      pack<Half>(p, v);
      to.set_eight(place<kWidth>(row, col), p);
    });
  }

  // sums (16 samples, outputs) += tile (samples, inputs) w^T, or, transposed, tile (samples,
  // outputs) w; `steps` and `pairs` count 16 of the columns of the tile and of the sums.
  template <class Half, bool kTransposed>
  static GS_TILE void multiply(Sums& sums, SharedHalves tile, int warp, SharedHalves w, int steps,
                               int pairs) {
    // Without branches between the products where there are all columns, or where those too many
    // are read from the same rows of w: nobody looks at their sums.
    if (kTransposed || pairs == kWidth / 16)
      multiply_all<Half, kTransposed, true>(sums, tile, warp, w, steps, pairs);
    else
      multiply_all<Half, kTransposed, false>(sums, tile, warp, w, steps, pairs);
  }

  // Where a lane's sums are: sums.r[held][4 j + i] at row + row_of(i), 8 j + col + col_of(i).
  static GS_TILE int row(int warp, int lane) { return warp * kRows + lane / 4; }
  static GS_TILE int col(int lane) { return 2 * (lane % 4); }
  static GS_TILE constexpr int row_of(int i) { return i / 2 * 8; }
  static GS_TILE constexpr int col_of(int i) { return i % 2; }

  // f(v, row, col) for every eight of the first `cols` columns: v[i] is at row + row_of(i),
  // col + col_of(i).
  template <class F> static GS_TILE void each_eight(const Sums& sums, int cols, int warp, F&& f) {
    each_lane([&](int lane, int held) {
      GS_ROLLED
      for (int j = 0; j < cols / 8; ++j) {
        float v[4];
        GS_UNROLL
        for (int k = 0; k < kWidth / 8; ++k) {
          if (k == j) {  // which registers these are must be known when compiling
            GS_UNROLL
            for (int i = 0; i < 4; ++i) v[i] = sums.r[held][4 * k + i];
          }
        }
        f(v, row(warp, lane), 8 * j + col(lane));
      }
    });
  }

 private:
  template <class Half, bool kTransposed, bool kAll>
  static GS_TILE void multiply_all(Sums& sums, SharedHalves tile, int warp, SharedHalves w,
                                   int steps, int pairs) {
    GS_ROLLED
    for (int k = 0; k < steps; ++k) {
      Registers<std::uint32_t, 4> a, b;
      load_matrices<false>(a, tile, [&](int lane) {
        return place<kWidth>(warp * kRows + lane % 16, 16 * k + lane / 16 * 8);
      });
      GS_UNROLL
      for (int j = 0; j < kWidth / 16; ++j) {
        if (!kAll && j >= pairs) break;
        load_matrices<kTransposed>(b, w, [&](int lane) {
          if constexpr (kTransposed)
            return place<kWidth>(16 * k + lane % 16, 16 * j + lane / 16 * 8);
          else
            return place<kWidth>(16 * j + lane % 8 + lane / 16 * 8, 16 * k + lane / 8 % 2 * 8);
        });
        multiply_add<Half>(sums, 2 * j, a, b, 0);
        multiply_add<Half>(sums, 2 * j + 1, a, b, 2);
      }
    }
  }
};

}  // namespace gradstack::device

// The blocked matrix product around the microkernel.
//
// The product is cut into bands of rows of A and chunks of the sum such that one chunk of one block
// of B (24 KB) stays in the L1 cache while a band of A passes by. Operands whose natural layout
// would be walked in steps of a page or more are packed into scratch on the stack first.
#pragma once

#include "gradstack/backend.hpp"
#include "thin.hpp"
#include "tile.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

template <class T> struct GemmShape {
  static constexpr Index kPanel = kLanes;  // columns of B that are swept together
  static constexpr Index kDepth = 24 * 1024 / (kPanel * static_cast<Index>(sizeof(T)));
  static constexpr Index kBand = 48;  // rows of A that are swept together
  // Row stride of a packed band: not a multiple of the cache's way size.
  static constexpr Index kPackedRow = kDepth + 64 / static_cast<Index>(sizeof(T));
};

// Heights of successive tiles: full ones, then two of about equal height instead of a full one and
// a sliver whose few accumulators could not hide the latency of the FMA.
GS_INLINE Index next_tile_rows(Index left) {
  if (left <= Tile::kRows) return left;
  return left >= 2 * Tile::kRows ? Tile::kRows : (left + 1) / 2;
}

// A piece of the sum over (segment, k): `segments` whole segments, or k elements of one.
struct Chunk {
  Index segment, segments, k0, k;
};

// Calls f(chunk) for pieces of at most `depth` elements, in order and of about equal size.
template <class F> GS_INLINE void for_each_chunk(Index segments, Index k, Index depth, F&& f) {
  if (segments * k <= depth) {
    f(Chunk{0, segments, 0, k});
  } else if (2 * k > depth) {
    const Index pieces = (k + depth - 1) / depth;
    const Index length = (k + pieces - 1) / pieces;
    for (Index g = 0; g < segments; ++g) {
      for (Index k0 = 0; k0 < k; k0 += length)
        f(Chunk{g, 1, k0, k - k0 < length ? k - k0 : length});
    }
  } else {
    const Index most = depth / k;
    const Index pieces = (segments + most - 1) / most;
    const Index length = (segments + pieces - 1) / pieces;
    for (Index g = 0; g < segments; g += length) {
      f(Chunk{g, segments - g < length ? segments - g : length, 0, k});
    }
  }
}

// The rows m0.. and the chunk of a product; what comes after the first chunk accumulates.
template <class T>
GS_INLINE Gemm<T> slice(const Gemm<T>& g, Index m0, Index m, const Chunk& chunk) {
  Gemm<T> part = g;
  part.m = m;
  part.k = chunk.k;
  part.segments = chunk.segments;
  part.a += m0 * g.a_row + chunk.segment * g.a_seg + chunk.k0 * g.a_col;
  part.b += chunk.segment * g.b_seg + chunk.k0 * g.ldb;
  part.c += m0 * g.ldc;
  if (g.b_rows != nullptr) part.b_rows += chunk.k0;
  if (chunk.segment > 0 || chunk.k0 > 0) {
    part.accumulate = true;
    part.bias = nullptr;
  } else if (part.bias != nullptr) {
    part.bias += m0;
  }
  return part;
}

// All tiles of a product whose pieces are in cache.
template <class T> void sweep(const Gemm<T>& g, bool slivers) {
  using Shape = GemmShape<T>;
  const TileForm form = slivers || g.a_col != 1 ? TileForm::kAcross
                        : g.b_rows != nullptr   ? TileForm::kGathered
                                                : TileForm::kAlong;
  static constexpr T kZeros[Tile::kTall] = {};
  const bool one_vector = g.n <= Vec<T>::size && !slivers;
  TileStrides strides{g.k, g.segments, g.a_row, g.a_col, g.a_seg, g.ldb, g.b_seg, g.ldc, g.b_rows};
  for (Index block = 0; block < g.blocks; ++block) {
    for (Index n0 = 0; n0 < g.n; n0 += Shape::kPanel) {
      const Index n_end = g.n - n0 < Shape::kPanel ? g.n : n0 + Shape::kPanel;
      const T* b = g.b + block * g.b_block;
      T* c = g.c + block * g.c_block;
      for (Index m0 = 0; m0 < g.m;) {
        const bool tall = one_vector && g.m - m0 >= Tile::kTall;
        const Index rows = tall ? Tile::kTall : next_tile_rows(g.m - m0);
        const T* a = g.a + m0 * g.a_row;
        if (slivers) {
          a = g.a + m0 * g.k * g.segments;
          strides.a_col = rows;
          strides.a_seg = rows * g.k;
        }
        const T* bias = g.accumulate ? nullptr : g.bias != nullptr ? g.bias + m0 : kZeros;
        if (tall) {
          kTiles<T>.tall[static_cast<int>(form)][g.n < Vec<T>::size](strides, a, b, c + m0 * g.ldc,
                                                                     1, g.n, bias);
          m0 += rows;
          continue;
        }
        const auto& by_width = kTiles<T>.entry[static_cast<int>(form)][rows - 1];
        const Index vecs = Tile::vecs(rows), strip = vecs * Vec<T>::size;
        Index n = n0;
        if (const Index strips = (n_end - n0) / strip; strips > 0) {
          by_width[vecs - 1][0](strides, a, b + n, c + m0 * g.ldc + n, strips, 0, bias);
          n += strips * strip;
        }
        if (n < n_end) {
          const Index width = n_end - n, left = (width + Vec<T>::size - 1) / Vec<T>::size;
          const Index tail = width - (left - 1) * Vec<T>::size;
          by_width[left - 1][tail < Vec<T>::size](strides, a, b + n, c + m0 * g.ldc + n, 1, tail,
                                                  bias);
        }
        m0 += rows;
      }
    }
  }
}

// How A is brought to the microkernel.
enum class PackA {
  kNone,
  kRows,     // a_col = 1, but rows a multiple of a page apart: they would share one cache set
  kSlivers,  // [tile][k][rows of the tile]: a column of A per step, without touching a page each
};

template <class T> GS_INLINE PackA how_to_pack_a(const Gemm<T>& g) {
  constexpr Index kPage = 4096 / static_cast<Index>(sizeof(T));
  if (g.a_col == 1) {
    // The rows of a small tile fit the ways of one cache set.
    const bool aliases = g.a_row % kPage == 0 && Tile::kRows > 8 && g.m > 8;
    return aliases && g.k * g.blocks >= 64 ? PackA::kRows : PackA::kNone;
  }
  if (g.a_row != 1) return PackA::kSlivers;
  // Half a page is bad enough where several blocks share the cost of packing.
  const bool aliases = g.a_col % (g.blocks > 1 ? kPage / 2 : kPage) == 0;
  return aliases && g.k > 16 && g.m > 1 ? PackA::kSlivers : PackA::kNone;
}

template <class T> GS_INLINE void copy(const T* from, Index n, T* to) {
  Index i = 0;
  for (; i + Vec<T>::size <= n; i += Vec<T>::size) Vec<T>::load(from + i).store(to + i);
  if (i < n) Vec<T>::load_partial(from + i, n - i).store_partial(to + i, n - i);
}

// scratch[m][g][k]
template <class T> void pack_rows(const Gemm<T>& g, T* scratch) {
  for (Index m = 0; m < g.m; ++m) {
    for (Index s = 0; s < g.segments; ++s) {
      copy(g.a + m * g.a_row + s * g.a_seg, g.k, scratch + m * GemmShape<T>::kPackedRow + s * g.k);
    }
  }
}

// scratch[tile][g][k][rows of the tile], tile by tile within groups of columns few enough to stay
// in cache: the columns of A may be a page apart each and should be fetched once.
template <class T> void pack_slivers(const Gemm<T>& g, T* scratch) {
  constexpr Index vecs = (Tile::kRows + Vec<T>::size - 1) / Vec<T>::size;
  constexpr Index wide = vecs * Vec<T>::size;
  constexpr Index kGroup = 8;
  const Index a_row = g.a_row, a_col = g.a_col;
  for (Index s = 0; s < g.segments; ++s) {
    for (Index k0 = 0; k0 < g.k; k0 += kGroup) {
      const Index k_end = k0 + kGroup < g.k ? k0 + kGroup : g.k;
      for (Index m0 = 0; m0 < g.m;) {
        const Index rows = next_tile_rows(g.m - m0);
        const T* from = g.a + m0 * a_row + s * g.a_seg + k0 * a_col;
        T* to = scratch + m0 * g.k * g.segments + (s * g.k + k0) * rows;
        // Whole vectors, whose surplus the next columns overwrite: not for the last columns, and
        // the surplus that is read must lie within the columns of A.
        const bool in_bounds = a_row == 1 && m0 + wide <= a_col + g.m;
        const Index k_safe = in_bounds ? g.k - (wide + rows - 1) / rows + 1 : k0;
        const Index k_whole = k_safe < k_end ? k_safe : k_end;
        Index k = k0;
        for (; k < k_whole; ++k, from += a_col, to += rows) {
#pragma GCC unroll 4
          for (Index v = 0; v < wide; v += Vec<T>::size) Vec<T>::load(from + v).store(to + v);
        }
        for (; k < k_end; ++k, from += a_col, to += rows) {
          for (Index r = 0; r < rows; ++r) to[r] = from[r * a_row];
        }
        m0 += rows;
      }
    }
  }
}

// Kept out of line: only products that pack pay for the stack pages of the scratch.
template <class T> __attribute__((noinline)) void sweep_packed_a(const Gemm<T>& g, PackA how) {
  using Shape = GemmShape<T>;
  alignas(64) T scratch[Shape::kBand * Shape::kPackedRow];
  Gemm<T> packed = g;
  packed.a = scratch;
  if (how == PackA::kRows) {
    pack_rows(g, scratch);
    packed.a_row = Shape::kPackedRow;
    packed.a_col = 1;
    packed.a_seg = g.k;
    sweep(packed, false);
  } else {
    pack_slivers(g, scratch);
    packed.a_row = 1;
    sweep(packed, true);
  }
}

template <class T> void gemm_bands(const Gemm<T>& g) {
  using Shape = GemmShape<T>;
  const PackA how = how_to_pack_a(g);
  if (how == PackA::kNone && g.m <= Shape::kBand && g.k * g.segments <= Shape::kDepth) {
    return sweep(g, false);  // tiny layers: copying the arguments would be felt
  }
  // One chunk of B after the other: all of its blocks stay in the L2 cache while A passes by.
  for_each_chunk(g.segments, g.k, Shape::kDepth, [&](const Chunk& chunk) {
    for (Index m0 = 0; m0 < g.m; m0 += Shape::kBand) {
      const Index rows = g.m - m0 < Shape::kBand ? g.m - m0 : Shape::kBand;
      const Gemm<T> part = slice(g, m0, rows, chunk);
      if (how == PackA::kNone) {
        sweep(part, false);
      } else {
        sweep_packed_a(part, how);
      }
    }
  });
}

// B with long rows, as in dW from sample-major activations: each panel of 32 columns is packed once
// and serves all rows of A.
template <class T> __attribute__((noinline)) void gemm_packed_b(const Gemm<T>& g) {
  using Shape = GemmShape<T>;
  alignas(64) T scratch[Shape::kDepth * Shape::kPanel];
  for (Index block = 0; block < g.blocks; ++block) {
    for (Index n0 = 0; n0 < g.n; n0 += Shape::kPanel) {
      for_each_chunk(g.segments, g.k, Shape::kDepth, [&](const Chunk& chunk) {
        Gemm<T> part = slice(g, 0, g.m, chunk);
        part.n = g.n - n0 < Shape::kPanel ? g.n - n0 : Shape::kPanel;
        part.c += block * g.c_block + n0;
        T* to = scratch;
        for (Index s = 0; s < part.segments; ++s) {
          const T* from = part.b + block * g.b_block + n0 + s * g.b_seg;
          for (Index k = 0; k < part.k; ++k) {
            copy(from + k * g.ldb, part.n, to);
            to += Shape::kPanel;
          }
        }
        part.blocks = 1;
        part.b = scratch;
        part.ldb = Shape::kPanel;
        part.b_seg = part.k * Shape::kPanel;
        gemm_bands(part);
      });
    }
  }
}

template <class T> void gemm(const Gemm<T>& g) {
  if (is_thin(g)) return thin(g);
  // A stride that is never taken: let it be the one that needs no packing.
  if (g.a_col != 1 && (g.k == 1 || (g.m == 1 && g.a_row != 1))) {
    Gemm<T> same = g;
    (g.k == 1 ? same.a_col : same.a_row) = 1;
    return gemm(same);
  }
  // Packing costs about as much as four rows of A.
  const bool long_rows = g.ldb * static_cast<Index>(sizeof(T)) >= 512;
  if (long_rows && g.m >= 24 && g.k * g.segments >= 8) {
    gemm_packed_b(g);
  } else {
    gemm_bands(g);
  }
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

// The microkernel of all matrix products: a tile of C held in registers, fed by broadcast elements
// of A and vectors of B.
#pragma once

#include "simd.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// kRows x kVecs accumulators, kVecs vectors of B and the broadcasts in flight must fit the register
// file: 32 registers on AVX-512 and AArch64, 16 elsewhere. There must be enough independent
// accumulators, too, to cover the latency of the FMA units (8 on x86, up to 16 on AArch64).
struct Tile {
#if defined(__aarch64__)
  static constexpr int kRows = 8;
#else
  static constexpr int kRows = kVecBytes == 64 ? 12 : 6;
#endif
  static constexpr int kMostVecs = 4;
  // Rows of a tile one vector wide, where there are so many: kRows would leave the units idle.
  static constexpr int kTall = 2 * kRows;
  // Vectors in a strip of B: two, and twice as many where so few rows would leave the units idle.
  // (With three rows of four the broadcasts no longer fit 16 registers.)
  static constexpr int vecs(Index rows) { return rows <= 2 ? kMostVecs : 2; }
};

// What all tiles of one sweep have in common: strides and the length of the sum.
struct TileStrides {
  Index k, segments;
  Index a_row, a_col, a_seg;
  Index ldb, b_seg;
  Index ldc;
  const Index* b_rows;
};

// How a tile walks its operands: the elements of a column of A are neighbours (a_row = 1); or those
// of a row (a_col = 1); or those of a row, and B's rows lie where b_rows says.
enum class TileForm { kAcross, kAlong, kGathered };
inline constexpr int kTileForms = 3;

template <bool kPartial, class T> GS_INLINE Vec<T> load_columns(const T* p, Index tail) {
  if constexpr (kPartial) {
    return Vec<T>::load_partial(p, tail);
  } else {
    return Vec<T>::load(p);
  }
}

// C[kRows][kVecs vectors] of `strips` tiles side by side. The sums start at C, or at the bias of
// each row. When kPartial the last vector has `tail` columns, and there is one strip.
template <class T, int kRows, int kVecs, bool kPartial, TileForm kForm>
void tile(const TileStrides& s, const T* a, const T* b, T* c, Index strips, Index tail,
          const T* bias) {
  using V = Vec<T>;
  constexpr bool kAlongK = kForm != TileForm::kAcross;
  // Every third row has a pointer and the two after it are one and two strides away: x86
  // addresses all of them without further arithmetic, and twelve rows need four registers.
  constexpr int kBases = kAlongK ? (kRows + 2) / 3 : 1;
  for (; strips > 0; --strips, b += kVecs * V::size, c += kVecs * V::size) {
    V sum[kRows][kVecs];
    if (bias == nullptr) {
#pragma GCC unroll 24
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          const T* from = c + r * s.ldc + v * V::size;
          sum[r][v] = v == kVecs - 1 ? load_columns<kPartial>(from, tail) : V::load(from);
        }
      }
    } else {
#pragma GCC unroll 24
      for (int r = 0; r < kRows; ++r) {
        // The stores at the end would otherwise wait for their cache lines.
        __builtin_prefetch(c + r * s.ldc, 1);
        const V start(bias[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[r][v] = start;
      }
    }

    for (Index g = 0; g < s.segments; ++g) {
      const T* b_k = b + g * s.b_seg;
      const T* a_k = a + g * s.a_seg;
      const T* base[kBases];
#pragma GCC unroll 8
      for (int r = 0; r < kBases; ++r) base[r] = a_k + 3 * r * s.a_row;
#pragma GCC unroll 4
      for (Index k = 0; k < s.k; ++k) {
        if constexpr (kForm == TileForm::kGathered) b_k = b + s.b_rows[k];
        V b_row[kVecs];
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          const T* from = b_k + v * V::size;
          b_row[v] = v == kVecs - 1 ? load_columns<kPartial>(from, tail) : V::load(from);
        }
        b_k += s.ldb;
#pragma GCC unroll 24
        for (int r = 0; r < kRows; ++r) {
          const V a_rk(kAlongK ? base[r / 3][(r % 3) * s.a_row + k] : base[0][r]);
#pragma GCC unroll 4
          for (int v = 0; v < kVecs; ++v) sum[r][v] = fma(a_rk, b_row[v], sum[r][v]);
        }
        if constexpr (!kAlongK) {
          // Columns far apart are beyond what the hardware prefetches.
          __builtin_prefetch(base[0] + 8 * s.a_col);
          base[0] += s.a_col;
        }
      }
    }

#pragma GCC unroll 24
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        T* to = c + r * s.ldc + v * V::size;
        if (kPartial && v == kVecs - 1) {
          sum[r][v].store_partial(to, tail);
        } else {
          sum[r][v].store(to);
        }
      }
    }
  }
}

template <class T>
using TileFunction = void (*)(const TileStrides&, const T*, const T*, T*, Index, Index, const T*);

// The microkernels of every tile height and width, with whole and with partial last vectors.
template <class T> struct TileTable {
  // [form][rows - 1][vectors - 1][partial]
  TileFunction<T> entry[kTileForms][Tile::kRows][Tile::kMostVecs][2];
  TileFunction<T> tall[kTileForms][2];  // [form][partial]

  constexpr TileTable() : entry{}, tall{} {
    fill_rows<Tile::kRows>();
    fill_tall<TileForm::kAcross>();
    fill_tall<TileForm::kAlong>();
    fill_tall<TileForm::kGathered>();
  }

 private:
  template <TileForm kForm> constexpr void fill_tall() {
    tall[static_cast<int>(kForm)][0] = tile<T, Tile::kTall, 1, false, kForm>;
    tall[static_cast<int>(kForm)][1] = tile<T, Tile::kTall, 1, true, kForm>;
  }
  template <int kRows> constexpr void fill_rows() {
    if constexpr (kRows > 0) {
      fill_vecs<kRows, Tile::vecs(kRows), TileForm::kAcross>();
      fill_vecs<kRows, Tile::vecs(kRows), TileForm::kAlong>();
      fill_vecs<kRows, Tile::vecs(kRows), TileForm::kGathered>();
      fill_rows<kRows - 1>();
    }
  }
  template <int kRows, int kVecs, TileForm kForm> constexpr void fill_vecs() {
    if constexpr (kVecs > 0) {
      auto& of_size = entry[static_cast<int>(kForm)][kRows - 1][kVecs - 1];
      of_size[0] = tile<T, kRows, kVecs, false, kForm>;
      of_size[1] = tile<T, kRows, kVecs, true, kForm>;
      fill_vecs<kRows, kVecs - 1, kForm>();
    }
  }
};

template <class T> inline constexpr TileTable<T> kTiles{};

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

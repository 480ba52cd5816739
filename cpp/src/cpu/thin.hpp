// Products whose sums are so short that a tile would spend its time on starting and ending: the
// columns of B stay in registers while the rows of A pass by.
#pragma once

#include "simd.hpp"
#include "tile.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// The longest sum. Beyond 16 registers some columns of B are read from the L1 cache, which still
// takes a fifth less time than tiles at a length of eight.
inline constexpr int kThinDepth = 8;

// C[m][kVecs vectors]. The sums start at C, or at the bias of each row.
template <class T, int kDepth, int kVecs>
void thin_strip(const Gemm<T>& g, const T* b, T* c, const T* bias, Index bias_step) {
  using V = Vec<T>;
  V column[kDepth][kVecs];
#pragma GCC unroll 8
  for (int k = 0; k < kDepth; ++k) {
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) column[k][v] = V::load(b + k * g.ldb + v * V::size);
  }
  // Copies that no store can alias.
  const T* a = g.a;
  const Index m = g.m, a_row = g.a_row, a_col = g.a_col, ldc = g.ldc;
  for (Index row = 0; row < m; ++row, a += a_row, c += ldc, bias += bias_step) {
    V sum[kVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) sum[v] = bias != nullptr ? V(*bias) : V::load(c + v * V::size);
#pragma GCC unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const V a_k(a[k * a_col]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) sum[v] = fma(a_k, column[k][v], sum[v]);
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) sum[v].store(c + v * V::size);
  }
}

template <class T> using ThinFunction = void (*)(const Gemm<T>&, const T*, T*, const T*, Index);

template <class T> struct ThinTable {
  ThinFunction<T> entry[kThinDepth][2];  // [k - 1][vectors - 1]

  constexpr ThinTable() : entry{} { fill<kThinDepth>(); }

 private:
  template <int kDepth> constexpr void fill() {
    if constexpr (kDepth > 0) {
      entry[kDepth - 1][0] = thin_strip<T, kDepth, 1>;
      entry[kDepth - 1][1] = thin_strip<T, kDepth, 2>;
      fill<kDepth - 1>();
    }
  }
};

template <class T> inline constexpr ThinTable<T> kThin{};

template <class T> GS_INLINE bool is_thin(const Gemm<T>& g) {
  return g.k <= kThinDepth && g.k > 0 && g.segments == 1 && g.b_rows == nullptr &&
         g.m >= Tile::kRows && g.n % Vec<T>::size == 0;
}

template <class T> void thin(const Gemm<T>& g) {
  static constexpr T kZero{};
  const bool from_zero = !g.accumulate && g.bias == nullptr;
  const T* bias = g.accumulate ? nullptr : from_zero ? &kZero : g.bias;
  const Index bias_step = g.accumulate || from_zero ? 0 : 1;
  for (Index block = 0; block < g.blocks; ++block) {
    for (Index n = 0; n < g.n; n += 2 * Vec<T>::size) {
      const bool two = g.n - n >= 2 * Vec<T>::size;
      kThin<T>.entry[g.k - 1][two](g, g.b + block * g.b_block + n, g.c + block * g.c_block + n,
                                   bias, bias_step);
    }
  }
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

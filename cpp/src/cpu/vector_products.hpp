// Matrix-vector products for single samples: y = A x, x = A^T y, A += y x^T.
#pragma once

#include "flat.hpp"
#include "shuffle.hpp"
#include "tile.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// How long a row is: shorter than a vector, one vector, or longer.
enum class RowLength { kPart, kVector, kLong };

// y = A x + bias for kRows rows, with the sums in registers. Each row has one chain of additions,
// so that its bits do not depend on its neighbours; enough rows hide their latency.
template <int kRows, RowLength kLength, class T>
GS_INLINE void gemv_rows(Index k, const T* a, Index lda, const T* x, const T* bias, T* y) {
  using V = Vec<T>;
  constexpr int kSize = static_cast<int>(V::size);
  V sums[(kRows + kSize - 1) / kSize * kSize];
#pragma GCC unroll 16
  for (int r = kRows; r < (kRows + kSize - 1) / kSize * kSize; ++r) sums[r] = V(T(0));
  if constexpr (kLength == RowLength::kLong) {
    // As in a tile: a pointer for every third row.
    constexpr int kBases = (kRows + 2) / 3;
    const T* base[kBases];
#pragma GCC unroll 8
    for (int r = 0; r < kBases; ++r) base[r] = a + 3 * r * lda;
    V sum[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sum[r] = V(T(0));
    Index j = 0;
#pragma GCC unroll 2
    for (; j + V::size <= k; j += V::size) {
      const V x_j = V::load(x + j);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
        sum[r] = fma(V::load(base[r / 3] + (r % 3) * lda + j), x_j, sum[r]);
    }
    if (j < k) {
      const V x_j = V::load_partial(x + j, k - j);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
        sum[r] = fma(V::load_partial(base[r / 3] + (r % 3) * lda + j, k - j), x_j, sum[r]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r] = sum[r];
  } else {
    constexpr bool kPartial = kLength == RowLength::kPart;
    const V x_0 = load_columns<kPartial>(x, k);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) sums[r] = load_columns<kPartial>(a + r * lda, k) * x_0;
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; r += kSize) {
    const Index count = r + kSize <= kRows ? kSize : kRows - r;
    V result = sum_each(sums + r);
    if (bias != nullptr) result += load(bias + r, count);
    store(y + r, result, count);
  }
}

// The last rows, fewer than 2 kRows.
template <int kRows, RowLength kLength, class T>
GS_INLINE void gemv_rest(Index rows, Index k, const T* a, Index lda, const T* x, const T* bias,
                         T* y) {
  if (rows >= kRows) {
    gemv_rows<kRows, kLength>(k, a, lda, x, bias, y);
    rows -= kRows;
    a += kRows * lda;
    y += kRows;
    if (bias != nullptr) bias += kRows;
  }
  if constexpr (kRows > 1) gemv_rest<kRows / 2, kLength>(rows, k, a, lda, x, bias, y);
}

template <RowLength kLength, class T>
void gemv_groups(Index m, Index k, const T* a, Index lda, const T* x, const T* bias, T* y) {
  constexpr Index kGroup = Vec<T>::size > 8 ? Vec<T>::size : 8;
  Index i = 0;
  for (; i + kGroup <= m; i += kGroup)
    gemv_rows<kGroup, kLength>(k, a + i * lda, lda, x, bias != nullptr ? bias + i : nullptr, y + i);
  gemv_rest<kGroup / 2, kLength>(m - i, k, a + i * lda, lda, x,
                                 bias != nullptr ? bias + i : nullptr, y + i);
}

template <class T>
void gemv(Index m, Index k, const T* a, Index lda, const T* x, const T* bias, T* y) {
  if (k > Vec<T>::size)
    gemv_groups<RowLength::kLong>(m, k, a, lda, x, bias, y);
  else if (k == Vec<T>::size)
    gemv_groups<RowLength::kVector>(m, k, a, lda, x, bias, y);
  else
    gemv_groups<RowLength::kPart>(m, k, a, lda, x, bias, y);
}

// x += y[0] A[0] + ... in the order of the rows; x starts at 0 when `zero`.
template <int kRows, class T>
GS_INLINE void add_rows(Index k, const T* a, Index lda, const T* y, T* x, bool zero) {
  using V = Vec<T>;
  V factor[kRows > 0 ? kRows : 1];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) factor[r] = V(y[r]);
  for_each_vector<T>(k, [&](Index j, Index count) {
    V sum = zero ? V(T(0)) : load(x + j, count);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum = fma(factor[r], load(a + r * lda + j, count), sum);
    store(x + j, sum, count);
  });
}

// Whole rows stream through, eight at a time, while x stays in cache: A may come from memory.
template <class T>
void gemv_t(Index m, Index k, const T* a, Index lda, const T* y, T* x, bool accumulate) {
  bool zero = !accumulate;
  if (m == 0 && zero) add_rows<0>(k, a, lda, y, x, zero);
  Index i = 0;
  for (; i + 8 <= m; i += 8, zero = false) add_rows<8>(k, a + i * lda, lda, y + i, x, zero);
  for (; i + 2 <= m; i += 2, zero = false) add_rows<2>(k, a + i * lda, lda, y + i, x, zero);
  if (i < m) add_rows<1>(k, a + i * lda, lda, y + i, x, zero);
}

template <int kRows, class T>
GS_INLINE void outer_rows(Index k, const T* y, const T* x, T* a, Index lda, bool accumulate) {
  using V = Vec<T>;
  V factor[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) factor[r] = V(y[r]);
  for_each_vector<T>(k, [&](Index j, Index count) {
    const V x_j = load(x + j, count);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      T* to = a + r * lda + j;
      store(to, accumulate ? fma(factor[r], x_j, load(to, count)) : factor[r] * x_j, count);
    }
  });
}

template <class T>
void ger(Index m, Index k, const T* y, const T* x, T* a, Index lda, bool accumulate) {
  const auto rows = [&](bool add) {
    Index i = 0;
    for (; i + 4 <= m; i += 4) outer_rows<4>(k, y + i, x, a + i * lda, lda, add);
    for (; i < m; ++i) outer_rows<1>(k, y + i, x, a + i * lda, lda, add);
  };
  // Two loops without a branch inside.
  if (accumulate) {
    rows(true);
  } else {
    rows(false);
  }
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

// Matrix-vector products for single samples, the first also for a few: y = A x, x = A^T y,
// A += y x^T.
#pragma once

#include "flat.hpp"
#include "shuffle.hpp"
#include "tile.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// How long a row is: shorter than a vector, one vector, or longer.
enum class RowLength { kPart, kVector, kLong };

// How many samples share what a product reads of A.
inline constexpr int kFew = static_cast<int>(kFewSamples);

// Rows at a time of so many samples: sums in registers, enough of them to hide their latency.
constexpr int rows_at_once(int rows, int samples) {
  if (samples == 1) return rows;
  const int most = samples == kFew && Tile::kRows <= 6 ? 2 : 4;  // of 16 registers
  return rows < most ? rows : most;
}

// Rows that are added up together: a whole number of vectors.
template <class T> constexpr int whole_vectors(int rows) {
  constexpr int kSize = static_cast<int>(Vec<T>::size);
  return (rows + kSize - 1) / kSize * kSize;
}

// sum[row][sample] += a vector of each row of A, from column j on, times one of each sample.
template <bool kPartial, int kRows, int kSamples, int kBases, class T>
GS_INLINE void add_columns(const T* (&base)[kBases], Index lda, const T* x, Index ldx, Index j,
                           Index tail, Vec<T> (&sum)[kRows][kSamples]) {
  Vec<T> x_j[kSamples];
#pragma GCC unroll 4
  for (int s = 0; s < kSamples; ++s) x_j[s] = load_columns<kPartial>(x + s * ldx, tail);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Vec<T> a_rj = load_columns<kPartial>(base[r / 3] + (r % 3) * lda + j, tail);
#pragma GCC unroll 4
    for (int s = 0; s < kSamples; ++s) sum[r][s] = fma(a_rj, x_j[s], sum[r][s]);
  }
}

// Sums over k, lane by lane, of kRows rows of A with each of kSamples rows of X: sums[sample][row].
template <int kRows, int kSamples, RowLength kLength, class T, int kSums>
GS_INLINE void lane_sums(Index k, const T* a, Index lda, const T* x, Index ldx, int row,
                         Vec<T> (&sums)[kSamples][kSums]) {
  using V = Vec<T>;
  if constexpr (kLength == RowLength::kLong) {
    // As in a tile: a pointer for every third row.
    constexpr int kBases = (kRows + 2) / 3;
    const T* base[kBases];
#pragma GCC unroll 8
    for (int r = 0; r < kBases; ++r) base[r] = a + 3 * r * lda;
    V sum[kRows][kSamples];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int s = 0; s < kSamples; ++s) sum[r][s] = V(T(0));
    }
    Index j = 0;
#pragma GCC unroll 2
    for (; j + V::size <= k; j += V::size) add_columns<false>(base, lda, x + j, ldx, j, 0, sum);
    if (j < k) add_columns<true>(base, lda, x + j, ldx, j, k - j, sum);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int s = 0; s < kSamples; ++s) sums[s][row + r] = sum[r][s];
    }
  } else {
    constexpr bool kPartial = kLength == RowLength::kPart;
    V x_0[kSamples];
#pragma GCC unroll 4
    for (int s = 0; s < kSamples; ++s) x_0[s] = load_columns<kPartial>(x + s * ldx, k);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V a_r = load_columns<kPartial>(a + r * lda, k);
#pragma GCC unroll 4
      for (int s = 0; s < kSamples; ++s) sums[s][row + r] = a_r * x_0[s];
    }
  }
}

// Y = X A^T + bias for kRows rows of A and kSamples of X. Each element has one chain of additions,
// so that its bits do not depend on its neighbours; enough of them hide their latency.
template <int kRows, int kSamples, RowLength kLength, class T>
GS_INLINE void gemv_rows(Index k, const T* a, Index lda, const T* x, Index ldx, const T* bias, T* y,
                         Index ldy) {
  using V = Vec<T>;
  constexpr int kSize = static_cast<int>(V::size);
  constexpr int kStep = rows_at_once(kRows, kSamples);
  constexpr int kSums = whole_vectors<T>(kRows);
  V sums[kSamples][kSums];
  if constexpr (kSums > kRows) {
#pragma GCC unroll 4
    for (int s = 0; s < kSamples; ++s) {
#pragma GCC unroll 16
      for (int r = kRows; r < kSums; ++r) sums[s][r] = V(T(0));
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r += kStep)
    lane_sums<kStep, kSamples, kLength>(k, a + r * lda, lda, x, ldx, r, sums);
#pragma GCC unroll 4
  for (int s = 0; s < kSamples; ++s) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; r += kSize) {
      const Index count = r + kSize <= kRows ? kSize : kRows - r;
      V result = sum_each(sums[s] + r);
      if (bias != nullptr) result += load(bias + r, count);
      store(y + s * ldy + r, result, count);
    }
  }
}

// The last rows, fewer than 2 kRows.
template <int kRows, int kSamples, RowLength kLength, class T>
GS_INLINE void gemv_rest(Index rows, Index k, const T* a, Index lda, const T* x, Index ldx,
                         const T* bias, T* y, Index ldy) {
  if (rows >= kRows) {
    gemv_rows<kRows, kSamples, kLength>(k, a, lda, x, ldx, bias, y, ldy);
    rows -= kRows;
    a += kRows * lda;
    y += kRows;
    if (bias != nullptr) bias += kRows;
  }
  if constexpr (kRows > 1)
    gemv_rest<kRows / 2, kSamples, kLength>(rows, k, a, lda, x, ldx, bias, y, ldy);
}

template <int kSamples, RowLength kLength, class T>
void gemv_groups(Index m, Index k, const T* a, Index lda, const T* x, Index ldx, const T* bias,
                 T* y, Index ldy) {
  constexpr Index kGroup = Vec<T>::size > 8 ? Vec<T>::size : 8;
  Index i = 0;
  for (; i + kGroup <= m; i += kGroup)
    gemv_rows<kGroup, kSamples, kLength>(k, a + i * lda, lda, x, ldx,
                                         bias != nullptr ? bias + i : nullptr, y + i, ldy);
  gemv_rest<kGroup / 2, kSamples, kLength>(m - i, k, a + i * lda, lda, x, ldx,
                                           bias != nullptr ? bias + i : nullptr, y + i, ldy);
}

template <int kSamples, class T>
void gemv_samples(Index m, Index k, const T* a, Index lda, const T* x, Index ldx, const T* bias,
                  T* y, Index ldy) {
  if (k > Vec<T>::size)
    gemv_groups<kSamples, RowLength::kLong>(m, k, a, lda, x, ldx, bias, y, ldy);
  else if (k == Vec<T>::size)
    gemv_groups<kSamples, RowLength::kVector>(m, k, a, lda, x, ldx, bias, y, ldy);
  else
    gemv_groups<kSamples, RowLength::kPart>(m, k, a, lda, x, ldx, bias, y, ldy);
}

template <class T>
void gemv(Index m, Index k, const T* a, Index lda, const T* x, const T* bias, T* y) {
  gemv_samples<1>(m, k, a, lda, x, 0, bias, y, 0);
}

template <class T>
void gemv_few(Index samples, Index m, Index k, const T* a, Index lda, const T* x, Index ldx,
              const T* bias, T* y, Index ldy) {
  for (; samples >= kFew; samples -= kFew, x += kFew * ldx, y += kFew * ldy)
    gemv_samples<kFew>(m, k, a, lda, x, ldx, bias, y, ldy);
  if (samples == 1) return gemv_samples<1>(m, k, a, lda, x, ldx, bias, y, ldy);
  if (samples == 2) return gemv_samples<2>(m, k, a, lda, x, ldx, bias, y, ldy);
  if (samples == 3) return gemv_samples<3>(m, k, a, lda, x, ldx, bias, y, ldy);
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

// Matrix-vector products for single samples: y = A x, x = A^T y, A += y x^T.
#pragma once

#include "flat.hpp"
#include "shuffle.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// sums[r] = the products of row r of A with x, to be added up across lanes. Each row has two
// accumulators, whatever kRows, so that its bits do not depend on its neighbours.
template <int kRows, class T>
GS_INLINE void row_products(Index k, const T* a, Index lda, const T* x, Vec<T>* sums) {
  using V = Vec<T>;
  V even[kRows], odd[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = V(T(0));
  Index j = 0;
  for (; j + 2 * V::size <= k; j += 2 * V::size) {
    const V x0 = V::load(x + j), x1 = V::load(x + j + V::size);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      even[r] = fma(V::load(a + r * lda + j), x0, even[r]);
      odd[r] = fma(V::load(a + r * lda + j + V::size), x1, odd[r]);
    }
  }
  if (j + V::size <= k) {
    const V x0 = V::load(x + j);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) even[r] = fma(V::load(a + r * lda + j), x0, even[r]);
    j += V::size;
  }
  if (j < k) {
    const V x0 = V::load_partial(x + j, k - j);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      odd[r] = fma(V::load_partial(a + r * lda + j, k - j), x0, odd[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = even[r] + odd[r];
}

template <class T>
void gemv(Index m, Index k, const T* a, Index lda, const T* x, const T* bias, T* y) {
  using V = Vec<T>;
  constexpr int kRows = V::size < 4 ? static_cast<int>(V::size) : 4;
  for_each_vector<T>(m, [&](Index i, Index count) {
    V sums[V::size];
#pragma GCC unroll 16
    for (int r = 0; r < V::size; r += kRows) {
      if (r + kRows <= count) {
        row_products<kRows>(k, a + (i + r) * lda, lda, x, sums + r);
      } else {
#pragma GCC unroll 4
        for (int q = r; q < r + kRows; ++q) {
          sums[q] = V(T(0));
          if (q < count) row_products<1>(k, a + (i + q) * lda, lda, x, sums + q);
        }
      }
    }
    V result = sum_each(sums);
    if (bias != nullptr) result += load(bias + i, count);
    store(y + i, result, count);
  });
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

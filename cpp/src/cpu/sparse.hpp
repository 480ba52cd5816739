// Products with a sparse matrix given by its edges, a block of samples at a time.
#pragma once

#include "flat.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// kVectors vectors of samples at once: a weight is fetched once for all of them.
template <int kVectors, class T>
GS_INLINE void gather_lanes(const SparseRows<T>& p, Index r, Index lane) {
  using V = Vec<T>;
  T* y = p.y + r * p.lanes + lane;
  V sum[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v)
    sum[v] = p.accumulate ? V::load(y + v * V::size) : V(p.bias != nullptr ? p.bias[r] : T(0));
  for (Index t = p.begin[r]; t < p.begin[r + 1]; ++t) {
    const V w(p.w[p.edge[t]]);
    const T* x = p.x + p.other[t] * p.lanes + lane;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[v] = fma(w, V::load(x + v * V::size), sum[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) sum[v].store(y + v * V::size);
}

template <class T> void sparse_rows(const SparseRows<T>& p) {
  constexpr int kVectors = 4;
  constexpr Index step = kVectors * Vec<T>::size;
  for (Index r = 0; r < p.rows; ++r) {
    if (p.lanes == 1) {
      T sum = p.accumulate ? p.y[r] : p.bias != nullptr ? p.bias[r] : T(0);
      for (Index t = p.begin[r]; t < p.begin[r + 1]; ++t)
        sum = math::fma(p.w[p.edge[t]], p.x[p.other[t]], sum);
      p.y[r] = sum;
      continue;
    }
    Index lane = 0;
    for (; lane + step <= p.lanes; lane += step) gather_lanes<kVectors>(p, r, lane);
    for (; lane < p.lanes; lane += Vec<T>::size) gather_lanes<1>(p, r, lane);
  }
}

template <class T> void sparse_products(const SparseProducts<T>& p) {
  using V = Vec<T>;
  for (Index e = 0; e < p.n; ++e) {
    const T* a = p.a + p.edges[2 * e] * p.lanes;
    const T* b = p.b + p.edges[2 * e + 1] * p.lanes;
    T sum;
    if (p.lanes == 1) {
      sum = T(0);
      for (Index s = 0; s < p.segments; ++s)
        sum = math::fma(a[s * p.a_segment], b[s * p.b_segment], sum);
    } else {
      V even(T(0)), odd(T(0));
      for (Index s = 0; s < p.segments; ++s) {
        const T *x = a + s * p.a_segment, *y = b + s * p.b_segment;
        for (Index lane = 0; lane < p.lanes; lane += 2 * V::size) {
          even = fma(V::load(x + lane), V::load(y + lane), even);
          if (lane + V::size < p.lanes)
            odd = fma(V::load(x + lane + V::size), V::load(y + lane + V::size), odd);
        }
      }
      sum = reduce_add(even + odd);
    }
    p.out[e] = p.accumulate ? p.out[e] + sum : sum;
  }
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

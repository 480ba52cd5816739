// Lane exchanges between vectors: the square transpose and the transposing sum.
//
// Both are butterflies of the same two exchanges at distances 1, 2, 4, ... lanes, written as
// constant shuffles, which compilers turn into the unpack and permute instructions of each
// instruction set.
#pragma once

#include <utility>

#include "simd.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace simd {

// Lane i: a[i] where bit `kStep` of i is clear, b[i - kStep] where it is set.
template <int kStep, class T, std::size_t... kI>
GS_INLINE Vec<T> lower_lanes(Vec<T> a, Vec<T> b, std::index_sequence<kI...>) {
  constexpr int size = static_cast<int>(Vec<T>::size);
  return __builtin_shufflevector(
      a.v, b.v, ((kI & kStep) ? static_cast<int>(kI) - kStep + size : static_cast<int>(kI))...);
}

// Lane i: a[i + kStep] where bit `kStep` of i is clear, b[i] where it is set.
template <int kStep, class T, std::size_t... kI>
GS_INLINE Vec<T> upper_lanes(Vec<T> a, Vec<T> b, std::index_sequence<kI...>) {
  constexpr int size = static_cast<int>(Vec<T>::size);
  return __builtin_shufflevector(
      a.v, b.v, ((kI & kStep) ? static_cast<int>(kI) + size : static_cast<int>(kI) + kStep)...);
}

template <int kStep, class T> GS_INLINE Vec<T> lower_lanes(Vec<T> a, Vec<T> b) {
  return lower_lanes<kStep>(a, b, std::make_index_sequence<Vec<T>::size>{});
}
template <int kStep, class T> GS_INLINE Vec<T> upper_lanes(Vec<T> a, Vec<T> b) {
  return upper_lanes<kStep>(a, b, std::make_index_sequence<Vec<T>::size>{});
}

// Of every four lanes: a[first] b[first] a[first + 1] b[first + 1].
template <int kFirst, class T, std::size_t... kI>
GS_INLINE Vec<T> zip(Vec<T> a, Vec<T> b, std::index_sequence<kI...>) {
  constexpr int size = static_cast<int>(Vec<T>::size);
  return __builtin_shufflevector(
      a.v, b.v,
      (static_cast<int>(kI & ~std::size_t{3}) + kFirst + static_cast<int>(kI & 3) / 2 +
       static_cast<int>(kI & 1) * size)...);
}

template <class T> GS_INLINE Vec<T> zip_lower(Vec<T> a, Vec<T> b) {
  return zip<0>(a, b, std::make_index_sequence<Vec<T>::size>{});
}
template <class T> GS_INLINE Vec<T> zip_upper(Vec<T> a, Vec<T> b) {
  return zip<2>(a, b, std::make_index_sequence<Vec<T>::size>{});
}

}  // namespace simd

// v[i][j] <-> v[j][i] for the square of Vec<T>::size vectors.
template <class T, int kStep = 1> GS_INLINE void transpose(Vec<T>* v) {
  if constexpr (kStep < Vec<T>::size) {
#pragma GCC unroll 16
    for (int i = 0; i < Vec<T>::size; ++i) {
      if ((i & kStep) == 0) {
        const Vec<T> a = v[i], b = v[i + kStep];
        v[i] = simd::lower_lanes<kStep>(a, b);
        v[i + kStep] = simd::upper_lanes<kStep>(a, b);
      }
    }
    transpose<T, 2 * kStep>(v);
  }
}

// Lane i of the result is the sum of the lanes of v[i]; v is overwritten. The order of each sum is
// the same for every i.
template <class T, int kStep = 1> GS_INLINE Vec<T> sum_each(Vec<T>* v) {
  constexpr int pairs = static_cast<int>(Vec<T>::size) / (2 * kStep);
  if constexpr (kStep >= Vec<T>::size) {
    return v[0];
  } else if constexpr (kStep == 1 && sizeof(T) == 4) {
    // Zipping takes one instruction where the exchange at distance one takes two. It leaves the
    // two halves of four lanes to be added.
#pragma GCC unroll 8
    for (int i = 0; i < pairs; ++i) {
      const Vec<T> a = v[2 * i], b = v[2 * i + 1];
      v[i] = simd::zip_lower(a, b) + simd::zip_upper(a, b);
    }
    return sum_each<T, 2>(v);
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < pairs; ++i) {
      const Vec<T> a = v[2 * i], b = v[2 * i + 1];
      v[i] = simd::lower_lanes<kStep>(a, b) + simd::upper_lanes<kStep>(a, b);
    }
    return sum_each<T, 2 * kStep>(v);
  }
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

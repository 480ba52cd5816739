// Softmax and log-softmax over the features of a block, one distribution per lane.
//
// The largest entry is subtracted first: exp never overflows and the sum is at least 1.
#pragma once

#include "flat.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// Blocks: a vector holds the same feature of neighbouring samples.
template <class T> GS_INLINE void softmax_lanes(Index d, Index lanes, const T* s, T* z, bool log) {
  using V = Vec<T>;
  for (Index lane = 0; lane < lanes; lane += V::size) {
    const T* s0 = s + lane;
    T* z0 = z + lane;
    V largest = V::load(s0);
    for (Index j = 1; j < d; ++j) largest = maximum(V::load(s0 + j * lanes), largest);
    V sum(T(0));
    if (log) {
      for (Index j = 0; j < d; ++j) sum += exp(V::load(s0 + j * lanes) - largest);
      const V log_sum = gradstack::log(sum);
      for (Index j = 0; j < d; ++j) {
        ((V::load(s0 + j * lanes) - largest) - log_sum).store(z0 + j * lanes);
      }
    } else {
      for (Index j = 0; j < d; ++j) {
        const V e = exp(V::load(s0 + j * lanes) - largest);
        sum += e;
        e.store(z0 + j * lanes);
      }
      const V factor = V(T(1)) / sum;
      for (Index j = 0; j < d; ++j) (V::load(z0 + j * lanes) * factor).store(z0 + j * lanes);
    }
  }
}

// The first `count` lanes; 0 in the others.
template <class T> GS_INLINE Vec<T> first_lanes(Vec<T> x, Index count) {
  if (count >= Vec<T>::size) return x;
  T lanes[Vec<T>::size];
  x.store(lanes);
  return Vec<T>::load_partial(lanes, count);
}

// One sample: a vector holds neighbouring features.
template <class T> GS_INLINE void softmax_single(Index d, const T* s, T* z, bool log) {
  using V = Vec<T>;
  T top = s[0];
  if (d >= V::size) {
    // The last vector overlaps the one before, which leaves a maximum as it is.
    V largest = V::load(s + d - V::size);
    for (Index j = 0; j + V::size <= d; j += V::size) largest = maximum(V::load(s + j), largest);
    top = reduce_max(largest);
  } else {
    for (Index j = 1; j < d; ++j) top = s[j] > top ? s[j] : top;
  }
  const V largest(top);
  V sums(T(0));
  for_each_vector<T>(d, [&](Index j, Index count) {
    sums += first_lanes(exp(load(s + j, count) - largest), count);
  });
  const V sum(reduce_add(sums));
  if (log) {
    const V log_sum = gradstack::log(sum);
    for_each_vector<T>(d, [&](Index j, Index count) {
      store(z + j, (load(s + j, count) - largest) - log_sum, count);
    });
  } else {
    const V factor = V(T(1)) / sum;
    for_each_vector<T>(d, [&](Index j, Index count) {
      store(z + j, exp(load(s + j, count) - largest) * factor, count);
    });
  }
}

template <class T> void softmax(Index d, Index lanes, const T* s, T* z, bool log) {
  if (d == 0) return;
  if (lanes == 1) {
    softmax_single(d, s, z, log);
  } else {
    softmax_lanes(d, lanes, s, z, log);
  }
}

// softmax:     ds_j = z_j (dz_j - sum_i z_i dz_i)
// log-softmax: ds_j = dz_j - exp(z_j) sum_i dz_i
template <class T>
void softmax_backward(Index d, Index lanes, const T* z, const T* dz, T* ds, bool log,
                      bool accumulate) {
  using V = Vec<T>;
  const auto finish = [&](Index i, V sum, Index count) {
    const V zi = load(z + i, count), dzi = load(dz + i, count);
    const V value = log ? dzi - exp(zi) * sum : zi * (dzi - sum);
    store(ds + i, accumulate ? load(ds + i, count) + value : value, count);
  };
  const auto term = [&](Index i, Index count) {
    const V dzi = load(dz + i, count);
    return log ? dzi : load(z + i, count) * dzi;
  };
  if (lanes == 1) {
    V sums(T(0));
    for_each_vector<T>(d, [&](Index j, Index count) { sums += term(j, count); });
    const V sum(reduce_add(sums));
    for_each_vector<T>(d, [&](Index j, Index count) { finish(j, sum, count); });
    return;
  }
  for (Index lane = 0; lane < lanes; lane += V::size) {
    V sum(T(0));
    for (Index j = 0; j < d; ++j) sum += term(j * lanes + lane, V::size);
    for (Index j = 0; j < d; ++j) finish(j * lanes + lane, sum, V::size);
  }
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

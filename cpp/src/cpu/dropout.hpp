// Dropout with the counter-based stream of random.hpp, a vector of elements at a time.
#pragma once

#include "words.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
template <class T>
GS_INLINE void drop(Words<T> bits, std::uint32_t threshold, Vec<T> scale, const T* s, T* z,
                    bool accumulate, Index count) {
  const Vec<T> value = select(at_least<T>(bits, threshold), load(s, count) * scale, Vec<T>(T(0)));
  store(z, accumulate ? load(z, count) + value : value, count);
}

template <class T>
void dropout(Index d, Index lanes, const std::uint64_t* key, std::uint32_t threshold, T scale,
             const T* s, T* z, bool accumulate) {
  constexpr Index size = Vec<T>::size;
  const Vec<T> factor(scale);
  Words<T> low{}, high{};
  if (lanes == 1) {
    Words<T> index{};
    for (Index i = 0; i < size; ++i) {
      low[i] = static_cast<std::uint32_t>(key[0]);
      high[i] = static_cast<std::uint32_t>(key[0] >> 32);
      index[i] = static_cast<std::uint32_t>(i);
    }
    for_each_vector<T>(d, [&](Index j, Index count) {
      drop<T>(uniform_bits(low, high, index + static_cast<std::uint32_t>(j)), threshold, factor,
              s + j, z + j, accumulate, count);
    });
    return;
  }
  for (Index lane = 0; lane < lanes; lane += size) {
    for (Index i = 0; i < size; ++i) {
      low[i] = static_cast<std::uint32_t>(key[lane + i]);
      high[i] = static_cast<std::uint32_t>(key[lane + i] >> 32);
    }
    for (Index j = 0; j < d; ++j) {
      const Words<T> index = Words<T>{} + static_cast<std::uint32_t>(j);
      const Index at = j * lanes + lane;
      drop<T>(uniform_bits(low, high, index), threshold, factor, s + at, z + at, accumulate, size);
    }
  }
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

// Normal random numbers from the counter-based stream of random.hpp, a vector at a time.
#pragma once

#include "words.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

template <class T> void normal_values(Index n, std::uint64_t key, std::uint32_t first, T* out) {
  using Ints = typename simd::NativeInts<Vec<T>::size * 4>::type;
  const Words<T> low = Words<T>{} + static_cast<std::uint32_t>(key);
  const Words<T> high = Words<T>{} + static_cast<std::uint32_t>(key >> 32);
  Words<T> lane{};
  for (Index i = 0; i < Vec<T>::size; ++i) lane[i] = first + static_cast<std::uint32_t>(i);
  for_each_vector<T>(n, [&](Index i, Index count) {
    const Words<T> bits = uniform_bits(low, high, lane + static_cast<std::uint32_t>(i));
    const Words<T> upper = Words<T>{} - (bits >> 31);  // all ones in the upper half
    const Vec<T> rank = __builtin_convertvector((Ints)(bits ^ upper), typename Vec<T>::Native);
    const Vec<T> x = normal_tail((rank + Vec<T>(0.5)) * Vec<T>(0x1p-32));
    store(out + i, select(at_least<T>(bits, 0x80000000U), x, -x), count);
  });
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

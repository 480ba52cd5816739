// Vectors of 32 random bits beside vectors of values.
#pragma once

#include "flat.hpp"
#include "gradstack/random.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace simd {

template <Index kBytes> struct NativeBits;
template <Index kBytes> struct NativeInts;
#define GS_NATIVE_BITS(bytes)                                       \
  template <> struct NativeBits<bytes> {                            \
    typedef std::uint32_t type __attribute__((vector_size(bytes))); \
  };                                                                \
  template <> struct NativeInts<bytes> {                            \
    typedef std::int32_t type __attribute__((vector_size(bytes)));  \
  };
GS_NATIVE_BITS(8)
GS_NATIVE_BITS(16)
GS_NATIVE_BITS(32)
GS_NATIVE_BITS(64)
#undef GS_NATIVE_BITS

}  // namespace simd

// As many 32-bit words as Vec<T> has lanes.
template <class T> using Words = typename simd::NativeBits<Vec<T>::size * 4>::type;

template <class T> GS_INLINE Mask<T> at_least(Words<T> words, std::uint32_t threshold) {
  const auto keep = words >= threshold;
  if constexpr (sizeof(T) == 4) {
    return {(typename Mask<T>::Native)keep};
  } else {
    return {__builtin_convertvector(keep, typename Mask<T>::Native)};
  }
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

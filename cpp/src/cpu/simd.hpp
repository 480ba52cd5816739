// Vec<T>: one native vector of the instruction set that the including unit is compiled for.
//
// Arithmetic is GCC/Clang vector extensions, so one source serves SSE, AVX2, AVX-512 and NEON;
// intrinsics appear only where the extensions have no word for it (FMA, square root, masked memory
// access). Everything is forced inline and nothing of the standard library is instantiated: no weak
// symbol of a unit built for a newer instruction set can replace the baseline's at link time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "gradstack/config.hpp"
#include "gradstack/math.hpp"

#ifndef GRADSTACK_VEC_BYTES
#if defined(__AVX512F__)
#define GRADSTACK_VEC_BYTES 64
#elif defined(__AVX__)
#define GRADSTACK_VEC_BYTES 32
#else
#define GRADSTACK_VEC_BYTES 16
#endif
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// The intrinsics of exactly this vector width, where this unit may use them.
#if GRADSTACK_VEC_BYTES == 64 && defined(__AVX512F__)
#define GS_SIMD_AVX512 1
#elif GRADSTACK_VEC_BYTES == 32 && defined(__AVX2__) && defined(__FMA__)
#define GS_SIMD_AVX2 1
#elif GRADSTACK_VEC_BYTES == 16 && defined(__aarch64__)
#define GS_SIMD_NEON 1
#elif GRADSTACK_VEC_BYTES == 16 && defined(__x86_64__)
#define GS_SIMD_SSE 1
#endif

namespace gradstack {
inline namespace GRADSTACK_UNIT {

inline constexpr Index kVecBytes = GRADSTACK_VEC_BYTES;

namespace simd {

template <class T> struct IntOf;
template <> struct IntOf<float> {
  using type = std::int32_t;
  using unsigned_type = std::uint32_t;
};
template <> struct IntOf<double> {
  using type = std::int64_t;
  using unsigned_type = std::uint64_t;
};

// Vector types are built from a fixed element type: attributes on dependent types are not portable.
template <class T, Index kBytes> struct Native;
#define GS_NATIVE(T, bytes) \
  template <> struct Native<T, bytes> { typedef T type __attribute__((vector_size(bytes))); };
#define GS_NATIVE_ALL(bytes)      \
  GS_NATIVE(float, bytes)         \
  GS_NATIVE(double, bytes)        \
  GS_NATIVE(std::int32_t, bytes)  \
  GS_NATIVE(std::int64_t, bytes)  \
  GS_NATIVE(std::uint32_t, bytes) \
  GS_NATIVE(std::uint64_t, bytes)
GS_NATIVE_ALL(8)
GS_NATIVE_ALL(16)
GS_NATIVE_ALL(32)
GS_NATIVE_ALL(64)
#undef GS_NATIVE_ALL
#undef GS_NATIVE

}  // namespace simd

// Lane-wise truth values: all bits set or none, as wide as the values compared.
template <class T> struct Mask {
  using Int = typename simd::IntOf<T>::type;
  using Native = typename simd::Native<Int, kVecBytes>::type;
  Native m;

  friend GS_INLINE Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
  friend GS_INLINE Mask operator|(Mask a, Mask b) { return {a.m | b.m}; }
  friend GS_INLINE Mask operator!(Mask a) { return {~a.m}; }
};

template <class T> struct Vec {
  using Scalar = T;
  using Native = typename simd::Native<T, kVecBytes>::type;
  using Bits = typename simd::Native<typename simd::IntOf<T>::unsigned_type, kVecBytes>::type;
  static constexpr Index size = kVecBytes / static_cast<Index>(sizeof(T));

  Native v;

  Vec() = default;
  GS_INLINE Vec(Native native) : v(native) {}
  // x in every lane. (Subtracting from x keeps the sign of -0.)
  template <class S>
  requires std::is_arithmetic_v<S>
  explicit GS_INLINE Vec(S x) : v(static_cast<T>(x) - Native{}) {}

  static GS_INLINE Vec load(const T* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  GS_INLINE void store(T* p) const { __builtin_memcpy(p, &v, sizeof v); }

  // The first n lanes, 0 <= n <= size; memory beyond them is not touched, lanes beyond them load 0.
  static GS_INLINE Vec load_partial(const T* p, Index n);
  GS_INLINE void store_partial(T* p, Index n) const;

  GS_INLINE T operator[](Index i) const { return v[i]; }

  friend GS_INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend GS_INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend GS_INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend GS_INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  friend GS_INLINE Vec operator-(Vec a) { return -a.v; }
  GS_INLINE Vec& operator+=(Vec b) { return *this = *this + b; }
  GS_INLINE Vec& operator-=(Vec b) { return *this = *this - b; }
  GS_INLINE Vec& operator*=(Vec b) { return *this = *this * b; }

  friend GS_INLINE Mask<T> operator<(Vec a, Vec b) { return {a.v < b.v}; }
  friend GS_INLINE Mask<T> operator<=(Vec a, Vec b) { return {a.v <= b.v}; }
  friend GS_INLINE Mask<T> operator>(Vec a, Vec b) { return {a.v > b.v}; }
  friend GS_INLINE Mask<T> operator>=(Vec a, Vec b) { return {a.v >= b.v}; }
  friend GS_INLINE Mask<T> operator==(Vec a, Vec b) { return {a.v == b.v}; }
  friend GS_INLINE Mask<T> operator!=(Vec a, Vec b) { return {a.v != b.v}; }

  friend GS_INLINE Vec select(Mask<T> m, Vec a, Vec b) { return m.m ? a.v : b.v; }
};

// The same bits seen as unsigned integers (whose arithmetic wraps), and back.
template <class T> GS_INLINE typename Vec<T>::Bits bits(Vec<T> x) {
  return (typename Vec<T>::Bits)x.v;
}
template <class T> GS_INLINE Vec<T> from_bits(typename Vec<T>::Bits i) {
  return (typename Vec<T>::Native)i;
}

template <class T> GS_INLINE Vec<T> abs(Vec<T> x) {
  return from_bits<T>(bits(x) & ~bits(Vec<T>(-0.0)));
}
template <class T> GS_INLINE Vec<T> copysign(Vec<T> x, Vec<T> s) {
  const auto sign_bit = bits(Vec<T>(-0.0));
  return from_bits<T>((bits(x) & ~sign_bit) | (bits(s) & sign_bit));
}

// Is any lane true?
template <class T> GS_INLINE bool any(Mask<T> mask) {
#if defined(GS_SIMD_AVX2)
  return _mm256_movemask_epi8((__m256i)mask.m) != 0;
#elif defined(GS_SIMD_SSE)
  return _mm_movemask_epi8((__m128i)mask.m) != 0;
#elif defined(GS_SIMD_AVX512)
  return _mm512_test_epi32_mask((__m512i)mask.m, (__m512i)mask.m) != 0;
#else
  typename Mask<T>::Int found = 0;
  for (Index i = 0; i < Vec<T>::size; ++i) found |= mask.m[i];
  return found != 0;
#endif
}

// x * y + z, rounded once where the instruction set has an FMA.
template <class T> GS_INLINE Vec<T> fma(Vec<T> x, Vec<T> y, Vec<T> z) {
#if defined(GS_SIMD_AVX512)
  if constexpr (sizeof(T) == 4) {
    return _mm512_fmadd_ps(x.v, y.v, z.v);
  } else {
    return _mm512_fmadd_pd(x.v, y.v, z.v);
  }
#elif defined(GS_SIMD_AVX2)
  if constexpr (sizeof(T) == 4) {
    return _mm256_fmadd_ps(x.v, y.v, z.v);
  } else {
    return _mm256_fmadd_pd(x.v, y.v, z.v);
  }
#elif defined(GS_SIMD_NEON)
  if constexpr (sizeof(T) == 4) {
    return vfmaq_f32(z.v, x.v, y.v);
  } else {
    return vfmaq_f64(z.v, x.v, y.v);
  }
#else
  return x * y + z;
#endif
}
// x * y - z
template <class T> GS_INLINE Vec<T> fms(Vec<T> x, Vec<T> y, Vec<T> z) {
#if defined(GS_SIMD_AVX512)
  if constexpr (sizeof(T) == 4) {
    return _mm512_fmsub_ps(x.v, y.v, z.v);
  } else {
    return _mm512_fmsub_pd(x.v, y.v, z.v);
  }
#elif defined(GS_SIMD_AVX2)
  if constexpr (sizeof(T) == 4) {
    return _mm256_fmsub_ps(x.v, y.v, z.v);
  } else {
    return _mm256_fmsub_pd(x.v, y.v, z.v);
  }
#elif defined(GS_SIMD_NEON)
  if constexpr (sizeof(T) == 4) {
    return vfmaq_f32(vnegq_f32(z.v), x.v, y.v);
  } else {
    return vfmaq_f64(vnegq_f64(z.v), x.v, y.v);
  }
#else
  return x * y - z;
#endif
}
// z - x * y
template <class T> GS_INLINE Vec<T> fnma(Vec<T> x, Vec<T> y, Vec<T> z) {
#if defined(GS_SIMD_AVX512)
  if constexpr (sizeof(T) == 4) {
    return _mm512_fnmadd_ps(x.v, y.v, z.v);
  } else {
    return _mm512_fnmadd_pd(x.v, y.v, z.v);
  }
#elif defined(GS_SIMD_AVX2)
  if constexpr (sizeof(T) == 4) {
    return _mm256_fnmadd_ps(x.v, y.v, z.v);
  } else {
    return _mm256_fnmadd_pd(x.v, y.v, z.v);
  }
#elif defined(GS_SIMD_NEON)
  if constexpr (sizeof(T) == 4) {
    return vfmsq_f32(z.v, x.v, y.v);
  } else {
    return vfmsq_f64(z.v, x.v, y.v);
  }
#else
  return z - x * y;
#endif
}

// The second operand when either is NaN. (gcc makes two instructions of the comparison.)
template <class T> GS_INLINE Vec<T> minimum(Vec<T> a, Vec<T> b) {
#if defined(GS_SIMD_AVX512)
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_min_ps(0xffff, a.v, b.v);
  } else {
    return _mm512_maskz_min_pd(0xff, a.v, b.v);
  }
#elif defined(GS_SIMD_AVX2)
  if constexpr (sizeof(T) == 4) {
    return _mm256_min_ps(a.v, b.v);
  } else {
    return _mm256_min_pd(a.v, b.v);
  }
#elif defined(GS_SIMD_SSE)
  if constexpr (sizeof(T) == 4) {
    return _mm_min_ps(a.v, b.v);
  } else {
    return _mm_min_pd(a.v, b.v);
  }
#else
  return select(a < b, a, b);
#endif
}
template <class T> GS_INLINE Vec<T> maximum(Vec<T> a, Vec<T> b) {
#if defined(GS_SIMD_AVX512)
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_max_ps(0xffff, a.v, b.v);
  } else {
    return _mm512_maskz_max_pd(0xff, a.v, b.v);
  }
#elif defined(GS_SIMD_AVX2)
  if constexpr (sizeof(T) == 4) {
    return _mm256_max_ps(a.v, b.v);
  } else {
    return _mm256_max_pd(a.v, b.v);
  }
#elif defined(GS_SIMD_SSE)
  if constexpr (sizeof(T) == 4) {
    return _mm_max_ps(a.v, b.v);
  } else {
    return _mm_max_pd(a.v, b.v);
  }
#else
  return select(a > b, a, b);
#endif
}

template <class T> GS_INLINE Vec<T> sqrt(Vec<T> x) {
#if defined(GS_SIMD_AVX512)
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_sqrt_ps(0xffff, x.v);
  } else {
    return _mm512_maskz_sqrt_pd(0xff, x.v);
  }
#elif defined(GS_SIMD_AVX2)
  if constexpr (sizeof(T) == 4) {
    return _mm256_sqrt_ps(x.v);
  } else {
    return _mm256_sqrt_pd(x.v);
  }
#elif defined(GS_SIMD_NEON)
  if constexpr (sizeof(T) == 4) {
    return vsqrtq_f32(x.v);
  } else {
    return vsqrtq_f64(x.v);
  }
#elif defined(GS_SIMD_SSE)
  if constexpr (sizeof(T) == 4) {
    return _mm_sqrt_ps(x.v);
  } else {
    return _mm_sqrt_pd(x.v);
  }
#else
  Vec<T> r;
  for (Index i = 0; i < Vec<T>::size; ++i) r.v[i] = math::sqrt(x.v[i]);
  return r;
#endif
}

#if defined(GS_SIMD_AVX2)
namespace simd {
// A window into this table at distance n from its middle is a mask of n leading lanes.
alignas(32) inline constexpr std::int32_t kPrefix32[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
alignas(32) inline constexpr std::int64_t kPrefix64[8] = {-1, -1, -1, -1};

template <class T> GS_INLINE __m256i prefix_mask(Index n) {
  if constexpr (sizeof(T) == 4) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPrefix32 + 8 - n));
  } else {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kPrefix64 + 4 - n));
  }
}
}  // namespace simd
#endif

template <class T> GS_INLINE Vec<T> Vec<T>::load_partial(const T* p, Index n) {
#if defined(GS_SIMD_AVX512)
  if constexpr (sizeof(T) == 4) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
  } else {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1u), p);
  }
#elif defined(GS_SIMD_AVX2)
  if constexpr (sizeof(T) == 4) {
    return _mm256_maskload_ps(p, simd::prefix_mask<T>(n));
  } else {
    return _mm256_maskload_pd(p, simd::prefix_mask<T>(n));
  }
#else
  Vec<T> r{Native{}};
  for (Index i = 0; i < size; ++i) {
    if (i < n) r.v[i] = p[i];
  }
  return r;
#endif
}

template <class T> GS_INLINE void Vec<T>::store_partial(T* p, Index n) const {
#if defined(GS_SIMD_AVX512)
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1u), v);
  }
#else
  // AVX2's masked store takes about twelve cycles on AMD processors: power-of-two pieces instead.
  T lanes[size];
  store(lanes);
  Index done = 0;
#pragma GCC unroll 5
  for (Index piece = size; piece > 0; piece /= 2) {
    if ((n & piece) == 0) continue;
    __builtin_memcpy(p + done, lanes + done, static_cast<std::size_t>(piece) * sizeof(T));
    done += piece;
  }
#endif
}

namespace simd {

// Sum of the lanes: the upper half is added to the lower half until one lane is left, so the order
// depends on the vector width alone.
template <class T, Index kBytes> GS_INLINE T reduce_add(typename Native<T, kBytes>::type x) {
  if constexpr (kBytes == 2 * sizeof(T)) {
    return x[0] + x[1];
  } else if constexpr (kBytes == 4 * sizeof(T)) {
    const auto lo = __builtin_shufflevector(x, x, 0, 1);
    return reduce_add<T, kBytes / 2>(lo + __builtin_shufflevector(x, x, 2, 3));
  } else if constexpr (kBytes == 8 * sizeof(T)) {
    const auto lo = __builtin_shufflevector(x, x, 0, 1, 2, 3);
    return reduce_add<T, kBytes / 2>(lo + __builtin_shufflevector(x, x, 4, 5, 6, 7));
  } else {
    const auto lo = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    const auto hi = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    return reduce_add<T, kBytes / 2>(lo + hi);
  }
}

}  // namespace simd

template <class T> GS_INLINE T reduce_add(Vec<T> x) { return simd::reduce_add<T, kVecBytes>(x.v); }

// Largest lane; with a NaN among them the result is unspecified.
template <class T> GS_INLINE T reduce_max(Vec<T> x) {
  T best = x.v[0];
  for (Index i = 1; i < Vec<T>::size; ++i) best = math::maximum(x.v[i], best);
  return best;
}

template <class T> struct Lanes<Vec<T>> {
  using Scalar = T;
  static constexpr Index width = Vec<T>::size;
  static GS_INLINE Vec<T> load(const T* p, Index n) {
    return n >= width ? Vec<T>::load(p) : Vec<T>::load_partial(p, n);
  }
  static GS_INLINE void store(T* p, Vec<T> x, Index n) {
    if (n >= width) {
      x.store(p);
    } else {
      x.store_partial(p, n);
    }
  }
};

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

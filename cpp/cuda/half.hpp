// The storage types bfloat16 and IEEE half, for host and device: bits, and conversions that round
// to nearest, ties to even, as the hardware's do. Nothing computes in them.
#pragma once

#include "gradstack/device_types.hpp"

namespace gradstack::device {

GS_HD GS_INLINE std::uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(std::uint32_t, x);
#endif
}

GS_HD GS_INLINE float float_of(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

// The lowest `drop` bits rounded away; a carry may reach the exponent, as it should.
constexpr std::uint32_t round_off(std::uint32_t bits, int drop) {
  const std::uint32_t odd = (bits >> drop) & 1U, half = 1U << (drop - 1);
  return (bits + half - 1 + odd) >> drop << drop;
}

// What tensor cores make of a float32 operand in tf32: 10 bits of mantissa.
inline float rounded_to_tf32(float x) {
  const std::uint32_t bits = bits_of(x);
  return (bits & 0x7f800000U) == 0x7f800000U ? x : float_of(round_off(bits, 13));
}

struct BFloat16 {
  std::uint16_t bits;

  GS_HD GS_INLINE static BFloat16 from(float x) {
#if defined(__CUDA_ARCH__)
    BFloat16 made;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(made.bits) : "f"(x));
    return made;
#else
    const std::uint32_t all = bits_of(x);
    if ((all & 0x7fffffffU) > 0x7f800000U) return {0x7fff};  // the hardware's NaN
    return {static_cast<std::uint16_t>(round_off(all, 16) >> 16)};
#endif
  }
  GS_HD GS_INLINE explicit operator float() const {
    return float_of(static_cast<std::uint32_t>(bits) << 16);
  }
};

struct Float16 {
  std::uint16_t bits;

  GS_HD GS_INLINE static Float16 from(float x) {
#if defined(__CUDA_ARCH__)
    Float16 made;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(made.bits) : "f"(x));
    return made;
#else
    const std::uint32_t all = bits_of(x), size = all & 0x7fffffffU;
    if (size > 0x7f800000U) return {0x7fff};
    const auto sign = static_cast<std::uint16_t>((all >> 16) & 0x8000U);
    return {static_cast<std::uint16_t>(sign | magnitude(size))};
#endif
  }
  GS_HD GS_INLINE explicit operator float() const {
#if defined(__CUDA_ARCH__)
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    const std::uint32_t sign = (bits & 0x8000U) << 16, size = bits & 0x7fffU;
    if (size >= 0x7c00U) return float_of(sign | 0x7f800000U | (size & 0x3ffU) << 13);
    if (size >= 0x400U) return float_of(sign | (0x38000000U + (size << 13)));
    return float_of(sign | bits_of(static_cast<float>(size) * 0x1p-24F));  // subnormal
#endif
  }

 private:
  static std::uint16_t magnitude(std::uint32_t size) {
    if (size >= 0x477ff000U) return 0x7c00U;  // 65520 and more round to infinity
    if (size >= 0x38800000U)                  // 2^-14: a normal number
      return static_cast<std::uint16_t>((round_off(size, 13) - 0x38000000U) >> 13);
    // Adding 1/2 leaves the multiple of 2^-24 in the lowest bits, rounded by the addition.
    return static_cast<std::uint16_t>(bits_of(float_of(size) + 0.5F) - bits_of(0.5F));
  }
};

GS_HD GS_INLINE float load(float x) { return x; }
template <class T> GS_HD GS_INLINE float load(T x) { return static_cast<float>(x); }

GS_HD GS_INLINE void store(float* to, float x) { *to = x; }
template <class T> GS_HD GS_INLINE void store(T* to, float x) { *to = T::from(x); }

// f.template operator()<T>() with the type of the values.
template <class F> void visit_type(DeviceType type, F&& f) {
  switch (type) {
    case DeviceType::BFloat16:
      return f.template operator()<BFloat16>();
    case DeviceType::Float16:
      return f.template operator()<Float16>();
    default:
      return f.template operator()<float>();
  }
}

}  // namespace gradstack::device

// Element-wise kernels: z[i] (+)= f(i, x[0][i], ...). A thread takes kPack values, which it loads
// and stores at once: one value of 16 bits at a time would leave half of the memory's speed unused.
#pragma once

#include "gradstack/device.hpp"
#include "kernel_tools.hpp"

namespace gradstack::device {

inline constexpr Index kPack = 4;

template <class T> struct alignas(kPack * sizeof(T)) Pack {
  T at[kPack];
  // Moves on to the next value; the first one goes, `last` comes. Registers have no index: a loop
  // that takes at[0] and moves on stays in them without being unrolled. Unrolled, kernels with
  // divisions, which are calls, spill registers.
  GS_HD GS_INLINE void next(T last) {
    for (Index i = 0; i + 1 < kPack; ++i) at[i] = at[i + 1];
    at[kPack - 1] = last;
  }
};

template <class T> bool holds_packs(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % alignof(Pack<T>) == 0;
}

// One thread of a pack. F computes in float32: float f(Index i, const float (&x)[kInputs]); i may
// go up to the end of a pack that n cuts.
template <class T, class Z, int kInputs, class F> struct Map {
  F f;
  Index n;
  const T* x[kInputs];
  Z* z;
  bool accumulate;
  bool aligned;  // all pointers hold packs

  GS_HD void operator()(Index k) const {
    const Index first = k * kPack;
    const bool whole = aligned && first + kPack <= n;
    Pack<T> in[kInputs] = {};
    Pack<Z> out = {};
    if (whole) {
      for (int j = 0; j < kInputs; ++j) in[j] = reinterpret_cast<const Pack<T>*>(x[j])[k];
      if (accumulate) out = reinterpret_cast<const Pack<Z>*>(z)[k];
    } else {
      for (Index l = 0; l < kPack; ++l) {
        if (first + l >= n) break;
        for (int j = 0; j < kInputs; ++j) in[j].at[l] = x[j][first + l];
        if (accumulate) out.at[l] = z[first + l];
      }
    }
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (Index l = 0; l < kPack; ++l) {
      float values[kInputs];
      for (int j = 0; j < kInputs; ++j) {
        values[j] = load(in[j].at[0]);
        in[j].next(in[j].at[0]);
      }
      Z value = out.at[0];
      put(&value, f(first + l, values), accumulate);
      out.next(value);
    }
    if (whole) {
      reinterpret_cast<Pack<Z>*>(z)[k] = out;
    } else {
      for (Index l = 0; l < kPack; ++l)
        if (first + l < n) z[first + l] = out.at[l];
    }
  }
};

struct Same {
  GS_HD float operator()(Index, const float (&x)[1]) const { return x[0]; }
};

template <class Op> struct Forward {
  Op op;
  GS_HD float operator()(Index, const float (&s)[1]) const { return op.h(s[0]); }
};

template <class T, class Op> struct BiasForward {
  Op op;
  Split at;
  const T* bias;  // null: none
  GS_HD float operator()(Index i, const float (&s)[1]) const {
    return op.h(s[0] + (bias ? load(bias[i - at.row(i) * at.cols]) : 0.0F));
  }
};

// One thread of a byte: h(s + bias) of eight columns in place, and where h' is 1.
template <class T, class Op> struct BiasForwardBits {
  Op op;
  Index cols;
  const T* bias;  // null: none
  T* s;
  std::uint8_t* bits;
  GS_HD void operator()(Index i) const {
    const Index bytes = bytes_of_bits(cols), row = Split{bytes}.row(i),
                first = 8 * (i - row * bytes);
    unsigned byte = 0;
    for (Index l = 0; l < 8; ++l) {
      const Index col = first + l;
      if (col >= cols) break;
      T* at = s + row * cols + col;
      const float x = load(*at) + (bias ? load(bias[col]) : 0.0F);
      if (op.d1(x) != 0.0F) byte |= 1U << l;
      store(at, op.h(x));
    }
    bits[i] = static_cast<std::uint8_t>(byte);
  }
};

// Of (s or z, dz).
template <class Op> struct Backward {
  Op op;
  bool from_z;
  GS_HD float operator()(Index, const float (&x)[2]) const {
    if constexpr (Op::has_d1_from_z) {
      if (from_z) return x[1] * op.d1_from_z(x[0]);
    }
    return x[1] * op.d1(x[0]);
  }
};

struct Binary {
  DeviceBinary kind;
  GS_HD float operator()(Index, const float (&x)[2]) const {
    switch (kind) {
      case DeviceBinary::Add:
        return x[0] + x[1];
      case DeviceBinary::Sub:
        return x[0] - x[1];
      case DeviceBinary::Mul:
        return x[0] * x[1];
      default:
        return x[0] / x[1];
    }
  }
};

// Of (a, b, dz).
struct BinaryBackward {
  DeviceBinary kind;
  bool first;
  GS_HD float operator()(Index, const float (&x)[3]) const {
    const float a = x[0], b = x[1], dz = x[2];
    switch (kind) {
      case DeviceBinary::Add:
        return dz;
      case DeviceBinary::Sub:
        return first ? dz : -dz;
      case DeviceBinary::Mul:
        return dz * (first ? b : a);
      default:
        return first ? dz / b : -(dz / b) * (a / b);
    }
  }
};

}  // namespace gradstack::device

// What the fused MLP (fused_mlp.hpp) is written in: warps, their registers, tensor cores and shared
// memory. Twice: for nvcc in PTX, where a thread holds the registers of its own lane; for the host
// in plain loops after PTX's tables of fragments, where a variable holds those of all lanes, warps
// take turns between barriers, and one core runs the text that a GPU runs.
#pragma once

#include <cstdint>
#include <cstring>

#include "gradstack/config.hpp"

#if defined(__CUDACC__)
#define GS_TILE __device__ __forceinline__
#define GS_UNROLL _Pragma("unroll")
#define GS_ROLLED _Pragma("unroll 1")
#else
#include <bit>
#include <functional>
#include <utility>
#define GS_TILE inline
#define GS_UNROLL
#define GS_ROLLED
#endif

namespace gradstack::device {

inline constexpr int kLanesOfWarp = 32;
inline constexpr int kWarps = 8;  // of a block
inline constexpr int kBlockThreads = kWarps * kLanesOfWarp;

#if defined(__CUDACC__)
inline constexpr int kHeldLanes = 1, kHeldWarps = 1;
#else
inline constexpr int kHeldLanes = kLanesOfWarp, kHeldWarps = kWarps;
#endif

// Registers of a warp. An index of `r` is what each_lane calls `held`; further ones must be
// constants once loops are unrolled, or they are no registers.
template <class T, int kN> struct Registers { T r[kHeldLanes][kN]; };

// What a warp keeps across a barrier.
template <class T> struct PerWarp {
  T held[kHeldWarps];
  GS_TILE T& operator[](int warp) { return held[kHeldWarps == 1 ? 0 : warp]; }
};

// f(lane, held) by all lanes.
template <class F> GS_TILE void each_lane(F&& f) {
#if defined(__CUDACC__)
  f(static_cast<int>(threadIdx.x) % kLanesOfWarp, 0);
#else
  for (int lane = 0; lane < kLanesOfWarp; ++lane) f(lane, lane);
#endif
}

// f(i, held) for i in 0..n-1, shared out among the lanes of a warp; kAtOnce of a lane's turns
// overlap.
template <int kAtOnce, class F> GS_TILE void share_lanes(int n, F&& f) {
#if defined(__CUDACC__)
#pragma unroll kAtOnce
  for (int i = static_cast<int>(threadIdx.x) % kLanesOfWarp; i < n; i += kLanesOfWarp) f(i, 0);
#else
  for (int i = 0; i < n; ++i) f(i, i % kLanesOfWarp);
#endif
}

// What lanes of a warp stored before is seen by its other lanes.
GS_TILE void sync_warp() {
#if defined(__CUDACC__)
  __syncwarp();
#endif
}

// Halves in shared memory; indices count halves. Pairs lie at even indices, eights at multiples
// of 8.
class SharedHalves {
 public:
  GS_TILE explicit SharedHalves(std::uint16_t* halves) : halves_(halves) {
#if defined(__CUDACC__)
    address_ = static_cast<std::uint32_t>(__cvta_generic_to_shared(halves));
#endif
  }
  GS_TILE SharedHalves operator+(int n) const { return SharedHalves(halves_ + n); }

  GS_TILE std::uint32_t pair(int i) const {
    std::uint32_t p = 0;
#if defined(__CUDACC__)
    p = *reinterpret_cast<const std::uint32_t*>(halves_ + i);
#else
    std::memcpy(&p, halves_ + i, sizeof p);
#endif
    return p;
  }
  GS_TILE void set_pair(int i, std::uint32_t p) const {
#if defined(__CUDACC__)
    *reinterpret_cast<std::uint32_t*>(halves_ + i) = p;
#else
    std::memcpy(halves_ + i, &p, sizeof p);
#endif
  }
  GS_TILE void set_eight(int i, const std::uint32_t (&p)[4]) const {
#if defined(__CUDACC__)
    *reinterpret_cast<uint4*>(halves_ + i) = make_uint4(p[0], p[1], p[2], p[3]);
#else
    std::memcpy(halves_ + i, p, sizeof p);
#endif
  }
  GS_TILE std::uint32_t address(int i) const {
#if defined(__CUDACC__)
    return address_ + 2 * static_cast<std::uint32_t>(i);
#else
    return static_cast<std::uint32_t>(i);
#endif
  }

 private:
  std::uint16_t* halves_;
#if defined(__CUDACC__)
  std::uint32_t address_;
#endif
};

// Four 8 x 8 matrices of halves (ldmatrix.x4): lane l says with at(l) where row l % 8 of matrix
// l / 8 begins. Lane l receives of each matrix the pair in row l / 4, columns 2 (l % 4) and the
// next; of the transposed matrix if asked.
template <bool kTransposed, class At>
GS_TILE void load_matrices(Registers<std::uint32_t, 4>& to, SharedHalves from, const At& at) {
#if defined(__CUDACC__)
  const std::uint32_t address = from.address(at(static_cast<int>(threadIdx.x) % kLanesOfWarp));
  std::uint32_t(&r)[4] = to.r[0];
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
#else
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t value[8][8];
    for (int row = 0; row < 8; ++row)
      for (int pair = 0; pair < 4; ++pair) {
        const std::uint32_t p = from.pair(at(8 * matrix + row) + 2 * pair);
        std::memcpy(&value[row][2 * pair], &p, sizeof p);
      }
    for (int lane = 0; lane < kLanesOfWarp; ++lane) {
      const int row = lane / 4, col = 2 * (lane % 4);
      const std::uint32_t low = kTransposed ? value[col][row] : value[row][col];
      const std::uint32_t high = kTransposed ? value[col + 1][row] : value[row][col + 1];
      to.r[lane][matrix] = low | high << 16;
    }
  }
#endif
}

// The formats of halves. A pair is a word, its first value in the lower half.
struct Bf16 {
  static constexpr std::uint32_t kOnes = 0x3f803f80;
  static constexpr bool kNarrowRange = false;
#if defined(__CUDACC__)
  static GS_TILE std::uint32_t pack(float low, float high) {
    std::uint32_t p;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p) : "f"(high), "f"(low));
    return p;
  }
  static GS_TILE float low(std::uint32_t p) { return __uint_as_float(p << 16); }
  static GS_TILE float high(std::uint32_t p) { return __uint_as_float(p & 0xffff0000U); }
  static GS_TILE void multiply(float* c, const std::uint32_t (&a)[4], std::uint32_t b0,
                               std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  static std::uint32_t bits(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    if ((u & 0x7fffffffU) > 0x7f800000U) return 0x7fff;  // NaN
    return (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
  }
  static std::uint32_t pack(float low, float high) { return bits(low) | bits(high) << 16; }
  static float low(std::uint32_t p) { return std::bit_cast<float>(p << 16); }
  static float high(std::uint32_t p) { return std::bit_cast<float>(p & 0xffff0000U); }
#endif
};

struct Fp16 {
  static constexpr std::uint32_t kOnes = 0x3c003c00;
  static constexpr bool kNarrowRange = true;  // gradients of large batches would vanish
#if defined(__CUDACC__)
  static GS_TILE std::uint32_t pack(float low, float high) {
    std::uint32_t p;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(p) : "f"(high), "f"(low));
    return p;
  }
  static GS_TILE float low(std::uint32_t p) {
    float x;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}" : "=f"(x) : "r"(p));
    return x;
  }
  static GS_TILE float high(std::uint32_t p) {
    float x;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}" : "=f"(x) : "r"(p));
    return x;
  }
  static GS_TILE void multiply(float* c, const std::uint32_t (&a)[4], std::uint32_t b0,
                               std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  static std::uint32_t bits(float x) {
    auto u = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = (u >> 16) & 0x8000U;
    u &= 0x7fffffffU;
    if (u > 0x7f800000U) return 0x7fff;           // NaN
    if (u >= 0x477ff000U) return sign | 0x7c00U;  // 65520 and more: infinity
    // Below the normal numbers the unit is 2^-24, as a float's is from 0.5 on.
    if (u < 0x38800000U)
      return sign | (std::bit_cast<std::uint32_t>(std::bit_cast<float>(u) + 0.5F) - 0x3f000000U);
    return sign | ((u + 0xfffU + ((u >> 13) & 1U) - 0x38000000U) >> 13);
  }
  static float value(std::uint32_t h) {
    const std::uint32_t sign = (h & 0x8000U) << 16, magnitude = h & 0x7fffU;
    std::uint32_t u = (magnitude << 13) + 0x38000000U;
    if (magnitude >= 0x7c00U) u += 0x38000000U;
    if (magnitude < 0x400U)
      u = std::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24F);
    return std::bit_cast<float>(sign | u);
  }
  static std::uint32_t pack(float low, float high) { return bits(low) | bits(high) << 16; }
  static float low(std::uint32_t p) { return value(p & 0xffffU); }
  static float high(std::uint32_t p) { return value(p >> 16); }
#endif
};

// C (16, 8) += A (16, 16) B (16, 8), the tile `tile` of c and the pair of matrices b[first]. With
// g = lane / 4 and t = lane % 4 a lane holds
//   A: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 and the next;
//   B: rows 2t, 2t + 8 and the next at column g;
//   C: rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1.
template <class Half, int kN>
GS_TILE void multiply_add(Registers<float, kN>& c, int tile, const Registers<std::uint32_t, 4>& a,
                          const Registers<std::uint32_t, 4>& b, int first) {
#if defined(__CUDACC__)
  Half::multiply(c.r[0] + 4 * tile, a.r[0], b.r[0][first], b.r[0][first + 1]);
#else
  float left[16][16], right[16][8];
  for (int lane = 0; lane < kLanesOfWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      float* at = &left[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
      at[0] = Half::low(a.r[lane][i]);
      at[1] = Half::high(a.r[lane][i]);
    }
    for (int i = 0; i < 2; ++i) {
      right[2 * t + 8 * i][g] = Half::low(b.r[lane][first + i]);
      right[2 * t + 8 * i + 1][g] = Half::high(b.r[lane][first + i]);
    }
  }
  for (int lane = 0; lane < kLanesOfWarp; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), col = 2 * (lane % 4) + i % 2;
      float sum = c.r[lane][4 * tile + i];
      for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][col];
      c.r[lane][4 * tile + i] = sum;
    }
#endif
}

// The largest of the lanes' values.
GS_TILE std::uint32_t warp_max(const Registers<std::uint32_t, 1>& x) {
#if defined(__CUDACC__)
  return __reduce_max_sync(0xffffffffU, x.r[0][0]);
#else
  std::uint32_t most = 0;
  for (const auto& lane : x.r) most = lane[0] > most ? lane[0] : most;
  return most;
#endif
}

GS_TILE std::uint32_t as_bits(float x) {
#if defined(__CUDACC__)
  return __float_as_uint(x);
#else
  return std::bit_cast<std::uint32_t>(x);
#endif
}
GS_TILE float as_float(std::uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}

// Memory that no thread of the kernel writes: four words, and a float.
GS_TILE void load_words(std::uint32_t (&to)[4], const void* from) {
#if defined(__CUDACC__)
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#else
  std::memcpy(to, from, sizeof to);
#endif
}
GS_TILE float load_float(const float* from) {
#if defined(__CUDACC__)
  return __ldg(from);
#else
  return *from;
#endif
}
// A pair of halves or floats, and four floats, at addresses that are multiples of their size.
GS_TILE std::uint32_t load_pair(const std::uint16_t* from) {
#if defined(__CUDACC__)
  return __ldg(reinterpret_cast<const std::uint32_t*>(from));
#else
  std::uint32_t p = 0;
  std::memcpy(&p, from, sizeof p);
  return p;
#endif
}
GS_TILE void store_pair(std::uint16_t* to, std::uint32_t p) {
#if defined(__CUDACC__)
  *reinterpret_cast<std::uint32_t*>(to) = p;
#else
  std::memcpy(to, &p, sizeof p);
#endif
}
GS_TILE void store_two(float* to, float a, float b) {
#if defined(__CUDACC__)
  *reinterpret_cast<float2*>(to) = make_float2(a, b);
#else
  to[0] = a, to[1] = b;
#endif
}
GS_TILE void load_two(float* to, const float* from) {
#if defined(__CUDACC__)
  const float2 v = __ldg(reinterpret_cast<const float2*>(from));
  to[0] = v.x, to[1] = v.y;
#else
  to[0] = from[0], to[1] = from[1];
#endif
}
GS_TILE void load_four(float* to, const float* from) {
#if defined(__CUDACC__)
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#else
  for (int i = 0; i < 4; ++i) to[i] = from[i];
#endif
}
GS_TILE void store_four(float* to, const float* from) {
#if defined(__CUDACC__)
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
#else
  for (int i = 0; i < 4; ++i) to[i] = from[i];
#endif
}

// A block of kBlockThreads threads with its shared memory.
class Block {
 public:
#if defined(__CUDACC__)
  GS_TILE explicit Block(std::uint16_t* shared) : shared_(shared) {}
  GS_TILE int index() const { return static_cast<int>(blockIdx.x); }
  // f(warp) by all warps.
  template <class F> GS_TILE void each_warp(F&& f) const {
    // The same for all lanes, and known to be.
    f(__shfl_sync(0xffffffffU, static_cast<int>(threadIdx.x) / kLanesOfWarp, 0));
  }
  // f(i) for i in 0..n-1, shared out among all threads.
  template <class F> GS_TILE void share(int n, F&& f) const {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kBlockThreads) f(i);
  }
  GS_TILE void barrier() const { __syncthreads(); }
#else
  // All warps in turns, between barriers; or one, in a thread of its own, and how it waits for the
  // others.
  Block(int index, std::uint16_t* shared) : shared_(shared), index_(index) {}
  Block(int index, std::uint16_t* shared, int warp, std::function<void()> wait)
      : shared_(shared), index_(index), first_(warp), last_(warp), wait_(std::move(wait)) {}
  int index() const { return index_; }
  // Backwards: what depends on the order of the warps shows.
  template <class F> void each_warp(F&& f) const {
    for (int warp = last_; warp >= first_; --warp) f(warp);
  }
  template <class F> void share(int n, F&& f) const {
    for (int i = n; i-- > 0;)
      if (i % kWarps >= first_ && i % kWarps <= last_) f(i);
  }
  void barrier() const {
    if (wait_) wait_();
  }
#endif
  GS_TILE SharedHalves shared() const { return SharedHalves(shared_); }

 private:
  std::uint16_t* shared_;
#if !defined(__CUDACC__)
  int index_, first_ = 0, last_ = kWarps - 1;
  std::function<void()> wait_;
#endif
};

}  // namespace gradstack::device

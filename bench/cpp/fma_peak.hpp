// The arithmetic peak of one core, measured: independent multiply-adds in registers, with the
// instructions that the kernels of an instruction set have. Multiply and add are separate for v2.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace gradstack_bench {

// Enough independent chains to cover the latency of two multiply-add units.
inline constexpr int kChains = 12;

// The chains are variables of their own, kept in registers and alive by the empty asm.
#define GS_CHAIN(i, constraint, step) \
  c##i = step(c##i, x, y);            \
  asm volatile("" : "+" constraint(c##i));
#define GS_FMA_LOOP(name, attributes, vector, constraint, broadcast, step)                        \
  attributes inline void name(int rounds) {                                                       \
    const vector x = broadcast(0.999f), y = broadcast(0.001f);                                    \
    vector c0 = x, c1 = y, c2 = x, c3 = y, c4 = x, c5 = y, c6 = x, c7 = y, c8 = x, c9 = y,        \
           c10 = x, c11 = y;                                                                      \
    for (int n = 0; n < rounds; ++n) {                                                            \
      GS_CHAIN(0, constraint, step)                                                               \
      GS_CHAIN(1, constraint, step)                                                               \
      GS_CHAIN(2, constraint, step)                                                               \
      GS_CHAIN(3, constraint, step)                                                               \
      GS_CHAIN(4, constraint, step)                                                               \
      GS_CHAIN(5, constraint, step)                                                               \
      GS_CHAIN(6, constraint, step)                                                               \
      GS_CHAIN(7, constraint, step)                                                               \
      GS_CHAIN(8, constraint, step)                                                               \
      GS_CHAIN(9, constraint, step) GS_CHAIN(10, constraint, step) GS_CHAIN(11, constraint, step) \
    }                                                                                             \
  }

#if defined(__x86_64__)
#define GS_TARGET(isa) __attribute__((target(isa)))
#define GS_MUL_ADD_PS(c, x, y) _mm_add_ps(_mm_mul_ps(c, x), y)
#define GS_MUL_ADD_PD(c, x, y) _mm_add_pd(_mm_mul_pd(c, x), y)
GS_FMA_LOOP(sse_f32, , __m128, "x", _mm_set1_ps, GS_MUL_ADD_PS)
GS_FMA_LOOP(sse_f64, , __m128d, "x", _mm_set1_pd, GS_MUL_ADD_PD)
GS_FMA_LOOP(avx2_f32, GS_TARGET("avx2,fma"), __m256, "x", _mm256_set1_ps, _mm256_fmadd_ps)
GS_FMA_LOOP(avx2_f64, GS_TARGET("avx2,fma"), __m256d, "x", _mm256_set1_pd, _mm256_fmadd_pd)
GS_FMA_LOOP(avx512_f32, GS_TARGET("avx512f"), __m512, "v", _mm512_set1_ps, _mm512_fmadd_ps)
GS_FMA_LOOP(avx512_f64, GS_TARGET("avx512f"), __m512d, "v", _mm512_set1_pd, _mm512_fmadd_pd)
#elif defined(__aarch64__)
#define GS_FMA_NEON_F32(c, x, y) vfmaq_f32(y, c, x)
#define GS_FMA_NEON_F64(c, x, y) vfmaq_f64(y, c, x)
GS_FMA_LOOP(neon_f32, , float32x4_t, "w", vdupq_n_f32, GS_FMA_NEON_F32)
GS_FMA_LOOP(neon_f64, , float64x2_t, "w", vdupq_n_f64, GS_FMA_NEON_F64)
#endif

// Flops per second of the best of many short runs: clocks of shared machines come and go.
inline double best_rate(void (*loop)(int), int lanes) {
  constexpr int kRounds = 20000;
  double best = 0;
  for (int trial = 0; trial < 100; ++trial) {
    const auto start = std::chrono::steady_clock::now();
    loop(kRounds);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kChains * lanes * kRounds / elapsed.count());
  }
  return best;
}

// Peak for the kernels called `isa` (v2, v3, v4, neon) in flops per second; 0 for names without
// one.
inline double fma_peak(const std::string& isa, bool is_float) {
#if defined(__x86_64__)
  if (isa == "v2") return is_float ? best_rate(sse_f32, 4) : best_rate(sse_f64, 2);
  if (isa == "v3") return is_float ? best_rate(avx2_f32, 8) : best_rate(avx2_f64, 4);
  if (isa == "v4") return is_float ? best_rate(avx512_f32, 16) : best_rate(avx512_f64, 8);
#elif defined(__aarch64__)
  if (isa == "neon") return is_float ? best_rate(neon_f32, 4) : best_rate(neon_f64, 2);
#endif
  return 0;
}

}  // namespace gradstack_bench

// What the machine can do: fused multiply-adds per second over all threads (argv[1] of them), in
// GFLOP/s, and dependent integer additions per nanosecond on one, which is the clock in GHz.
// Compiled by bench/machine.py with -O3 -march=native -fopenmp.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__AVX512F__)
enum { kBytes = 64, kChains = 24 };
#elif defined(__AVX__)
enum { kBytes = 32, kChains = 12 };
#else
enum { kBytes = 16, kChains = 12 };
#endif
#if defined(__aarch64__)
#define VECTOR_REGISTER "+w"
#define ADD_ONE "add %0, %0, #1"
#else
#define VECTOR_REGISTER "+x"
#define ADD_ONE "add $1, %0"
#endif
enum { kLanes = kBytes / sizeof(float), kRounds = 200000 };
typedef float Vec __attribute__((vector_size(kBytes)));

static double burst(void) {
  Vec acc[kChains];
  const Vec a = {1.0f}, b = {0.5f};
#pragma GCC unroll 32  // every index a constant, so that the array lives in registers
  for (int i = 0; i < kChains; ++i) acc[i] = (Vec){(float)i};
  const double start = omp_get_wtime();
  for (int r = 0; r < kRounds; ++r) {
#pragma GCC unroll 32
    for (int i = 0; i < kChains; ++i) {
      acc[i] = acc[i] * a + b;
      __asm__ volatile("" : VECTOR_REGISTER(acc[i]));  // keeps the product from being folded
    }
  }
  const double seconds = omp_get_wtime() - start;
  return 2.0 * kLanes * kChains * kRounds / seconds * 1e-9;
}

static double clock_rate(void) {
  enum { kAdds = 1000000 };
  double best = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    long x = 0;
    const double start = omp_get_wtime();
    for (int i = 0; i < kAdds; ++i) {
      __asm__ volatile(ADD_ONE : "+r"(x));
    }
    const double rate = kAdds / (omp_get_wtime() - start) * 1e-9;
    if (rate > best) best = rate;
  }
  return best;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 1;
  double best = 0;
  for (int repeat = 0; repeat < 30; ++repeat) {
    double sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
    {
#pragma omp barrier
      sum += burst();
    }
    if (sum > best) best = sum;
  }
  printf("%.2f %.3f\n", best, clock_rate());
  return 0;
}

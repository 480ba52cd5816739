// Random numbers that are the same on every backend, machine and thread count.
//
// Two generators, both plain integer arithmetic:
//   * a counter-based hash: 32 uniform bits as a pure function of (sample key, feature index), used
//     by dropout so that a mask depends on what an element is, never on who computes it;
//   * a splittable sequential generator (xoshiro256** of Blackman and Vigna, seeded by SplitMix64)
//     for host-side draws.
// Shuffles draw from a SplitMix64 sequence whose values are had in any order.
#pragma once

#include "gradstack/config.hpp"
#include "gradstack/math.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// Bijective 64-bit finaliser (SplitMix64, Steele, Lea and Flood 2014): every input bit flips every
// output bit with probability close to 1/2.
GS_HD GS_INLINE std::uint64_t mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// Key of one sample in one use of randomness. `stream` tells uses apart (a layer's number), `step`
// counts training steps, `sample` is the sample's position in the batch or data set.
GS_HD GS_INLINE std::uint64_t sample_key(std::uint64_t seed, std::uint64_t stream,
                                         std::uint64_t step, std::uint64_t sample) {
  return mix(mix(mix(mix(seed) ^ stream) ^ step) ^ sample);
}

// Multipliers of the 32-bit hash, shared with vectorised copies of `uniform_bits`.
inline constexpr std::uint32_t kHashIndex = 0x9e3779b9U;
inline constexpr std::uint32_t kHashFirst = 0x7feb352dU;
inline constexpr std::uint32_t kHashSecond = 0x846ca68bU;

// 32 uniform bits for element `index` under `key`: a bijection of the index whose two halves of the
// key enter at different rounds. Only 32-bit operations, so that eight or sixteen fit a vector.
// U is uint32_t or a SIMD vector of uint32_t; `low` and `high` are the halves of the key.
template <class U> GS_HD GS_INLINE U uniform_bits(U low, U high, U index) {
  U h = index * kHashIndex + low;
  h = (h ^ (h >> 16)) * kHashFirst + high;
  h = (h ^ (h >> 15)) * kHashSecond;
  h = (h ^ (h >> 16)) * kHashFirst;
  return h ^ (h >> 15);
}

GS_HD GS_INLINE std::uint32_t uniform_bits(std::uint64_t key, std::uint32_t index) {
  return uniform_bits<std::uint32_t>(static_cast<std::uint32_t>(key),
                                     static_cast<std::uint32_t>(key >> 32), index);
}

// Probability p in [0, 1) as the threshold t such that `uniform_bits < t` has probability p.
GS_HD GS_INLINE std::uint32_t probability_threshold(double p) {
  const double scaled = p * 4294967296.0;
  if (!(scaled > 0.0)) return 0;
  return scaled >= 4294967295.0 ? 0xffffffffU : static_cast<std::uint32_t>(scaled);
}

// The x > 0 with P(X > x) = q of a standard normal X, 0 < q <= 1/2, to about six digits: enough for
// random draws (Giles 2010, "Approximating the erfinv function"). V is a scalar or a vector.
template <class V> GS_HD GS_INLINE V normal_tail(V q) {
  using namespace math;
  const V w = -log(V(4) * q * (V(1) - q));
  const V a = w - V(2.5), b = sqrt(w) - V(3);
  V near = V(2.81022636e-08), far = V(-0.000200214257);
  near = fma(near, a, V(3.43273939e-07)), far = fma(far, b, V(0.000100950558));
  near = fma(near, a, V(-3.5233877e-06)), far = fma(far, b, V(0.00134934322));
  near = fma(near, a, V(-4.39150654e-06)), far = fma(far, b, V(-0.00367342844));
  near = fma(near, a, V(0.00021858087)), far = fma(far, b, V(0.00573950773));
  near = fma(near, a, V(-0.00125372503)), far = fma(far, b, V(-0.0076224613));
  near = fma(near, a, V(-0.00417768164)), far = fma(far, b, V(0.00943887047));
  near = fma(near, a, V(0.246640727)), far = fma(far, b, V(1.00167406));
  near = fma(near, a, V(1.50140941)), far = fma(far, b, V(2.83297682));
  return select(w < V(5), near, far) * (V(1) - V(2) * q) * V(1.4142135623730951);
}

// Standard normal value number `index` under `key`, from 32 random bits read as a quantile.
template <class T> GS_HD GS_INLINE T normal(std::uint64_t key, std::uint32_t index) {
  const std::uint32_t bits = uniform_bits(key, index);
  const bool lower = bits < 0x80000000U;
  const auto rank = static_cast<std::int32_t>(lower ? bits : ~bits);
  const T x = normal_tail((static_cast<T>(rank) + T(0.5)) * T(0x1p-32));
  return lower ? -x : x;
}

// The place, 0..i, that element i of a permutation is put in when it comes; whatever lies there
// moves to place i. A pure function, so that a GPU draws for all elements at once. Uniform but for
// i/2^64.
GS_HD GS_INLINE Index permutation_place(std::uint64_t key, Index i) {
  __extension__ using Wide = unsigned __int128;
  const auto counter = static_cast<std::uint64_t>(i);
  const std::uint64_t bits = mix(key + counter * 0x9e3779b97f4a7c15ULL);
  return static_cast<Index>((static_cast<Wide>(bits) * (counter + 1)) >> 64);
}

// xoshiro256**: sequential generator with 256 bits of state and a period of 2^256 - 1.
class Rng {
 public:
  explicit Rng(std::uint64_t seed, std::uint64_t stream = 0) {
    std::uint64_t z = mix(seed) ^ mix(~stream);
    for (std::uint64_t& s : state_) {
      s = mix(z);
      z += 0x9e3779b97f4a7c15ULL;
    }
  }

  std::uint64_t next() {
    const std::uint64_t result = rotate_left(state_[1] * 5, 7) * 9;
    const std::uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotate_left(state_[3], 45);
    return result;
  }

  // Uniform in [0, bound), without modulo bias; bound > 0.
  std::uint64_t below(std::uint64_t bound) {
    if (bound <= 0xffffffffULL) {
      // Lemire's multiply-shift: reject the few products whose low half falls short.
      const auto b = static_cast<std::uint32_t>(bound);
      std::uint64_t product = (next() >> 32) * b;
      if (static_cast<std::uint32_t>(product) < b) {
        const std::uint32_t reject = (0U - b) % b;
        while (static_cast<std::uint32_t>(product) < reject) product = (next() >> 32) * b;
      }
      return product >> 32;
    }
    const std::uint64_t reject = (0ULL - bound) % bound;
    std::uint64_t x = next();
    while (x < reject) x = next();
    return x % bound;
  }

  // Uniform in [0, 1) with 53 random bits.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  // A generator whose stream is independent of this one's later draws.
  Rng split() {
    const std::uint64_t seed = next();
    return Rng(seed, next());
  }

 private:
  static std::uint64_t rotate_left(std::uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

  std::uint64_t state_[4];
};

}  // namespace GRADSTACK_UNIT

// Writes a uniformly random permutation of 0..n-1 (Fisher-Yates), a pure function of its arguments.
void permutation(std::uint64_t seed, std::uint64_t epoch, Index n, Index* out);

inline std::uint64_t permutation_key(std::uint64_t seed, std::uint64_t epoch) {
  return mix(mix(seed) ^ epoch);
}

}  // namespace gradstack

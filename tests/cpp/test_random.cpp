// The random generators: determinism, range, independence, uniformity.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>
#include <vector>

#include "gradstack/random.hpp"

using namespace gradstack;

TEST_CASE("mix matches the published SplitMix64 sequence") {
  // The first outputs of SplitMix64 seeded with 1234567, as in the generator's reference output.
  const std::uint64_t expected[] = {6457827717110365317ULL, 3203168211198807973ULL,
                                    9817491932198370423ULL, 4593380528125082431ULL,
                                    16408922859458223821ULL};
  std::uint64_t state = 1234567;
  for (const std::uint64_t value : expected) {
    CHECK(mix(state) == value);
    state += 0x9e3779b97f4a7c15ULL;
  }
}

TEST_CASE("uniform_bits: every key and index bit flips half of the output bits") {
  Rng rng(1);
  for (int bit = 0; bit < 96; ++bit) {
    double flipped = 0;
    constexpr int kTrials = 4000;
    for (int trial = 0; trial < kTrials; ++trial) {
      const std::uint64_t key = rng.next();
      const auto index = static_cast<std::uint32_t>(rng.next());
      const std::uint64_t other_key = bit < 64 ? key ^ (1ULL << bit) : key;
      const std::uint32_t other_index = bit < 64 ? index : index ^ (1U << (bit - 64));
      flipped += std::popcount(uniform_bits(key, index) ^ uniform_bits(other_key, other_index));
    }
    CAPTURE(bit);
    CHECK(flipped / kTrials == doctest::Approx(16.0).epsilon(0.03));
  }
}

TEST_CASE("uniform_bits: neighbouring features and samples are uncorrelated and uniform") {
  // The masks a network sees: keys from sample_key, small indices.
  constexpr int kSamples = 2000, kFeatures = 64;
  std::vector<double> u(kSamples * kFeatures);
  int histogram[64] = {};
  for (int i = 0; i < kSamples; ++i) {
    const std::uint64_t key = sample_key(0, 2, 7, static_cast<std::uint64_t>(i));
    for (int j = 0; j < kFeatures; ++j) {
      const std::uint32_t bits = uniform_bits(key, static_cast<std::uint32_t>(j));
      ++histogram[bits >> 26];
      u[static_cast<std::size_t>(i * kFeatures + j)] = bits / 4294967296.0 - 0.5;
    }
  }
  const double n = kSamples * kFeatures, expected = n / 64;
  double chi2 = 0;
  for (const int count : histogram) chi2 += (count - expected) * (count - expected) / expected;
  CHECK(chi2 < 63 + 5 * std::sqrt(2.0 * 63));

  for (const std::size_t lag : {1, 2, 3, kFeatures, 2 * kFeatures, kFeatures + 1}) {
    double sum = 0;
    for (std::size_t i = 0; i + lag < u.size(); ++i) sum += u[i] * u[i + lag];
    CAPTURE(lag);
    CHECK(std::abs(12 * sum / n) < 5 / std::sqrt(n));
  }
}

TEST_CASE("sample_key: no two uses share a key") {
  std::set<std::uint64_t> keys;
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    for (std::uint64_t stream = 0; stream < 6; ++stream) {
      for (std::uint64_t step = 0; step < 6; ++step) {
        for (std::uint64_t sample = 0; sample < 6; ++sample) {
          keys.insert(sample_key(seed, stream, step, sample));
        }
      }
    }
  }
  CHECK(keys.size() == 6 * 6 * 6 * 6);
}

TEST_CASE("Rng: unbiased bounded draws, independent streams") {
  Rng rng(42);
  int counts[7] = {};
  constexpr int kDraws = 70000;
  for (int i = 0; i < kDraws; ++i) ++counts[rng.below(7)];
  for (const int count : counts) CHECK(std::abs(count - 10000) < 5 * std::sqrt(10000.0));

  // A bound just above a power of two rejects almost half of the raw draws.
  const std::uint64_t wide = (1ULL << 63) + 1;
  double high = 0;
  for (int i = 0; i < kDraws; ++i) {
    const std::uint64_t x = rng.below(wide);
    CHECK(x < wide);
    high += x >= wide / 2;
  }
  CHECK(std::abs(high / kDraws - 0.5) < 5 * 0.5 / std::sqrt(kDraws));
  for (int i = 0; i < 100; ++i) CHECK(rng.below(1) == 0);

  Rng a(1, 0), b(1, 1), c(2, 0), again(1, 0);
  const std::uint64_t first = a.next();
  CHECK(first == again.next());
  CHECK(first != b.next());
  CHECK(first != c.next());
  Rng child = a.split();
  CHECK(child.next() != a.next());

  double mean = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = rng.uniform();
    CHECK(x >= 0.0);
    CHECK(x < 1.0);
    mean += x / kDraws;
  }
  CHECK(std::abs(mean - 0.5) < 5 * std::sqrt(1.0 / 12 / kDraws));
}

TEST_CASE("permutation: a permutation, reproducible, uniform") {
  for (const Index n : {0, 1, 2, 3, 100, 1000}) {
    std::vector<Index> p(static_cast<std::size_t>(n)), q(p), r(p);
    permutation(5, 3, n, p.data());
    permutation(5, 3, n, q.data());
    permutation(5, 4, n, r.data());
    CHECK(p == q);
    if (n >= 100) CHECK(p != r);
    std::sort(p.begin(), p.end());
    for (Index i = 0; i < n; ++i) CHECK(p[static_cast<std::size_t>(i)] == i);
  }

  // All 24 orders of four elements are equally likely.
  int counts[256] = {};
  constexpr int kTrials = 24000;
  for (int trial = 0; trial < kTrials; ++trial) {
    Index p[4];
    permutation(9, static_cast<std::uint64_t>(trial), 4, p);
    ++counts[p[0] * 64 + p[1] * 16 + p[2] * 4 + p[3]];
  }
  double chi2 = 0;
  int orders = 0;
  for (const int count : counts) {
    if (count == 0) continue;
    ++orders;
    chi2 += (count - 1000.0) * (count - 1000.0) / 1000.0;
  }
  CHECK(orders == 24);
  CHECK(chi2 < 23 + 5 * std::sqrt(2.0 * 23));
}

TEST_CASE(
    "permutation: every element comes to every place equally often, and epochs do not agree") {
  constexpr Index kElements = 13;
  constexpr int kTrials = 26000;
  int counts[kElements][kElements] = {}, same = 0;
  Index p[kElements], last[kElements] = {};
  for (int trial = 0; trial < kTrials; ++trial) {
    permutation(3, static_cast<std::uint64_t>(trial), kElements, p);
    for (Index i = 0; i < kElements; ++i) {
      ++counts[i][p[i]];
      same += p[i] == last[i];
      last[i] = p[i];
    }
  }
  double chi2 = 0;
  const double mean = double{kTrials} / kElements;
  for (const auto& place : counts)
    for (const int count : place) chi2 += (count - mean) * (count - mean) / mean;
  constexpr double kFree = (kElements - 1) * (kElements - 1);
  CHECK(chi2 < kFree + 5 * std::sqrt(2.0 * kFree));
  // One place in 13 by chance, so one per pair of epochs, with a variance of one.
  CHECK(std::abs(same - kTrials) < 5 * std::sqrt(double{kTrials}));
}

TEST_CASE("permutation: fixed values, so that shuffles survive releases and platforms") {
  Index p[8];
  permutation(0, 0, 8, p);
  const std::vector<Index> got(p, p + 8);
  CHECK(got == std::vector<Index>{2, 7, 0, 4, 3, 1, 6, 5});
  CHECK(uniform_bits(sample_key(1, 2, 3, 4), 5U) == 1572297863U);
}

TEST_CASE("probability_threshold") {
  CHECK(probability_threshold(0.0) == 0U);
  CHECK(probability_threshold(0.5) == 0x80000000U);
  CHECK(probability_threshold(1.0) == 0xffffffffU);
  CHECK(probability_threshold(-1.0) == 0U);
}

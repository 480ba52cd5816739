#include "support/random.hpp"

#include <random>

namespace test {

std::vector<double> uniform(std::size_t n, unsigned seed, double lo, double hi) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> distribution(lo, hi);
  std::vector<double> values(n);
  for (double& v : values) v = distribution(random);
  return values;
}

}  // namespace test

#include "gradstack/random.hpp"

namespace gradstack {

void permutation(std::uint64_t seed, std::uint64_t epoch, Index n, Index* out) {
  Rng rng(seed, epoch);
  // Inside-out form: element i goes to a random place j <= i, whose occupant moves to i.
  for (Index i = 0; i < n; ++i) {
    const auto j = static_cast<Index>(rng.below(static_cast<std::uint64_t>(i) + 1));
    out[i] = i;
    out[i] = out[j];
    out[j] = i;
  }
}

}  // namespace gradstack

#include "gradstack/random.hpp"

namespace gradstack {

void permutation(std::uint64_t seed, std::uint64_t epoch, Index n, Index* out) {
  const std::uint64_t key = permutation_key(seed, epoch);
  for (Index i = 0; i < n; ++i) {
    const Index j = permutation_place(key, i);
    out[i] = i;
    out[i] = out[j];
    out[j] = i;
  }
}

}  // namespace gradstack

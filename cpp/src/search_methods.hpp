// The methods behind make_search.
#pragma once

#include "gradstack/search.hpp"

namespace gradstack {

// Evolution strategy with mirrored samples.
template <class T>
std::unique_ptr<Search<T>> make_evolution(const Kernels<T>& kernels, SearchOptions<T> options);
// Simultaneous perturbation stochastic approximation.
template <class T>
std::unique_ptr<Search<T>> make_spsa(const Kernels<T>& kernels, SearchOptions<T> options);
// Local random search.
template <class T>
std::unique_ptr<Search<T>> make_random_search(const Kernels<T>& kernels, SearchOptions<T> options);

}  // namespace gradstack

// gradstack::permutation, for all elements at once.
//
// Fisher-Yates looks sequential, but its draws are not: element i is put in place permutation_place
// (i) when it comes, and what lies there moves to place i, a new one. So a place p holds the last
// element that was put there; if there was none, it still holds what moved there when p came, which
// is what the place of p's draw held before p. All elements put in a place are its list; lists have
// ln(n / p) entries on average, and a search passes through few of them.
#pragma once

#include "gradstack/device.hpp"
#include "gradstack/random.hpp"

namespace gradstack::device {

// Lists hold i + 1: zeroed memory is empty lists. Their order is chance, and nothing depends on it.
struct PermutationLists {
  DevicePermutation p;
  GS_HD void operator()(Index i) const {
    p.next[i] = exchange(p.first + permutation_place(p.key, i), i + 1);
  }

 private:
  GS_HD static Index exchange(Index* at, Index value) {
#ifdef __CUDA_ARCH__
    return static_cast<Index>(atomicExch(reinterpret_cast<unsigned long long*>(at),
                                         static_cast<unsigned long long>(value)));
#else
    const Index before = *at;
    *at = value;
    return before;
#endif
  }
};

struct PermutationOrder {
  DevicePermutation p;
  GS_HD void operator()(Index i) const {
    Index place = i, before = p.n, found = -1;
    while (true) {
      for (Index k = p.first[place]; k > 0; k = p.next[k - 1])
        if (k - 1 < before && k - 1 > found) found = k - 1;
      if (found >= 0) break;
      before = place;
      place = permutation_place(p.key, place);
    }
    p.order[i] = found;
  }
};

}  // namespace gradstack::device

// Which stages of a graph are made as one: the same rule in the plans of all devices.
#pragma once

#include <vector>

#include "gradstack/graph.hpp"

namespace gradstack {

struct Fusion {
  // A Linear consumed by one pointwise block alone is fused with it; `apart` is a stage that stays
  // by itself, -1: none. Without `fuse` all do.
  Fusion(const Graph& graph, bool fuse, int apart = -1);
  // The Linear fused with the pointwise block that makes the only input of `stage`, if nobody else
  // reads that: what `stage` pulls back may be multiplied with h' on the way. -1: there is none.
  int producer(const Graph& graph, int stage) const;

  std::vector<int> base;         // per stage: itself, or the stage it is a view of
  std::vector<int> uses;         // per base: consumers, an output counting as one
  std::vector<int> pointwise;    // per Linear: the pointwise stage fused into it, or -1
  std::vector<char> fused_away;  // per stage: a pointwise block that runs as part of a Linear
};

}  // namespace gradstack

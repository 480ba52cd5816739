// How much of a batch goes through at once.
#pragma once

#include <algorithm>

#include "gradstack/device.hpp"
#include "gradstack/graph.hpp"

namespace gradstack {

inline Index features(const Graph& graph) {
  Index sum = 0;
  for (const Stage& stage : graph.stages()) sum += size_of(stage.shape);
  return sum;
}

// Rows of so many values each that a part may have, at least one.
inline Index rows_that_fit(const DeviceQueue& queue, Index values) {
  const auto most = static_cast<Index>(queue.part_bytes / sizeof(float));
  return std::max(Index{1}, most / std::max(values, Index{1}));
}

}  // namespace gradstack

// Which units are connected: the edges (i, j) of a sparse linear block, s[i] = sum w[i, j] z[j].
#pragma once

#include <cstdint>
#include <vector>

#include "gradstack/config.hpp"

namespace gradstack {

// For every unit of one side the edges that end there, in the order of the edge list: unit u has
// the terms begin[u] .. begin[u + 1].
struct Terms {
  std::vector<Index> begin;         // units + 1
  std::vector<std::int32_t> other;  // the unit at the other end
  std::vector<std::int32_t> edge;   // the position in the edge list
};

class Connectivity {
 public:
  // edges: (out unit, in unit) one after the other. Throws std::invalid_argument for units outside
  // the range and for edges that occur twice.
  Connectivity(Index out, Index in, std::vector<std::int32_t> edges);

  Index out() const { return out_; }
  Index in() const { return in_; }
  Index size() const { return static_cast<Index>(edges_.size()) / 2; }
  const std::vector<std::int32_t>& edges() const { return edges_; }
  const Terms& by_out() const { return by_out_; }  // UP(i): what comes into unit i
  const Terms& by_in() const { return by_in_; }    // where unit j goes to
  friend bool operator==(const Connectivity& a, const Connectivity& b) {
    return a.out_ == b.out_ && a.in_ == b.in_ && a.edges_ == b.edges_;
  }

 private:
  Index out_, in_;
  std::vector<std::int32_t> edges_;
  Terms by_out_, by_in_;
};

}  // namespace gradstack

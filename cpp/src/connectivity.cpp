#include "gradstack/connectivity.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "at.hpp"

namespace gradstack {
namespace {

// The edges sorted by the unit at `side` (0: out, 1: in), stably.
Terms group(Index units, const std::vector<std::int32_t>& edges, std::size_t side) {
  Terms terms;
  const std::size_t n = edges.size() / 2;
  terms.begin.assign(at(units) + 1, 0);
  for (std::size_t e = 0; e < n; ++e)
    ++terms.begin[static_cast<std::size_t>(edges[2 * e + side]) + 1];
  for (std::size_t u = 1; u <= at(units); ++u) terms.begin[u] += terms.begin[u - 1];
  std::vector<Index> next(terms.begin.begin(), terms.begin.end() - 1);
  terms.other.resize(n);
  terms.edge.resize(n);
  for (std::size_t e = 0; e < n; ++e) {
    const std::size_t place = at(next[static_cast<std::size_t>(edges[2 * e + side])]++);
    terms.other[place] = edges[2 * e + 1 - side];
    terms.edge[place] = static_cast<std::int32_t>(e);
  }
  return terms;
}

std::string describe(std::int32_t i, std::int32_t j) {
  return "(" + std::to_string(i) + ", " + std::to_string(j) + ")";
}

}  // namespace

Connectivity::Connectivity(Index out, Index in, std::vector<std::int32_t> edges)
    : out_(out), in_(in), edges_(std::move(edges)) {
  for (std::size_t e = 0; 2 * e < edges_.size(); ++e) {
    const std::int32_t i = edges_[2 * e], j = edges_[2 * e + 1];
    if (i < 0 || i >= out_ || j < 0 || j >= in_)
      throw std::invalid_argument("edges[" + std::to_string(e) + "] is " + describe(i, j) +
                                  ", expected units below (" + std::to_string(out_) + ", " +
                                  std::to_string(in_) + ")");
  }
  by_out_ = group(out_, edges_, 0);
  by_in_ = group(in_, edges_, 1);
  std::vector<std::int32_t> seen(at(in_), -1);  // the last out unit that each in unit was met at
  for (Index i = 0; i < out_; ++i)
    for (Index t = by_out_.begin[at(i)]; t < by_out_.begin[at(i) + 1]; ++t) {
      const std::int32_t j = by_out_.other[at(t)];
      if (seen[static_cast<std::size_t>(j)] == i)
        throw std::invalid_argument("edges[" + std::to_string(by_out_.edge[at(t)]) + "] is " +
                                    describe(static_cast<std::int32_t>(i), j) +
                                    ", which occurs before");
      seen[static_cast<std::size_t>(j)] = static_cast<std::int32_t>(i);
    }
}

}  // namespace gradstack

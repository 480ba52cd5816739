// Random data and comparisons. Values are exact in float, so that every dtype sees the same
// problem.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "gradstack/data.hpp"
#include "gradstack/mlp.hpp"
#include "gradstack/registry.hpp"
#include "support/net.hpp"
#include "support/random.hpp"

namespace test {

using Values = std::vector<double>;

inline Values random_values(Index n, unsigned seed, double lo = -1, double hi = 1) {
  Values values = uniform(at(n), seed, lo, hi);
  for (double& v : values) v = static_cast<double>(static_cast<float>(v));
  return values;
}

// Parameters of a size that keeps activations of order one: +-1.5/sqrt(in), biases +-0.3.
inline Values random_parameters(const Graph& graph, unsigned seed) {
  Values w;
  for (const gradstack::Parameter& p : graph.parameters()) {
    const double bound =
        p.shape.size() > 1 ? 1.5 / std::sqrt(static_cast<double>(p.shape[1])) : 0.3;
    const Values part = random_values(p.size, seed++, -bound, bound);
    w.insert(w.end(), part.begin(), part.end());
  }
  return w;
}

template <class T, class S> std::vector<T> cast(const std::vector<S>& values) {
  std::vector<T> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) result[i] = static_cast<T>(values[i]);
  return result;
}

template <class T> bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T> double epsilon() {
  return static_cast<double>(std::numeric_limits<T>::epsilon());
}

// The largest |got - want| in units of eps(T) * max(1, max |want|).
template <class T, class S>
double worst_error(const std::vector<T>& got, const std::vector<S>& want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double worst = 0, scale = 1;
  for (const S w : want) scale = std::max(scale, static_cast<double>(std::abs(w)));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, error);
  }
  return worst / (epsilon<T>() * scale);
}

// <a, b> and the sum of the magnitudes of its terms, the scale of its rounding error.
struct Inner {
  long double sum = 0, magnitude = 0;
  template <class A, class B> void add(const std::vector<A>& a, const std::vector<B>& b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      const long double term = static_cast<long double>(a[i]) * static_cast<long double>(b[i]);
      sum += term;
      magnitude += std::abs(term);
    }
  }
  // |sum - want| in units of eps(T) * magnitude.
  template <class T> double error(long double want) const {
    const long double scale = std::max({magnitude, std::abs(want), 1e-30L});
    return static_cast<double>(std::abs(sum - want) / scale) / epsilon<T>();
  }
};

template <class T> gradstack::RowSource rows(const std::vector<T>& values, Index count) {
  return gradstack::rows_of(values.data(), count, static_cast<Index>(values.size()) / count);
}

template <class T>
std::vector<gradstack::RowSource> row_sources(const std::vector<std::vector<T>>& xs, Index count) {
  std::vector<gradstack::RowSource> sources;
  for (const auto& x : xs) sources.push_back(rows(x, count));
  return sources;
}

// Random rows for every input of the graph.
inline std::vector<Values> random_inputs(const Graph& graph, Index count, unsigned seed) {
  std::vector<Values> xs;
  for (int id : graph.inputs())
    xs.push_back(random_values(count * gradstack::size_of(graph.stage(id).shape), seed++));
  return xs;
}

template <class T> std::vector<std::vector<T>> cast_all(const std::vector<Values>& xs) {
  std::vector<std::vector<T>> result;
  for (const Values& x : xs) result.push_back(cast<T>(x));
  return result;
}

// The best kernels of this machine, for tests whose subject is not the kernels.
template <class T> const gradstack::Kernels<T>& best_kernels() {
  return *gradstack::available_kernels<T>().back();
}

}  // namespace test

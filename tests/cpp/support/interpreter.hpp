// The oracle of the core: what a graph means, written as plainly as possible. One sample, one block
// at a time, looked up by name; it shares nothing with the core but the description of the graph.
// Derivatives come from running it on dual numbers.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "support/numbers.hpp"

namespace test {

using Real = long double;

// value + e * tangent with e^2 = 0.
struct Dual {
  Real value = 0, tangent = 0;
  Dual() = default;
  Dual(Real v, Real t = 0) : value(v), tangent(t) {}
};

inline Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.tangent + b.tangent}; }
inline Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.tangent - b.tangent}; }
inline Dual operator*(Dual a, Dual b) {
  return {a.value * b.value, a.tangent * b.value + a.value * b.tangent};
}
inline Dual operator/(Dual a, Dual b) {
  return {a.value / b.value, (a.tangent * b.value - a.value * b.tangent) / (b.value * b.value)};
}

inline Real value_of(Real x) { return x; }
inline Real value_of(Dual x) { return x.value; }
inline Real chain(Real, Real value, Real) { return value; }
inline Dual chain(Dual x, Real value, Real slope) { return {value, x.tangent * slope}; }

template <class N> N exponential(N x) {
  const Real e = std::exp(value_of(x));
  return chain(x, e, e);
}
template <class N> N logarithm(N x) { return chain(x, std::log(value_of(x)), 1 / value_of(x)); }

// The pointwise functions that the tests use, from their definitions.
Dual apply_op(const std::string& op, const std::vector<double>& p, Dual x);

// First output of the graph for one sample.
std::vector<Dual> interpret(const Graph& graph, const std::vector<Dual>& w,
                            const std::vector<Dual>& x);

// Outputs of the graph, per output (count, d), and their derivatives along (dxs, dw); an empty
// direction is zero.
struct Outputs {
  std::vector<std::vector<Real>> values, tangents;
};

Outputs interpret(const Graph& graph, const Values& w, const std::vector<Values>& xs, Index count,
                  const std::vector<Values>& dxs, const Values& dw);

// Values alone.
std::vector<std::vector<Real>> interpret(const Graph& graph, const Values& w,
                                         const std::vector<Values>& xs, Index count);

}  // namespace test

// The most common graph: linear blocks with one pointwise function between them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gradstack/data.hpp"
#include "gradstack/graph.hpp"

namespace gradstack {

// widths {784, 256, 10} and "relu": Linear(784, 256), ReLU, Linear(256, 10). Parameters are named
// as in a Sequential: "0.weight", "0.bias", "2.weight", ... `op` is a name of the op table; its
// parameters have their defaults.
std::shared_ptr<const Graph> mlp(const std::vector<Index>& widths, const std::string& op);

// Weights and biases of every Linear uniform in +-1/sqrt(in), a function of the seed alone.
template <class T> std::vector<T> initial_parameters(const Graph& graph, std::uint64_t seed);

// A contiguous array of `rows` rows of `cols` values as a source of samples.
template <class T> RowSource rows_of(const T* data, Index rows, Index cols) {
  return {reinterpret_cast<const char*>(data),
          rows,
          cols,
          cols * static_cast<Index>(sizeof(T)),
          static_cast<Index>(sizeof(T)),
          scalar_of<T>()};
}

// One class label per sample.
inline RowSource labels_of(const std::int64_t* labels, Index rows) {
  return {reinterpret_cast<const char*>(labels), rows, 1, 8, 8, Scalar::I64};
}

}  // namespace gradstack

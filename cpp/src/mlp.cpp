#include "gradstack/mlp.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "gradstack/ops.hpp"
#include "gradstack/random.hpp"

namespace gradstack {

std::shared_ptr<const Graph> mlp(const std::vector<Index>& widths, const std::string& op) {
  if (widths.size() < 2)
    throw std::invalid_argument("widths: expected the input's and at least one more");
  const int id = find_op(op.c_str());
  if (id < 0) throw std::invalid_argument("op: '" + op + "' is not in the op table");
  auto graph = std::make_shared<Graph>();
  Stage input;
  input.name = "x";
  input.shape = {widths[0]};
  graph->add(input);
  std::string previous = input.name;
  for (std::size_t i = 0; i + 1 < widths.size(); ++i) {
    Stage linear;
    linear.kind = Kind::Linear;
    linear.name = std::to_string(2 * i);
    linear.inputs = {previous};
    linear.weight = linear.name + ".weight";
    linear.bias = linear.name + ".bias";
    graph->parameter(linear.weight, {widths[i + 1], widths[i]});
    graph->parameter(linear.bias, {widths[i + 1]});
    graph->add(linear);
    previous = linear.name;
    if (i + 2 == widths.size()) break;
    Stage pointwise;
    pointwise.kind = Kind::Pointwise;
    pointwise.name = std::to_string(2 * i + 1);
    pointwise.inputs = {previous};
    pointwise.op = op;
    for (int p = 0; p < op_info(id).n_params; ++p)
      pointwise.params.push_back(op_info(id).params[p].value);
    graph->add(pointwise);
    previous = pointwise.name;
  }
  graph->finish({previous});
  return graph;
}

template <class T> std::vector<T> initial_parameters(const Graph& graph, std::uint64_t seed) {
  std::vector<T> w(static_cast<std::size_t>(graph.n_params()));
  Rng rng(seed);
  for (const Stage& stage : graph.stages()) {
    if (stage.kind != Kind::Linear && stage.kind != Kind::SparseLinear) continue;
    const Parameter& weight = graph.parameter(stage.weight_id);
    // Connections into a unit; where that differs, their average.
    const double fan_in = stage.edges ? std::max(1.0, static_cast<double>(weight.size) /
                                                          static_cast<double>(stage.edges->out()))
                                      : static_cast<double>(weight.shape[1]);
    const double bound = 1.0 / std::sqrt(fan_in);
    const auto fill = [&](const Parameter& p) {
      for (Index i = p.offset; i < p.offset + p.size; ++i)
        w[static_cast<std::size_t>(i)] = static_cast<T>(bound * (2 * rng.uniform() - 1));
    };
    fill(weight);
    if (stage.bias_id >= 0) fill(graph.parameter(stage.bias_id));
  }
  return w;
}

template std::vector<float> initial_parameters(const Graph&, std::uint64_t);
template std::vector<double> initial_parameters(const Graph&, std::uint64_t);

}  // namespace gradstack

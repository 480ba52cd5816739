// Nets and batches whose shapes select every schedule of BatchGradient: tiles of narrow and wide
// nets, chunks, and batches too large for one plan.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gradstack/cost.hpp"
#include "gradstack/objective.hpp"
#include "support/numbers.hpp"

namespace test {

struct Schedule {
  std::string name;
  std::shared_ptr<const Graph> graph;
  Index batch;
};

// A net with a mask, a residual sum and a parameter used twice, from `in` to `out` features.
inline std::string busy_net(Net& net, const std::string& x, Index width, Index out,
                            double dropout = 0, bool shared = false) {
  const std::string a = net.linear(x, width, {.mask = random_mask(width, net.width(x), 0.6, 3)});
  std::string h = net.pointwise(a, "tanh");
  if (dropout > 0) h = net.dropout(h, dropout);
  const std::string b = net.linear(h, width);
  const std::string c = shared ? net.linear(net.pointwise(b, "relu"), width, {.share = b})
                               : net.linear(net.pointwise(b, "relu"), width);
  return net.linear(net.binary(Kind::Add, h, net.pointwise(c, "silu")), out);
}

inline Schedule narrow_tiles(double dropout = 0, bool shared = false) {
  Net net;
  const std::string x = net.input({13});
  return {"narrow tiles", net.finish({busy_net(net, x, 17, 3, dropout, shared)}), 33};
}

inline Schedule wide_tiles(double dropout = 0, bool shared = false) {
  Net net;
  const std::string x = net.input({70});
  return {"wide tiles", net.finish({busy_net(net, x, 190, 3, dropout, shared)}), 70};
}

inline Schedule chunks(double dropout = 0, bool shared = false) {
  Net net;
  const std::string x = net.input({13});
  return {"chunks", net.finish({busy_net(net, x, 25, 3, dropout, shared)}), 1300};
}

// Views count as activations when a plan's memory is estimated, but take none: many of them make a
// batch look too large for one plan.
inline Schedule cut_batch(double dropout = 0, bool shared = false) {
  Net net;
  std::string x = net.input({13});
  std::string h = net.linear(x, 250);
  h = net.linear(dropout > 0 ? net.dropout(h, dropout) : h, 250);
  h = shared ? net.linear(net.pointwise(h, "tanh"), 250, {.share = h}) : net.pointwise(h, "tanh");
  for (int i = 0; i < 180; ++i) h = net.reshape(h, {250});
  return {"a batch cut into several plans' work", net.finish({net.linear(h, 3)}), 600};
}

inline std::vector<Schedule> all_schedules(double dropout = 0, bool shared = false) {
  return {narrow_tiles(dropout, shared), wide_tiles(dropout, shared), chunks(dropout, shared),
          cut_batch(dropout, shared)};
}

// Samples with targets of all sorts.
template <class T> struct DataSet {
  std::vector<T> x, y, weight;
  std::vector<std::int64_t> labels;
  Index count;

  DataSet(const Graph& graph, Index n, unsigned seed) : count(n) {
    x = cast<T>(random_inputs(graph, n, seed)[0]);
    const Index d = gradstack::size_of(graph.stage(graph.outputs()[0]).shape);
    y = cast<T>(random_values(n * d, seed + 1));
    weight = cast<T>(random_values(n, seed + 2, 0.0, 2.0));
    for (Index i = 3; i < n; i += 5) weight[at(i)] = 0;
    for (Index i = 0; i < n; ++i) labels.push_back((i * 7 + static_cast<Index>(seed)) % d);
  }

  gradstack::Batch batch(bool use_labels, bool weighted) const {
    gradstack::Batch b;
    b.x = {rows(x, count)};
    b.y = use_labels ? gradstack::labels_of(labels.data(), count) : rows(y, count);
    b.labels = use_labels;
    if (weighted) b.weight = rows(weight, count);
    b.count = count;
    return b;
  }
  gradstack::TargetSpec target(bool use_labels) const {
    return {use_labels ? 0 : static_cast<Index>(y.size()) / count, use_labels};
  }
};

template <class T>
std::shared_ptr<gradstack::Cost<T>> make_cost(
    const std::string& name, std::vector<double> params = {}, std::vector<T> class_weight = {},
    gradstack::Reduction reduction = gradstack::Reduction::Mean) {
  return std::make_shared<gradstack::TableCost<T>>(name, std::move(params), std::move(class_weight),
                                                   reduction);
}

}  // namespace test

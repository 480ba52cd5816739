#include "gradstack/fusion.hpp"

namespace gradstack {
namespace {

std::size_t at(int id) { return static_cast<std::size_t>(id); }

}  // namespace

Fusion::Fusion(const Graph& graph, bool fuse, int apart)
    : base(graph.stages().size()),
      uses(graph.stages().size(), 0),
      pointwise(graph.stages().size(), -1),
      fused_away(graph.stages().size(), 0) {
  const auto& stages = graph.stages();
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const bool view = stages[i].kind == Kind::Reshape;
    base[i] = view ? base[at(stages[i].in[0])] : static_cast<int>(i);
    if (view) continue;
    for (int input : stages[i].in) ++uses[at(base[at(input)])];
  }
  for (int output : graph.outputs()) ++uses[at(base[at(output)])];
  for (std::size_t i = 0; fuse && i < stages.size(); ++i) {
    if (stages[i].kind != Kind::Pointwise) continue;
    const int input = base[at(stages[i].in[0])];
    if (graph.stage(input).kind != Kind::Linear || uses[at(input)] != 1) continue;
    if (apart == input || apart == static_cast<int>(i)) continue;
    pointwise[at(input)] = static_cast<int>(i);
    fused_away[i] = 1;
  }
}

int Fusion::producer(const Graph& graph, int stage) const {
  const int input = base[at(graph.stage(stage).in[0])];
  if (!fused_away[at(input)] || uses[at(input)] != 1) return -1;
  return base[at(graph.stage(input).in[0])];
}

}  // namespace gradstack

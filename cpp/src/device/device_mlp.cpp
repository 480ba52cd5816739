// Shapes of the fused MLP, and its part of a plan.
#include "gradstack/device_mlp.hpp"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gradstack/device_plan.hpp"

namespace gradstack {

std::optional<MlpChain> mlp_chain(const Graph& graph) {
  if (graph.inputs().size() != 1 || graph.outputs().size() != 1) return {};
  MlpChain chain;
  DeviceMlp& m = chain.mlp;
  std::vector<char> owned(graph.parameters().size(), 0);
  const auto take = [&](int parameter) {
    if (parameter < 0) return true;
    return !std::exchange(owned[static_cast<std::size_t>(parameter)], 1);
  };
  // Sorted topologically, a chain is in its own order.
  int last = graph.inputs()[0];
  bool open = false;  // a Linear that a function may follow
  for (std::size_t i = 0; i < graph.stages().size(); ++i) {
    const Stage& stage = graph.stages()[i];
    if (stage.kind == Kind::Input) continue;
    if (stage.in.size() != 1 || stage.in[0] != last) return {};
    last = static_cast<int>(i);
    if (stage.kind == Kind::Reshape) continue;
    if (stage.kind == Kind::Linear) {
      if (stage.mask || m.layers == kMlpLayers || !take(stage.weight_id) || !take(stage.bias_id))
        return {};
      chain.weight[m.layers] = stage.weight_id;
      chain.bias[m.layers] = stage.bias_id;
      const Shape& shape = graph.parameter(stage.weight_id).shape;
      m.layer[m.layers].out = shape[0];
      m.layer[m.layers++].in = shape[1];
      open = true;
    } else if (stage.kind == Kind::Pointwise && open) {
      DeviceOp& op = m.layer[m.layers - 1].op;
      op.id = stage.op_id;
      std::copy(stage.params.begin(), stage.params.end(), op.p);
      open = false;
    } else {
      return {};
    }
  }
  if (m.layers == 0 || last != graph.outputs()[0]) return {};
  for (int l = 0; l < m.layers; ++l) {
    const Index narrowest = l + 1 < m.layers ? 16 : 1;
    if (m.layer[l].out < narrowest || m.layer[l].out > kMlpWidth) return {};
  }
  return chain;
}

DeviceHalf fused_from_environment() {
  const char* value = std::getenv("GRADSTACK_CUDA_FUSED");
  const std::string said = value ? value : "";
  if (said.empty() || said == "0") return DeviceHalf::None;
  if (said == "bf16") return DeviceHalf::Bf16;
  if (said == "fp16") return DeviceHalf::Fp16;
  throw std::invalid_argument("GRADSTACK_CUDA_FUSED is '" + said + "', expected bf16 or fp16");
}

// Nothing but input and output has memory of its own among the variables.
void DevicePlan::allocate_mlp() {
  const auto memory = [&](int stage, bool gradient) {
    Variable& v = variables_[index(fusion_.base[index(stage)])];
    v.value = DeviceBuffer(queue_, options_.count * v.d, storage_, "activations");
    if (gradient)
      v.grad = DeviceBuffer(queue_, options_.count * v.d, storage_, "gradients of activations");
  };
  memory(graph_->inputs()[0], options_.gradients && options_.want_dx);
  memory(graph_->outputs()[0], options_.gradients);
  DeviceMlp& m = mlp_->mlp;
  m.half = options_.fused;
  m.count = options_.count;
  if (!options_.gradients) return;
  Index kept = 0;
  for (int l = 0; l < m.layers; ++l)
    if (mlp_keeps(m, l)) kept += m.count * mlp_pad(m.layer[l].out);
  kept_ = DeviceArray<std::uint16_t>(queue_, kept, "activations");
  slots_ = DeviceArray<float>(queue_, mlp_slots(m), "gradients of blocks of threads");
}

DeviceMlp DevicePlan::mlp_of(const DeviceRun& run) const {
  DeviceMlp m = mlp_->mlp;
  Index kept = 0;
  for (int l = 0; l < m.layers; ++l) {
    DeviceMlpLayer& layer = m.layer[l];
    const int weight = mlp_->weight[l], bias = mlp_->bias[l];
    layer.w = run.w + layout_.offset(weight);
    if (bias >= 0) layer.bias = run.w + layout_.offset(bias);
    if (run.dw && wants(weight)) layer.dw = run.dw + layout_.offset(weight);
    if (run.dw && wants(bias)) layer.db = run.dw + layout_.offset(bias);
    if (!options_.gradients || !mlp_keeps(m, l)) continue;
    layer.kept = kept_.data() + kept;
    kept += m.count * mlp_pad(layer.out);
  }
  m.x = value(graph_->inputs()[0]);
  m.ybar = value(graph_->outputs()[0]);
  m.dybar = grad(graph_->outputs()[0]);
  m.dx = grad(graph_->inputs()[0]);
  m.slots = slots_.data();
  m.accumulate = run.accumulate;
  return m;
}

}  // namespace gradstack

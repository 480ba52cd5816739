// Memory and structure of a graph on a device; device_run.cpp and device_push.cpp
// have the calculus.
#include "gradstack/device_plan.hpp"

#include <algorithm>
#include <stdexcept>

#include "gradstack/ops.hpp"

namespace gradstack {

DeviceLayout::DeviceLayout(const Graph& graph) {
  for (const Parameter& p : graph.parameters()) {
    offsets_.push_back(size_);
    size_ += (p.size + kAlign - 1) / kAlign * kAlign;
  }
}

void DeviceLayout::spread(const Graph& graph, const float* flat, float* padded) const {
  std::fill(padded, padded + size_, 0.0F);
  for (std::size_t i = 0; i < offsets_.size(); ++i) {
    const Parameter& p = graph.parameters()[i];
    std::copy(flat + p.offset, flat + p.offset + p.size, padded + offsets_[i]);
  }
}

void DeviceLayout::gather(const Graph& graph, const float* padded, float* flat) const {
  for (std::size_t i = 0; i < offsets_.size(); ++i) {
    const Parameter& p = graph.parameters()[i];
    std::copy(padded + offsets_[i], padded + offsets_[i] + p.size, flat + p.offset);
  }
}

void DeviceLayout::download(DeviceQueue& queue, const Graph& graph, const float* padded,
                            float* flat) const {
  if (!queue.on_device(flat)) {
    std::vector<float> values(static_cast<std::size_t>(size_));
    queue.to_host(values.data(), padded, values.size() * sizeof(float));
    return gather(graph, values.data(), flat);
  }
  for (std::size_t i = 0; i < offsets_.size(); ++i) {
    const Parameter& p = graph.parameters()[i];
    queue.to_device(flat + p.offset, padded + offsets_[i],
                    static_cast<std::size_t>(p.size) * sizeof(float));
  }
}

void check_device_graph(const Graph& graph, DevicePrecision precision) {
  for (const Stage& stage : graph.stages()) {
    if (stage.kind == Kind::Opaque)
      throw std::invalid_argument("device: block '" + stage.name +
                                  "' is written in Python and runs on the CPU only");
    if (stage.kind == Kind::Nearest && storage_of(precision) != DeviceType::Float32)
      throw std::invalid_argument("precision: block '" + stage.name +
                                  "' gives the index of a prototype, which 16 bits do not hold; "
                                  "use 'float32' or 'tf32'");
  }
}

DevicePlan::DevicePlan(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                       DevicePlanOptions options)
    : graph_(std::move(graph)),
      queue_(std::move(queue)),
      options_(std::move(options)),
      storage_(storage_of(options_.precision)),
      layout_(*graph_),
      fusion_(*graph_, true, options_.want_stage) {
  if (options_.count < 1) throw std::invalid_argument("batch: expected at least one sample");
  check_device_graph(*graph_, options_.precision);
  options_.frozen.resize(graph_->parameters().size(), 0);
  if (options_.fused != DeviceHalf::None && !options_.tangents && options_.repeats == 1 &&
      options_.want_stage < 0)
    mlp_ = mlp_chain(*graph_);
  if (mlp_) storage_ = DeviceType::Float32;  // its kernels round for themselves
  find_wanted();
  allocate();
  find_slopes();
  upload_structure();
}

bool DevicePlan::wants(int parameter) const {
  return parameter >= 0 && options_.gradients && !options_.frozen[index(parameter)];
}

bool DevicePlan::is_output(int base) const {
  const auto& outputs = graph_->outputs();
  return std::any_of(outputs.begin(), outputs.end(),
                     [&](int output) { return fusion_.base[index(output)] == base; });
}

// A gradient is computed only if it leads to an input or a parameter that wants one.
void DevicePlan::find_wanted() {
  const auto& stages = graph_->stages();
  wants_grad_.assign(stages.size(), 0);
  if (!options_.gradients) return;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const Stage& stage = stages[i];
    bool wanted = (stage.kind == Kind::Input && options_.want_dx) || wants(stage.weight_id) ||
                  wants(stage.bias_id) || static_cast<int>(i) == options_.want_stage;
    for (int input : stage.in) wanted = wanted || wants_grad_[index(fusion_.base[index(input)])];
    wants_grad_[i] = wanted;
  }
  for (std::size_t i = 0; i < graph_->outputs().size(); ++i)
    if (options_.output < 0 || options_.output == static_cast<int>(i))
      wants_grad_[index(fusion_.base[index(graph_->outputs()[i])])] = 1;
}

void DevicePlan::allocate() {
  const auto& stages = graph_->stages();
  variables_.resize(stages.size());
  for (std::size_t i = 0; i < stages.size(); ++i) variables_[i].d = size_of(stages[i].shape);
  if (mlp_) return allocate_mlp();
  for (std::size_t i = stages.size(); i-- > 0;) {
    Variable& v = variables_[i];
    if (fusion_.base[i] != static_cast<int>(i)) continue;
    const bool input = stages[i].kind == Kind::Input, output = is_output(static_cast<int>(i));
    if (reduced() && (input || output)) {
      const Index n = options_.count * v.d;
      v.outer_value = DeviceArray<float>(queue_, n, "activations");
      if (wants_grad_[i]) v.outer_grad = DeviceArray<float>(queue_, n, "gradients of activations");
    }
    if (const int fused = fusion_.pointwise[i]; fused >= 0) {
      // dC/ds overwrites dC/dz, and z overwrites s where h' is had from z.
      v.grad_of = fused;
      if ((!options_.gradients && !options_.tangents) ||
          visit_op(graph_->stage(fused).op_id, graph_->stage(fused).params.data(),
                   [](auto h) { return decltype(h)::has_d1_from_z; })) {
        v.value_of = fused;
        continue;
      }
    } else {
      if (wants_grad_[i])
        v.grad = DeviceBuffer(queue_, rows() * v.d, storage_, "gradients of activations");
      if (options_.tangents)
        v.tangent = DeviceArray<float>(queue_, rows() * v.d, "tangents of activations");
    }
    // A product that nobody but the caller reads is not rounded to half.
    if (reduced() && output && stages[i].kind == Kind::Linear && fusion_.uses[i] == 1) continue;
    v.value = DeviceBuffer(queue_, options_.count * v.d, storage_, "activations");
  }
  const Stage& last = graph_->stage(fusion_.base[index(graph_->outputs()[0])]);
  if (options_.gradients && graph_->outputs().size() == 1 && last.kind == Kind::Nearest) {
    const Index n = options_.count * graph_->parameter(last.weight_id).shape[1];
    chosen_ = DeviceArray<float>(queue_, n, "activations");
    chosen_grad_ = DeviceArray<float>(queue_, n, "gradients of activations");
  }
  if (options_.repeats > 1) allocate_repeats();
}

void DevicePlan::allocate_repeats() {
  Index most = 0, most_of_pairs = 0;
  for (std::size_t i = 0; i < graph_->stages().size(); ++i) {
    const Kind kind = graph_->stage(static_cast<int>(i)).kind;
    if (kind == Kind::Pointwise || kind == Kind::Softmax || kind == Kind::LogSoftmax)
      most = std::max(most, variables_[i].d);
    if (kind == Kind::Mul || kind == Kind::Div)
      most_of_pairs = std::max(most_of_pairs, variables_[i].d);
  }
  repeated_[0] = DeviceArray<float>(queue_, rows() * std::max(most, most_of_pairs), "activations");
  repeated_[1] = DeviceArray<float>(queue_, rows() * most_of_pairs, "activations");
}

void DevicePlan::upload_structure() {
  const auto& stages = graph_->stages();
  masks_.resize(stages.size());
  stored_masks_.resize(stages.size());
  masked_.resize(stages.size());
  masked_tangent_.resize(stages.size());
  edges_.resize(stages.size());
  const auto array = [&](const auto& values) {
    using Value = std::decay_t<decltype(values[0])>;
    DeviceArray<Value> made(queue_, static_cast<Index>(values.size()), "connections");
    made.from_host(values.data(), static_cast<Index>(values.size()));
    return made;
  };
  for (std::size_t i = 0; i < stages.size(); ++i) {
    if (const auto& mask = stages[i].mask) {
      std::vector<float> factors(mask->size());
      std::transform(mask->begin(), mask->end(), factors.begin(),
                     [](std::uint8_t connected) { return connected ? 1.0F : 0.0F; });
      masks_[i] = array(factors);
      stored_masks_[i] = DeviceBuffer(queue_, masks_[i].size(), storage_, "masked weights");
      queue_->convert(masks_[i].size(), masks_[i].data(), stored_masks_[i].values());
      masked_[i] = DeviceBuffer(queue_, masks_[i].size(), storage_, "masked weights");
      if (options_.tangents)
        masked_tangent_[i] = DeviceArray<float>(queue_, masks_[i].size(), "masked weights");
    }
    if (const auto& edges = stages[i].edges) {
      edges_[i] = std::make_unique<Edges>();
      edges_[i]->out_begin = array(edges->by_out().begin);
      edges_[i]->out_unit = array(edges->by_out().other);
      edges_[i]->out_edge = array(edges->by_out().edge);
      edges_[i]->in_begin = array(edges->by_in().begin);
      edges_[i]->in_unit = array(edges->by_in().other);
      edges_[i]->in_edge = array(edges->by_in().edge);
      edges_[i]->ends = array(edges->edges());
    }
  }
}

}  // namespace gradstack

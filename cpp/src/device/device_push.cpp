// Forward mode on a device: perturbations of inputs and parameters through every block. Where a
// Jacobian is symmetric, the call that pulls a cotangent back through it pushes a tangent on.
#include <stdexcept>

#include "gradstack/device_plan.hpp"
#include "stage_calls.hpp"

namespace gradstack {

// What does not move has a tangent of zero that nobody computes.
void DevicePlan::push(const DeviceRun& run, const std::vector<char>& moved) {
  moves_.assign(graph_->stages().size(), 0);
  for (std::size_t i = 0; i < moved.size(); ++i) moves_[index(graph_->inputs()[i])] = moved[i];
  for (std::size_t i = 0; i < graph_->stages().size(); ++i) {
    const Kind kind = graph_->stages()[i].kind;
    if (fusion_.fused_away[i] || kind == Kind::Input || kind == Kind::Reshape) continue;
    const bool moves = push_stage(static_cast<int>(i), run);
    moves_[i] = moves;
    if (fusion_.pointwise[i] >= 0) moves_[index(fusion_.pointwise[i])] = moves;
  }
}

// Whether the block's output moves.
bool DevicePlan::push_stage(int id, const DeviceRun& run) {
  const Stage& stage = graph_->stage(id);
  bool moves_in = false;
  for (int input : stage.in) moves_in = moves_in || moves(input);
  if (!moves_in && (!run.tangent_w || stage.weight_id < 0)) return false;
  const Index n = rows(), d = width(id);
  float* dz = tangent(id);
  switch (stage.kind) {
    case Kind::Linear:
      push_linear(id, run);
      break;
    case Kind::SparseLinear:
      push_sparse(id, run);
      break;
    case Kind::Pointwise:
      queue_->backward(op_of(stage), n * d, repeated(stage.in[0], 0), {}, tangent(stage.in[0]), dz,
                       false);
      break;
    case Kind::Add:
    case Kind::Sub:
    case Kind::Mul:
    case Kind::Div: {
      const bool reads = stage.kind == Kind::Mul || stage.kind == Kind::Div;
      const DeviceIn a = reads ? repeated(stage.in[0], 0) : DeviceIn();
      const DeviceIn b = reads ? repeated(stage.in[1], 1) : DeviceIn();
      bool accumulate = false;
      for (std::size_t k = 0; k < 2; ++k) {
        if (!moves(stage.in[k])) continue;
        queue_->binary_backward(binary_of(stage.kind), k == 0, n * d, a, b, tangent(stage.in[k]),
                                dz, accumulate);
        accumulate = true;
      }
      break;
    }
    case Kind::Concat:
    case Kind::Slice:
      push_columns(id);
      break;
    case Kind::Softmax:
      queue_->softmax_backward(n, d, repeated(id, 0), tangent(stage.in[0]), dz, false, false);
      break;
    case Kind::LogSoftmax:
      queue_->log_softmax_tangent(n, d, repeated(id, 0).as<float>(), tangent(stage.in[0]), dz);
      break;
    case Kind::Dropout:
      dropout(id, run, n, tangent(stage.in[0]), dz, false);
      break;
    case Kind::Nearest:  // the index is piecewise constant
      return false;
    case Kind::Input:
    case Kind::Reshape:
    case Kind::Opaque:
      throw std::logic_error("device: no block to push through");
  }
  return true;
}

// ds = dz w^T + z dw^T + db
void DevicePlan::push_linear(int id, const DeviceRun& run) {
  const Stage& stage = graph_->stage(id);
  const Parameter& w = graph_->parameter(stage.weight_id);
  const bool moves_in = moves(stage.in[0]);
  DeviceGemm g;
  g.m = rows();
  g.n = w.shape[0];
  g.k = w.shape[1];
  g.tb = true;
  g.c = tangent(id);
  if (run.tangent_w && stage.bias_id >= 0) g.bias = run.tangent_w + layout_.offset(stage.bias_id);
  if (moves_in) {
    g.a = tangent(stage.in[0]);
    g.b = weight(id, run);
    queue_->gemm(g);
    g.bias = nullptr;
    g.accumulate = true;
  }
  if (run.tangent_w) {
    g.a = value(stage.in[0]);
    g.b = run.tangent_w + layout_.offset(stage.weight_id);
    if (float* masked = masked_tangent_[index(id)].data()) {
      queue_->binary(DeviceBinary::Mul, w.size, g.b, masks_[index(id)].data(), masked);
      g.b = masked;
    }
    queue_->gemm(g);
  }
  if (fusion_.pointwise[index(id)] >= 0) through_fused(id, tangent(id));
}

void DevicePlan::push_sparse(int id, const DeviceRun& run) {
  const Stage& stage = graph_->stage(id);
  const Edges& edges = *edges_[index(id)];
  DeviceSparse s{.rows = rows(),
                 .units = width(id),
                 .other = width(stage.in[0]),
                 .begin = edges.out_begin.data(),
                 .end_unit = edges.out_unit.data(),
                 .edge = edges.out_edge.data(),
                 .y = tangent(id)};
  if (run.tangent_w && stage.bias_id >= 0) s.bias = run.tangent_w + layout_.offset(stage.bias_id);
  if (moves(stage.in[0])) {
    s.w = run.w + layout_.offset(stage.weight_id);
    s.x = tangent(stage.in[0]);
    queue_->sparse(s);
    s.accumulate = true;
  }
  if (!run.tangent_w) return;
  s.w = run.tangent_w + layout_.offset(stage.weight_id);
  s.x = value(stage.in[0]);
  queue_->sparse(s);
}

void DevicePlan::push_columns(int id) {
  const Stage& stage = graph_->stage(id);
  const Index n = rows(), d = width(id);
  float* to = tangent(id);
  for (int input : stage.in)
    if (!moves(input)) {
      queue_->zero(to, bytes_of(n * d));
      break;
    }
  for (int input : stage.in) {
    const Index in = width(input), cols = stage.kind == Kind::Slice ? d : in;
    if (moves(input)) queue_->columns({n, cols, tangent(input) + stage.begin, in, to, d});
    to += cols;
  }
}

}  // namespace gradstack

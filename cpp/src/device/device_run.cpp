// The calculus of the blocks on a device: forward, and both Jacobians applied to the cotangent.
#include <algorithm>
#include <stdexcept>

#include "gradstack/device_plan.hpp"
#include "gradstack/random.hpp"
#include "stage_calls.hpp"

namespace gradstack {

// A parameter as values of that type.
DeviceIn DevicePlan::parameter(int id, DeviceType type, const DeviceRun& run) const {
  return (type == DeviceType::Float32 ? DeviceIn(run.w) : run.copy) + layout_.offset(id);
}

DeviceIn DevicePlan::weight(int id, const DeviceRun& run) const {
  const DeviceOut masked = masked_[index(id)].values();
  return masked ? DeviceIn(masked) : parameter(graph_->stage(id).weight_id, storage_, run);
}

DeviceGemm DevicePlan::product() const {
  DeviceGemm g;
  g.tf32 = options_.precision == DevicePrecision::TF32;
  return g;
}

void DevicePlan::take_inputs() {
  if (!reduced()) return;
  for (int input : graph_->inputs())
    queue_->convert(options_.count * width(input), value(input), stored(input));
}

void DevicePlan::forward(const DeviceRun& run) {
  if (mlp_) return queue_->mlp_forward(mlp_of(run));
  for (std::size_t i = 0; i < graph_->stages().size(); ++i)
    if (!fusion_.fused_away[i]) forward_stage(static_cast<int>(i), run);
  if (!reduced()) return;
  for (int output : graph_->outputs())
    if (const DeviceOut z = stored(output); z.type != DeviceType::Float32)
      queue_->convert(options_.count * width(output), z, value(output));
}

void DevicePlan::forward_stage(int id, const DeviceRun& run) {
  const Stage& stage = graph_->stage(id);
  const Index n = options_.count;
  const DeviceOut z = stored(id);
  const DeviceIn x = stage.in.empty() ? DeviceIn() : stored(stage.in[0]);
  switch (stage.kind) {
    case Kind::Input:
    case Kind::Reshape:
      return;
    case Kind::Linear: {
      const Parameter& w = graph_->parameter(stage.weight_id);
      if (const auto& mask = masks_[index(id)]; mask.data())
        queue_->binary(DeviceBinary::Mul, w.size, parameter(stage.weight_id, storage_, run),
                       stored_masks_[index(id)].values(), masked_[index(id)].values());
      DeviceGemm g = product();
      g.m = n;
      g.n = w.shape[0];
      g.k = w.shape[1];
      g.a = x;
      g.b = weight(id, run);
      g.tb = true;
      g.c = z;
      if (stage.bias_id >= 0) g.bias = parameter(stage.bias_id, z.type, run);
      const int fused = fusion_.pointwise[index(id)];
      const bool in_place = fused >= 0 && z.data == stored(fused).data;
      if (in_place) g.op = op_of(graph_->stage(fused));
      g.fuse = options_.epilogues;
      if (leave_slope(id, run)) g.bits = slopes_[index(id)].bits.data();
      queue_->gemm(g);
      if (fused >= 0 && !in_place)
        queue_->forward(op_of(graph_->stage(fused)), n * width(id), z, stored(fused));
      return;
    }
    case Kind::SparseLinear: {
      const Edges& edges = *edges_[index(id)];
      queue_->sparse({.rows = n,
                      .units = width(id),
                      .other = width(stage.in[0]),
                      .begin = edges.out_begin.data(),
                      .end_unit = edges.out_unit.data(),
                      .edge = edges.out_edge.data(),
                      .w = run.w + layout_.offset(stage.weight_id),
                      .x = x,
                      .bias = stage.bias_id >= 0 ? run.w + layout_.offset(stage.bias_id) : nullptr,
                      .y = z});
      return;
    }
    case Kind::Pointwise:
      return queue_->forward(op_of(stage), n * width(id), x, z);
    case Kind::Add:
    case Kind::Sub:
    case Kind::Mul:
    case Kind::Div:
      return queue_->binary(binary_of(stage.kind), n * width(id), x, stored(stage.in[1]), z);
    case Kind::Concat: {
      Index at = 0;
      for (int input : stage.in) {
        queue_->columns({n, width(input), stored(input), width(input), z + at, width(id), false});
        at += width(input);
      }
      return;
    }
    case Kind::Slice:
      return queue_->columns(
          {n, width(id), x + stage.begin, width(stage.in[0]), z, width(id), false});
    case Kind::Softmax:
    case Kind::LogSoftmax:
      return queue_->softmax(n, width(id), x, z, stage.kind == Kind::LogSoftmax);
    case Kind::Dropout:
      return dropout(id, run, n, x, z, false);
    case Kind::Nearest: {
      const Parameter& w = graph_->parameter(stage.weight_id);
      return queue_->nearest(n, w.shape[0], w.shape[1], run.w + layout_.offset(stage.weight_id),
                             value(stage.in[0]), value(id), chosen());
    }
    case Kind::Opaque:
      throw std::logic_error("device: opaque blocks were refused when planning");
  }
}

void DevicePlan::dropout(int id, const DeviceRun& run, Index n, DeviceIn from, DeviceOut to,
                         bool accumulate) {
  const Stage& stage = graph_->stage(id);
  const Index d = width(id);
  // Only directions at once have more rows than there are samples; they belong to evaluation.
  if (!run.train) return queue_->columns({n, d, from, d, to, d, accumulate});
  queue_->dropout({.rows = n,
                   .d = d,
                   .at = run.at,
                   .seed = run.seed,
                   .stream = static_cast<std::uint64_t>(id),
                   .first_sample = static_cast<std::uint64_t>(run.first_sample),
                   .threshold = probability_threshold(stage.rate),
                   .scale = static_cast<float>(1.0 / (1.0 - stage.rate)),
                   .s = from,
                   .z = to,
                   .accumulate = accumulate});
}

DeviceOut DevicePlan::input_grad(int id, std::size_t k, bool* accumulate) {
  const int base = fusion_.base[index(graph_->stage(id).in[k])];
  const DeviceOut grad = grad_of(base);
  *accumulate = written_[index(base)] != 0;
  written_[index(base)] = 1;
  return grad;
}

void DevicePlan::zero(DeviceOut to, Index n) {
  queue_->zero(to.data, static_cast<std::size_t>(n) * bytes_of(to.type));
}

float* DevicePlan::parameter_grad(int parameter, const DeviceRun& run, bool* accumulate) {
  if (!run.dw || !wants(parameter)) return nullptr;
  *accumulate = parameter_written_[index(parameter)] != 0;
  parameter_written_[index(parameter)] = 1;
  return run.dw + layout_.offset(parameter);
}

void DevicePlan::backward(const DeviceRun& run) {
  if (mlp_) {
    written_.assign(graph_->stages().size(), 1);
    return queue_->mlp_backward(mlp_of(run));
  }
  // The first to write a gradient overwrites, the others add. Outputs are written first, by the
  // cost.
  written_.assign(graph_->stages().size(), 0);
  parameter_written_.assign(graph_->parameters().size(), run.accumulate ? 1 : 0);
  for (Slope& slope : slopes_) slope.passed = slope.summed = false;
  for (std::size_t i = 0; i < graph_->outputs().size(); ++i) {
    const int output = graph_->outputs()[i];
    char& written = written_[index(fusion_.base[index(output)])];
    if (written || (options_.output >= 0 && options_.output != static_cast<int>(i))) continue;
    if (reduced())
      queue_->convert(rows() * width(output), grad(output), grad_of(fusion_.base[index(output)]));
    written = 1;
  }
  for (std::size_t i = graph_->stages().size(); i-- > 0;)
    if (!fusion_.fused_away[i]) backward_stage(static_cast<int>(i), run);
  if (!reduced() || !options_.want_dx) return;
  for (int input : graph_->inputs())
    queue_->convert(options_.count * width(input), grad_of(fusion_.base[index(input)]),
                    grad(input));
}

DeviceIn DevicePlan::repeated(int stage, std::size_t place) {
  if (options_.repeats == 1) return stored(stage);
  const Index d = width(stage);
  float* to = repeated_[place].data();
  queue_->columns({rows(), d, value(stage), d, to, d, false, options_.repeats});
  return DeviceOut(to);
}

void DevicePlan::backward_stage(int id, const DeviceRun& run) {
  const Stage& stage = graph_->stage(id);
  if (stage.kind == Kind::Input || stage.kind == Kind::Reshape) return;
  const DeviceIn dz = grad_of(fusion_.base[index(id)]);
  const int out = fusion_.pointwise[index(id)] < 0 ? id : fusion_.pointwise[index(id)];
  if ((!dz || !reached(out)) && stage.kind != Kind::Nearest) return;
  const Index n = rows();
  bool accumulate = false;
  switch (stage.kind) {
    case Kind::Linear:
      return backward_linear(id, run);
    case Kind::SparseLinear:
      return backward_sparse(id, run);
    case Kind::Add:
    case Kind::Sub:
    case Kind::Mul:
    case Kind::Div:
      return backward_binary(id);
    case Kind::Concat:
    case Kind::Slice:
      return backward_columns(id);
    case Kind::Nearest: {
      float* dw = parameter_grad(stage.weight_id, run, &accumulate);
      if (dw && chosen_grad()) {
        const Parameter& w = graph_->parameter(stage.weight_id);
        queue_->nearest_gradient(n, w.shape[0], w.shape[1], value(id), chosen_grad(), dw,
                                 accumulate);
      }
      // The index is piecewise constant: no derivative passes back through it.
      const DeviceOut dx = input_grad(id, 0, &accumulate);
      if (dx && !accumulate) zero(dx, n * width(stage.in[0]));
      return;
    }
    default:
      break;
  }
  const DeviceOut dx = input_grad(id, 0, &accumulate);
  if (!dx) return;
  if (stage.kind == Kind::Pointwise)
    queue_->backward(op_of(stage), n * width(id), repeated(stage.in[0], 0), {}, dz, dx, accumulate);
  else if (stage.kind == Kind::Dropout)
    dropout(id, run, n, dz, dx, accumulate);
  else
    queue_->softmax_backward(n, width(id), repeated(id, 0), dz, dx, stage.kind == Kind::LogSoftmax,
                             accumulate);
}

void DevicePlan::backward_linear(int id, const DeviceRun& run) {
  const Stage& stage = graph_->stage(id);
  const Parameter& w = graph_->parameter(stage.weight_id);
  const Index n = rows(), out = w.shape[0], in = w.shape[1];
  const DeviceOut ds = grad_of(id);
  const Slope& own = slopes_[index(id)];
  if (fusion_.pointwise[index(id)] >= 0) {
    if (!own.passed) through_fused(id, ds);
    written_[index(id)] = 1;
  }
  bool add_w = false, add_b = false, add_x = false;
  float* dw = parameter_grad(stage.weight_id, run, &add_w);
  float* db = own.summed ? nullptr : parameter_grad(stage.bias_id, run, &add_b);
  if (dw) {
    DeviceGemm g = product();
    g.m = out;
    g.n = in;
    g.k = n;
    g.a = ds;
    g.ta = true;
    g.b = stored(stage.in[0]);
    g.c = dw;
    g.accumulate = add_w;
    if (!add_b) std::swap(g.a_sums, db);
    queue_->gemm(g);
    if (const auto& mask = masks_[index(id)]; mask.data())
      queue_->binary(DeviceBinary::Mul, w.size, dw, mask.data(), dw);
  }
  if (db) queue_->column_sums(n, out, ds, db, add_b);
  if (input_grad(id, 0, &add_x)) {
    DeviceGemm g = dx_product(id, run);
    g.accumulate = add_x;
    if (!multiply_with_slope(id, g, run)) queue_->gemm(g);
  }
}

// dx = ds w
DeviceGemm DevicePlan::dx_product(int id, const DeviceRun& run) const {
  const Stage& stage = graph_->stage(id);
  DeviceGemm g = product();
  g.m = rows();
  g.n = width(stage.in[0]);
  g.k = width(id);
  g.a = grad_of(id);
  g.b = weight(id, run);
  g.c = grad_of(fusion_.base[index(stage.in[0])]);
  return g;
}

// In place: a gradient or a perturbation times h'(s) of the pointwise block fused into a Linear.
void DevicePlan::through_fused(int id, DeviceOut d) {
  const int fused = fusion_.pointwise[index(id)];
  const bool kept = stored(id).data != stored(fused).data;
  queue_->backward(op_of(graph_->stage(fused)), rows() * width(id),
                   kept ? repeated(id, 0) : DeviceIn(), kept ? DeviceIn() : repeated(fused, 0), d,
                   d, false);
}

void DevicePlan::backward_sparse(int id, const DeviceRun& run) {
  const Stage& stage = graph_->stage(id);
  const Edges& edges = *edges_[index(id)];
  const Index n = rows(), out = width(id), in = width(stage.in[0]);
  const DeviceIn dy = grad_of(id);
  bool accumulate = false;
  if (float* dw = parameter_grad(stage.weight_id, run, &accumulate))
    queue_->sparse_gradient({.rows = n,
                             .edges = graph_->parameter(stage.weight_id).size,
                             .d_out = out,
                             .d_in = in,
                             .ends = edges.ends.data(),
                             .dy = dy,
                             .x = stored(stage.in[0]),
                             .dw = dw,
                             .accumulate = accumulate});
  if (float* db = parameter_grad(stage.bias_id, run, &accumulate))
    queue_->column_sums(n, out, dy, db, accumulate);
  if (const DeviceOut dx = input_grad(id, 0, &accumulate))
    queue_->sparse({.rows = n,
                    .units = in,
                    .other = out,
                    .begin = edges.in_begin.data(),
                    .end_unit = edges.in_unit.data(),
                    .edge = edges.in_edge.data(),
                    .w = run.w + layout_.offset(stage.weight_id),
                    .x = dy,
                    .bias = nullptr,
                    .y = dx,
                    .accumulate = accumulate});
}

void DevicePlan::backward_binary(int id) {
  const Stage& stage = graph_->stage(id);
  const bool reads = stage.kind == Kind::Mul || stage.kind == Kind::Div;
  const DeviceIn a = reads ? repeated(stage.in[0], 0) : DeviceIn();
  const DeviceIn b = reads ? repeated(stage.in[1], 1) : DeviceIn();
  for (std::size_t k = 0; k < 2; ++k) {
    bool accumulate = false;
    if (const DeviceOut to = input_grad(id, k, &accumulate))
      queue_->binary_backward(binary_of(stage.kind), k == 0, rows() * width(id), a, b, grad_of(id),
                              to, accumulate);
  }
}

void DevicePlan::backward_columns(int id) {
  const Stage& stage = graph_->stage(id);
  const Index n = rows(), d = width(id);
  Index from = 0;
  for (std::size_t k = 0; k < stage.in.size(); ++k) {
    const Index in = width(stage.in[k]);
    const Index cols = stage.kind == Kind::Slice ? d : in;
    bool accumulate = false;
    if (const DeviceOut to = input_grad(id, k, &accumulate)) {
      // What a slice does not cover has no gradient from it.
      if (cols < in && !accumulate) zero(to, n * in);
      queue_->columns(
          {n, cols, grad_of(id) + from, d, to + stage.begin, in, accumulate || cols < in});
    }
    from += cols;
  }
}

}  // namespace gradstack

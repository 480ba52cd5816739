// Gradients of single samples on a device. For a linear block g_b = ds_b z_b^T, so norms and
// products follow from ds and z (Goodfellow 2015, "Efficient per-example gradient computations").
#include <algorithm>

#include "gradstack/device_plan.hpp"
#include "stage_calls.hpp"

namespace gradstack {

DeviceOuter DevicePlan::outer(int id) const {
  const Stage& stage = graph_->stage(id);
  const Parameter& w = graph_->parameter(stage.weight_id);
  DeviceOuter o;
  o.rows = rows();
  o.entries = w.size;
  o.repeats = options_.repeats;
  o.m = width(id);
  o.n = width(stage.in[0]);
  o.a = grad(id);
  o.b = value(stage.in[0]);
  if (stage.kind == Kind::SparseLinear)
    o.ends = edges_[index(id)]->ends.data();
  else
    o.mask = masks_[index(id)].data();
  return o;
}

// Whether the stage has weights whose gradients follow from what the last backward has left.
bool DevicePlan::learns(int id) const {
  const Stage& stage = graph_->stage(id);
  return stage.weight_id >= 0 && stage.kind != Kind::Nearest && reached(id);
}

void DevicePlan::per_sample_gradients(float* to) {
  const Index n = rows(), all = graph_->n_params();
  std::vector<char> written(graph_->parameters().size(), 0);
  const auto uses = [&](auto&& f) {
    for (int id = 0; id < static_cast<int>(graph_->stages().size()); ++id)
      if (learns(id)) f(id, graph_->stage(id));
  };
  uses([&](int, const Stage& stage) {
    written[index(stage.weight_id)] = 1;
    if (stage.bias_id >= 0) written[index(stage.bias_id)] = 1;
  });
  if (std::find(written.begin(), written.end(), 0) != written.end())
    queue_->zero(to, bytes_of(n * all));
  std::fill(written.begin(), written.end(), 0);
  uses([&](int id, const Stage& stage) {
    queue_->outer(outer(id), to + graph_->parameter(stage.weight_id).offset, all,
                  written[index(stage.weight_id)] != 0);
    written[index(stage.weight_id)] = 1;
    if (stage.bias_id < 0) return;
    const Index d = width(id);
    queue_->columns({n, d, grad(id), d, to + graph_->parameter(stage.bias_id).offset, all,
                     written[index(stage.bias_id)] != 0});
    written[index(stage.bias_id)] = 1;
  });
}

// ||sum_u g_u||^2 = sum of <g_u, g_v> over pairs of uses of a parameter, every pair twice but for u
// with itself.
void DevicePlan::per_sample_squared_norms(float* norms, float* scratch) {
  queue_->zero(norms, bytes_of(rows()));
  const int n = static_cast<int>(graph_->stages().size());
  for (int u = 0; u < n; ++u) {
    for (int v = u; v < n && learns(u); ++v) {
      if (!learns(v)) continue;
      const Stage &first = graph_->stage(u), &second = graph_->stage(v);
      const float factor = u == v ? 1.0F : 2.0F;
      if (first.weight_id == second.weight_id) add_products(u, v, factor, norms, scratch);
      if (first.bias_id >= 0 && first.bias_id == second.bias_id)
        queue_->row_dots({.rows = rows(),
                          .d = width(u),
                          .a = grad(u),
                          .b = grad(v),
                          .factor = factor,
                          .sums = norms,
                          .accumulate = true});
    }
  }
}

void DevicePlan::add_products(int u, int v, float factor, float* sums, float* scratch) {
  const DeviceOuter a = outer(u), b = outer(v);
  const auto dense = [](const DeviceOuter& o) { return !o.ends && !o.mask; };
  if (!dense(a) || !dense(b)) return queue_->outer_dots(a, b, factor, sums);
  // <ds_u z_u^T, ds_v z_v^T> = <ds_u, ds_v> <z_u, z_v>
  queue_->row_dots({.rows = a.rows, .d = a.n, .a = a.b, .b = b.b, .sums = scratch});
  queue_->row_dots({.rows = a.rows,
                    .d = a.m,
                    .a = a.a,
                    .b = b.a,
                    .times = scratch,
                    .factor = factor,
                    .sums = sums,
                    .accumulate = true});
}

}  // namespace gradstack

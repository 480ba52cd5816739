// backprop: every stage's variables and gradients, as arrays.
#include "bind.hpp"
#include "gradstack/program.hpp"
#include "gradstack/registry.hpp"

namespace gradstack::bindings {
namespace {

template <class T> py::array_t<T> to_rows(const Plan<T>& plan, const T* blocks, Index d) {
  py::array_t<T> rows = new_rows<T>(plan.count(), d);
  const Index lanes = plan.lanes();
  for (Index b = 0; b < plan.blocks(); ++b)
    plan.kernels().block_to_rows(plan.block_samples(b), d, lanes, blocks + b * d * lanes,
                                 rows.mutable_data() + b * lanes * d, d, false);
  return rows;
}

// This stage's own share of dC/dw: ds z^T (and ds for the bias), per sample or summed over samples.
template <class T>
py::array_t<T> stage_dw(const Graph& graph, const Stage& stage, Index in, const T* z, const T* ds,
                        Index count, bool per_sample) {
  const Index out = size_of(stage.shape), weights = graph.parameter(stage.weight_id).size;
  const Index size = weights + (stage.bias_id >= 0 ? out : 0);
  py::array_t<T> result(per_sample ? std::vector<py::ssize_t>{count, size}
                                   : std::vector<py::ssize_t>{size});
  std::fill(result.mutable_data(), result.mutable_data() + result.size(), T(0));
  for (Index s = 0; s < count; ++s) {
    T* dw = result.mutable_data() + (per_sample ? s * size : 0);
    if (stage.edges) {
      const std::int32_t* edges = stage.edges->edges().data();
      for (Index e = 0; e < weights; ++e)
        dw[e] += ds[s * out + edges[2 * e]] * z[s * in + edges[2 * e + 1]];
    }
    for (Index i = 0; i < out; ++i) {
      const T d = ds[s * out + i];
      for (Index j = 0; j < in && !stage.edges; ++j)
        if (!stage.mask || (*stage.mask)[static_cast<std::size_t>(i * in + j)])
          dw[i * in + j] += d * z[s * in + j];
      if (stage.bias_id >= 0) dw[weights + i] += d;
    }
  }
  return result;
}

template <class T>
py::dict describe_stage(Plan<T>& plan, const Graph& graph, const Stage& stage, int id,
                        bool per_sample) {
  // Views belong to the next block: their values are those of what they view.
  const auto producer = [&](int input) {
    while (graph.stage(input).kind == Kind::Reshape) input = graph.stage(input).in[0];
    return input;
  };
  py::dict row;
  py::list z, dz, inputs, shapes;
  for (int input : stage.in) {
    const Variable<T>& v = plan.variable(input);
    z.append(to_rows(plan, v.value, v.d));
    dz.append(to_rows(plan, v.grad, v.d));
    inputs.append(graph.stage(producer(input)).name);
    shapes.append(py::cast(graph.stage(input).shape));
  }
  const Variable<T>& out = plan.variable(id);
  row["name"] = stage.name;
  row["kind"] = kind_name(stage.kind);
  row["inputs"] = inputs;
  row["z"] = z;
  row["dz"] = dz;
  row["out"] = to_rows(plan, out.value, out.d);
  const py::array_t<T> dout = to_rows(plan, out.grad, out.d);
  row["dout"] = dout;
  py::list params;
  for (int parameter : {stage.weight_id, stage.bias_id})
    if (parameter >= 0)
      params.append(
          py::make_tuple(graph.parameter(parameter).offset, graph.parameter(parameter).size));
  row["params"] = params;
  row["dw"] = py::none();
  if (stage.kind == Kind::Linear || stage.kind == Kind::SparseLinear)
    row["dw"] = stage_dw(graph, stage, plan.variable(stage.in[0]).d, py::array_t<T>(z[0]).data(),
                         dout.data(), plan.count(), per_sample);
  return row;
}

template <class T>
py::dict backprop(Program<T>& program, const py::object& w, const std::vector<py::object>& xs,
                  const py::object& y, std::shared_ptr<Cost<T>> cost, bool per_sample) {
  const Graph& graph = program.graph();
  if (graph.stage(graph.outputs()[0]).kind == Kind::Nearest)
    throw py::value_error(
        "backprop: the output of NearestNeighbour is discrete and has no gradient");
  const T* weights = vector_view<T>(w, "w", graph.n_params(), false);
  const auto [batch, target] = make_batch(graph, xs, y, py::none(), *cost);
  PlanOptions options;
  options.batch = batch.count;
  options.fuse = false;
  options.want_dx = true;
  Objective<T> objective(program.shared_graph(), program.kernels(), options, cost, target);
  Plan<T>& plan = objective.plan();
  const Index d = plan.variable(graph.outputs()[0]).d;
  const double unit =
      cost->reduction() == Reduction::Mean ? 1.0 / total_weight(*cost, batch) : cost->sum_factor(d);
  std::vector<T> dw(static_cast<std::size_t>(graph.n_params()));
  TeamError error;
  Run<T> run;
  run.w = weights;
  run.dw = dw.data();
  run.error = &error;
  {
    const py::gil_scoped_release release;
    const Worker alone;
    objective.select(batch, 0, batch.count, per_sample ? 1.0 : unit);
    objective.load(batch, alone, false);
    objective.evaluate(run, alone);
    objective.backward(run, alone);
  }
  error.rethrow();
  py::dict result;
  result["loss"] = objective.weighted_loss() * unit;
  const Variable<T>& ybar = plan.variable(graph.outputs()[0]);
  result["ybars"] = py::make_tuple(to_rows(plan, ybar.value, ybar.d));
  result["dybars"] = py::make_tuple(to_rows(plan, ybar.grad, ybar.d));
  py::list stages;
  for (std::size_t id = 0; id < graph.stages().size(); ++id) {
    const Stage& stage = graph.stages()[id];
    if (stage.kind == Kind::Input || stage.kind == Kind::Reshape) continue;
    stages.append(describe_stage(plan, graph, stage, static_cast<int>(id), per_sample));
  }
  result["stages"] = stages;
  return result;
}

}  // namespace

template <class T> void bind_backprop(py::module_& m) {
  auto program = py::reinterpret_borrow<py::object>(m.attr("Program"));
  program.attr("backprop") =
      py::cpp_function(&backprop<T>, py::name("backprop"), py::is_method(program), py::arg("w"),
                       py::arg("xs"), py::arg("y"), py::arg("cost"), py::arg("per_sample") = false);
}

template void bind_backprop<float>(py::module_&);
template void bind_backprop<double>(py::module_&);

}  // namespace gradstack::bindings

// The tables that Python names are generated from, and what is in use.
#include "bind.hpp"
#include "gradstack/costs.hpp"
#include "gradstack/ops.hpp"
#include "gradstack/parallel.hpp"
#include "gradstack/registry.hpp"
#include "gradstack/updates.hpp"

#ifndef GRADSTACK_VERSION
#error "GRADSTACK_VERSION comes from the build"
#endif

namespace gradstack::bindings {
namespace {

py::list named_values(const Param* params, int n) {
  py::list list;
  for (int i = 0; i < n; ++i) list.append(py::make_tuple(params[i].name, params[i].value));
  return list;
}

py::list ops() {
  py::list rows;
  for (int id = 0; id < kNumOps; ++id) {
    const OpInfo& info = op_info(id);
    py::dict row;
    row["name"] = info.name;
    row["module"] = info.module;
    row["params"] = named_values(info.params, info.n_params);
    row["c"] = op_c(id);
    rows.append(row);
  }
  return rows;
}

const char* target_name(TargetKind kind) {
  switch (kind) {
    case TargetKind::kDense:
      return "dense";
    case TargetKind::kLabels:
      return "label";
    case TargetKind::kLabelsOrDense:
      return "label_or_dense";
    default:
      return "none";
  }
}

py::list costs() {
  py::list rows;
  for (int id = 0; id < kNumCosts; ++id) {
    const CostInfo& info = cost_info(id);
    py::dict row;
    row["name"] = info.name;
    row["params"] = named_values(info.params, info.n_params);
    row["target"] = target_name(info.target);
    row["ybar_per_y"] = info.ybar_per_y;
    row["y_extra"] = info.y_extra;
    row["class_weights"] = info.class_weights;
    row["gradient"] = info.has_gradient;
    rows.append(row);
  }
  return rows;
}

py::list rules() {
  py::list rows;
  for (int id = 0; id < kNumRules; ++id) {
    const UpdateInfo& info = rule_info(id);
    py::dict row;
    py::list states;
    for (int i = 0; i < info.n_state; ++i) states.append(info.state[i]);
    row["name"] = info.name;
    row["cls"] = info.class_name;
    row["lr"] = info.lr;
    row["hyper"] = named_values(info.hyper, info.n_hyper);
    row["states"] = states;
    rows.append(row);
  }
  return rows;
}

py::dict show_config() {
  const BackendChoice& choice = backend_choice();
  py::dict config;
  config["version"] = GRADSTACK_VERSION;
  config["backend"] = choice.backend;
  config["isa"] = choice.isa;
  config["reason"] = choice.reason;
  config["available"] = choice.available;
  config["max_threads"] = max_threads();
  return config;
}

}  // namespace

void bind_config(py::module_& m) {
  m.attr("__version__") = GRADSTACK_VERSION;
  m.def("ops", &ops);
  m.def("costs", &costs);
  m.def("rules", &rules);
  m.def("show_config", &show_config);
  m.def("max_threads", &max_threads);
}

}  // namespace gradstack::bindings

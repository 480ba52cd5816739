// Programs of every kind of device as Python sees them.
#pragma once

#include "bind.hpp"
#include "gradstack/program.hpp"

namespace gradstack::bindings {

template <class T>
py::list new_outputs(const Graph& graph, Index count, std::vector<T*>* pointers) {
  py::list arrays;
  for (int id : graph.outputs()) {
    py::array_t<T> rows = new_rows<T>(count, size_of(graph.stage(id).shape));
    pointers->push_back(rows.mutable_data());
    arrays.append(rows);
  }
  return arrays;
}

// One array or None per input or output.
template <class T>
std::vector<const T*> optional_rows(const Graph& graph, const std::vector<int>& ids,
                                    const std::vector<py::object>& arrays, const char* name,
                                    Index count) {
  if (arrays.size() != ids.size())
    throw py::value_error(std::string(name) + ": got " + std::to_string(arrays.size()) +
                          " arrays, expected " + std::to_string(ids.size()));
  std::vector<const T*> rows;
  for (std::size_t i = 0; i < ids.size(); ++i)
    rows.push_back(arrays[i].is_none()
                       ? nullptr
                       : dense_rows<T>(arrays[i], name, count, size_of(graph.stage(ids[i]).shape)));
  return rows;
}

template <class T, class P>
py::list forward(P& program, const py::object& w, const std::vector<py::object>& xs,
                 const CallOptions& options, const py::object& outs) {
  const Graph& graph = program.graph();
  Index count = 0;
  const std::vector<RowSource> views = input_views(graph, xs, &count);
  const T* weights = vector_view<T>(w, "w", graph.n_params(), false);
  std::vector<T*> pointers;
  py::list arrays;
  if (outs.is_none()) {
    arrays = new_outputs<T>(graph, count, &pointers);
  } else {
    arrays = outs.cast<py::list>();
    if (arrays.size() != graph.outputs().size())
      throw py::value_error("out: expected one array per output");
    for (std::size_t i = 0; i < arrays.size(); ++i)
      pointers.push_back(
          out_rows<T>(arrays[i], "out", count, size_of(graph.stage(graph.outputs()[i]).shape)));
  }
  const py::gil_scoped_release release;
  program.forward(weights, views, count, pointers, options);
  return arrays;
}

template <class T, class P>
py::tuple value_and_grad(P& program, const py::object& w, const std::vector<py::object>& xs,
                         const py::object& y, std::shared_ptr<Cost<T>> cost,
                         const py::object& sample_weight, const CallOptions& options) {
  const Graph& graph = program.graph();
  const T* weights = vector_view<T>(w, "w", graph.n_params(), false);
  const auto [batch, target] = make_batch(graph, xs, y, sample_weight, *cost);
  py::array_t<T> dw(graph.n_params());
  T* gradient = dw.mutable_data();
  double loss = 0;
  {
    const py::gil_scoped_release release;
    loss = program.value_and_grad(weights, batch, target, std::move(cost), gradient, options);
  }
  return py::make_tuple(loss, dw);
}

template <class T, class P>
double evaluate(P& program, const py::object& w, const std::vector<py::object>& xs,
                const py::object& y, std::shared_ptr<Cost<T>> cost, const py::object& sample_weight,
                int threads) {
  const T* weights = vector_view<T>(w, "w", program.graph().n_params(), false);
  const auto [batch, target] = make_batch(program.graph(), xs, y, sample_weight, *cost);
  CallOptions options;
  options.threads = threads;
  const py::gil_scoped_release release;
  return program.evaluate(weights, batch, target, std::move(cost), options);
}

template <class T, class L> py::list outputs(L& at) {
  std::vector<T*> pointers;
  py::list arrays = new_outputs<T>(at.graph(), at.count(), &pointers);
  const py::gil_scoped_release release;
  for (std::size_t i = 0; i < pointers.size(); ++i) at.output(i, pointers[i]);
  return arrays;
}

template <class T, class L>
py::tuple pull(L& at, const std::vector<py::object>& dys, bool want_dx, bool want_dw) {
  const Graph& graph = at.graph();
  const std::vector<const T*> cotangents =
      optional_rows<T>(graph, graph.outputs(), dys, "dy", at.count());
  std::vector<T*> dxs(graph.inputs().size(), nullptr);
  py::list dx_arrays;
  for (std::size_t i = 0; want_dx && i < dxs.size(); ++i) {
    py::array_t<T> rows = new_rows<T>(at.count(), size_of(graph.stage(graph.inputs()[i]).shape));
    dxs[i] = rows.mutable_data();
    dx_arrays.append(rows);
  }
  py::array_t<T> dw(want_dw ? graph.n_params() : 0);
  T* gradient = want_dw ? dw.mutable_data() : nullptr;
  {
    const py::gil_scoped_release release;
    at.vjp(cotangents, dxs, gradient);
  }
  return py::make_tuple(want_dx ? py::object(dx_arrays) : py::object(py::none()),
                        want_dw ? py::object(dw) : py::object(py::none()));
}

template <class T, class L>
py::list push(L& at, const std::vector<py::object>& dxs, const py::object& dw) {
  const Graph& graph = at.graph();
  const std::vector<const T*> tangents =
      optional_rows<T>(graph, graph.inputs(), dxs, "dx", at.count());
  const T* direction = dw.is_none() ? nullptr : vector_view<T>(dw, "dw", graph.n_params(), false);
  std::vector<T*> pointers;
  py::list arrays = new_outputs<T>(graph, at.count(), &pointers);
  const py::gil_scoped_release release;
  at.jvp(tangents, direction, pointers);
  return arrays;
}

inline CallOptions call_options(bool train, std::uint64_t seed, std::int64_t step, int threads) {
  return {train, seed, step, threads};
}

// What all programs offer. P is Program<T> or has its members, L is its linearisation.
template <class T, class L> void def_linearization(py::class_<L>& linearization) {
  using py::arg;
  linearization.def_property_readonly("outputs", &outputs<T, L>)
      .def("pull", &pull<T, L>, arg("dys"), arg("want_dx") = true, arg("want_dw") = true)
      .def("push", &push<T, L>, arg("dxs"), arg("dw") = py::none());
}

template <class T, class P> void def_program(py::module_& m, py::class_<P>& program) {
  using py::arg;
  program
      .def(
          "forward",
          [](P& p, const py::object& w, const std::vector<py::object>& xs, bool train,
             std::uint64_t seed, std::int64_t step, int threads, const py::object& outs) {
            return forward<T>(p, w, xs, call_options(train, seed, step, threads), outs);
          },
          arg("w"), arg("xs"), py::kw_only(), arg("train") = false, arg("seed") = 0,
          arg("step") = 0, arg("threads") = 0, arg("outs") = py::none())
      .def(
          "value_and_grad",
          [](P& p, const py::object& w, const std::vector<py::object>& xs, const py::object& y,
             std::shared_ptr<Cost<T>> cost, const py::object& sample_weight, bool train,
             std::uint64_t seed, std::int64_t step, int threads) {
            return value_and_grad<T>(p, w, xs, y, std::move(cost), sample_weight,
                                     call_options(train, seed, step, threads));
          },
          arg("w"), arg("xs"), arg("y"), arg("cost"), arg("sample_weight") = py::none(),
          py::kw_only(), arg("train") = false, arg("seed") = 0, arg("step") = 0,
          arg("threads") = 0);
  m.def("evaluate", &evaluate<T, P>, arg("program"), arg("w"), arg("X"), arg("y"), arg("cost"),
        arg("sample_weight") = py::none(), arg("threads") = 0);
}

}  // namespace gradstack::bindings

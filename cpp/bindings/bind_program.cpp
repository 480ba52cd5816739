#include "gradstack/registry.hpp"
#include "py_program.hpp"

namespace gradstack::bindings {
namespace {

template <class T>
std::unique_ptr<Linearization<T>> linearize(Program<T>& program, const py::object& w,
                                            const std::vector<py::object>& xs, bool tangents,
                                            const CallOptions& options) {
  Index count = 0;
  const std::vector<RowSource> views = input_views(program.graph(), xs, &count);
  const T* weights = vector_view<T>(w, "w", program.graph().n_params(), false);
  const py::gil_scoped_release release;
  return std::make_unique<Linearization<T>>(program.shared_graph(), program.kernels(), weights,
                                            views, count, tangents, options);
}

template <class T>
py::list push(Linearization<T>& at, const std::vector<py::object>& dxs, const py::object& dw) {
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

}  // namespace

template <class T> void bind_program(py::module_& m) {
  using py::arg;
  py::class_<Linearization<T>> linearization(m, "Linearization");
  def_linearization<T>(linearization);
  linearization.def("push", &push<T>, arg("dxs"), arg("dw") = py::none());
  py::class_<Program<T>> program(m, "Program");
  program
      .def(py::init([](const std::shared_ptr<Graph>& graph) {
             if (!graph->finished()) throw py::value_error("graph: finish() comes first");
             return std::make_unique<Program<T>>(graph, active_kernels<T>());
           }),
           arg("graph"))
      .def(
          "vjp",
          [](Program<T>& p, const py::object& w, const std::vector<py::object>& xs, bool train,
             std::uint64_t seed, std::int64_t step, int threads) {
            return linearize(p, w, xs, false, call_options(train, seed, step, threads));
          },
          arg("w"), arg("xs"), py::kw_only(), arg("train") = false, arg("seed") = 0,
          arg("step") = 0, arg("threads") = 0)
      .def(
          "linearize",
          [](Program<T>& p, const py::object& w, const std::vector<py::object>& xs, bool train,
             std::uint64_t seed, std::int64_t step, int threads) {
            return linearize(p, w, xs, true, call_options(train, seed, step, threads));
          },
          arg("w"), arg("xs"), py::kw_only(), arg("train") = false, arg("seed") = 0,
          arg("step") = 0, arg("threads") = 0)
      .def(
          "jvp",
          [](Program<T>& p, const py::object& w, const std::vector<py::object>& xs,
             const std::vector<py::object>& dxs, const py::object& dw) {
            const auto at = linearize(p, w, xs, true, CallOptions{});
            return py::make_tuple(outputs<T>(*at), push(*at, dxs, dw));
          },
          arg("w"), arg("xs"), arg("dxs"), arg("dw") = py::none());
  def_program<T>(m, program);
}

template void bind_program<float>(py::module_&);
template void bind_program<double>(py::module_&);

}  // namespace gradstack::bindings

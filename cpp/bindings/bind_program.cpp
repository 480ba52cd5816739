#include "bind.hpp"
#include "gradstack/program.hpp"
#include "gradstack/registry.hpp"
#include "short_call.hpp"

namespace gradstack::bindings {
namespace {

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

template <class T>
py::list forward(Program<T>& program, const py::object& w, const std::vector<py::object>& xs,
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

template <class T>
py::tuple value_and_grad(Program<T>& program, const py::object& w,
                         const std::vector<py::object>& xs, const py::object& y,
                         std::shared_ptr<Cost<T>> cost, const py::object& sample_weight,
                         const CallOptions& options) {
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

template <class T>
double evaluate(Program<T>& program, const py::object& w, const std::vector<py::object>& xs,
                const py::object& y, std::shared_ptr<Cost<T>> cost, const py::object& sample_weight,
                int threads) {
  const T* weights = vector_view<T>(w, "w", program.graph().n_params(), false);
  const auto [batch, target] = make_batch(program.graph(), xs, y, sample_weight, *cost);
  CallOptions options;
  options.threads = threads;
  const py::gil_scoped_release release;
  return program.evaluate(weights, batch, target, std::move(cost), options);
}

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

template <class T> py::list outputs(Linearization<T>& at) {
  std::vector<T*> pointers;
  py::list arrays = new_outputs<T>(at.graph(), at.count(), &pointers);
  for (std::size_t i = 0; i < pointers.size(); ++i) at.output(i, pointers[i]);
  return arrays;
}

template <class T>
py::tuple pull(Linearization<T>& at, const std::vector<py::object>& dys, bool want_dx,
               bool want_dw) {
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

// Predictions in evaluation mode.
template <class T> class ProgramCall final : public ArrayCall<T> {
 public:
  ProgramCall(Program<T>& program, py::object owner, const py::object& w, bool tuple)
      : ArrayCall<T>(program.graph(), w, output_shapes(program.graph()), tuple,
                     2.0 * static_cast<double>(program.graph().n_params())),
        program_(program),
        owner_(std::move(owner)) {}

 private:
  static std::vector<std::vector<Index>> output_shapes(const Graph& graph) {
    std::vector<std::vector<Index>> shapes;
    for (const int id : graph.outputs()) shapes.push_back(graph.stage(id).shape);
    return shapes;
  }
  void run(const T* w, const T* const* xs, Index count, T* const* outs, bool) override {
    program_.forward(w, xs, count, outs, CallOptions{});
  }

  Program<T>& program_;
  py::object owner_;
};

// Loss and gradient of batches like the one before: f(x, y, sample_weight) -> (loss, dw).
template <class T> class GradientCall final : public ShortCall {
 public:
  GradientCall(const py::object& program, const py::object& w, std::shared_ptr<Cost<T>> cost,
               const py::object& y)
      : owner_(program),
        program_(program.cast<Program<T>&>()),
        w_(w),
        weights_(vector_view<T>(w, "w", program_.graph().n_params(), false)),
        cost_(std::move(cost)),
        user_code_(has_user_code(program_.graph()) || !cost_->by_block()),
        reader_(program_.graph(), y),
        dw_({program_.graph().n_params()}) {}

  py::object call(PyObject* const* args, std::size_t n, PyObject* names) override {
    Batch batch;
    if (n != 3 || names || !reader_.read(args[0], args[1], args[2], &batch)) return py::none();
    T* to = nullptr;
    const py::object dw = dw_.make({1, true}, &to);
    const auto evaluate = [&] {
      return program_.value_and_grad(weights_, batch, reader_.target(), cost_, to, CallOptions{});
    };
    const double flops = 6.0 * static_cast<double>(dw_.size() * batch.count);
    double loss = 0;
    if (flops < kHeldFlops && !user_code_) {
      loss = evaluate();
    } else {
      const py::gil_scoped_release release;
      loss = evaluate();
    }
    return py::make_tuple(loss, dw);
  }

 private:
  py::object owner_;
  Program<T>& program_;
  py::object w_;
  const T* weights_;
  std::shared_ptr<Cost<T>> cost_;
  bool user_code_;
  BatchReader<T> reader_;
  Samples<T> dw_;
};

CallOptions call_options(bool train, std::uint64_t seed, std::int64_t step, int threads) {
  return {train, seed, step, threads};
}

}  // namespace

template <class T> void bind_program(py::module_& m) {
  using py::arg;
  py::class_<Linearization<T>>(m, "Linearization")
      .def_property_readonly("outputs", &outputs<T>)
      .def("pull", &pull<T>, arg("dys"), arg("want_dx") = true, arg("want_dw") = true)
      .def("push", &push<T>, arg("dxs"), arg("dw") = py::none());
  py::class_<Program<T>>(m, "Program")
      .def(py::init([](const std::shared_ptr<Graph>& graph) {
             if (!graph->finished()) throw py::value_error("graph: finish() comes first");
             return std::make_unique<Program<T>>(graph, active_kernels<T>());
           }),
           arg("graph"))
      .def(
          "forward",
          [](Program<T>& p, const py::object& w, const std::vector<py::object>& xs, bool train,
             std::uint64_t seed, std::int64_t step, int threads, const py::object& outs) {
            return forward(p, w, xs, call_options(train, seed, step, threads), outs);
          },
          arg("w"), arg("xs"), py::kw_only(), arg("train") = false, arg("seed") = 0,
          arg("step") = 0, arg("threads") = 0, arg("outs") = py::none())
      .def(
          "short_call",
          [](const py::object& self, const py::object& w, bool as_tuple) {
            return make_short_call(
                std::make_unique<ProgramCall<T>>(self.cast<Program<T>&>(), self, w, as_tuple));
          },
          arg("w"), arg("as_tuple"))
      .def(
          "short_gradient",
          [](const py::object& self, const py::object& w, std::shared_ptr<Cost<T>> cost,
             const py::object& y) {
            return make_short_call(std::make_unique<GradientCall<T>>(self, w, std::move(cost), y));
          },
          arg("w"), arg("cost"), arg("y"))
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
            return py::make_tuple(outputs(*at), push(*at, dxs, dw));
          },
          arg("w"), arg("xs"), arg("dxs"), arg("dw") = py::none())
      .def(
          "value_and_grad",
          [](Program<T>& p, const py::object& w, const std::vector<py::object>& xs,
             const py::object& y, std::shared_ptr<Cost<T>> cost, const py::object& sample_weight,
             bool train, std::uint64_t seed, std::int64_t step, int threads) {
            return value_and_grad(p, w, xs, y, std::move(cost), sample_weight,
                                  call_options(train, seed, step, threads));
          },
          arg("w"), arg("xs"), arg("y"), arg("cost"), arg("sample_weight") = py::none(),
          py::kw_only(), arg("train") = false, arg("seed") = 0, arg("step") = 0,
          arg("threads") = 0);
  m.def("evaluate", &evaluate<T>, arg("program"), arg("w"), arg("X"), arg("y"), arg("cost"),
        arg("sample_weight") = py::none(), arg("threads") = 0);
}

template void bind_program<float>(py::module_&);
template void bind_program<double>(py::module_&);

}  // namespace gradstack::bindings

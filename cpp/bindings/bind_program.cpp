#include "gradstack/registry.hpp"
#include "py_program.hpp"
#include "short_call.hpp"

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

}  // namespace

template <class T> void bind_program(py::module_& m) {
  using py::arg;
  py::class_<Linearization<T>> linearization(m, "Linearization");
  def_linearization<T>(linearization);
  py::class_<Program<T>> program(m, "Program");
  program
      .def(py::init([](const std::shared_ptr<Graph>& graph) {
             if (!graph->finished()) throw py::value_error("graph: finish() comes first");
             return std::make_unique<Program<T>>(graph, active_kernels<T>());
           }),
           arg("graph"))
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
            return py::make_tuple(outputs<T>(*at), push<T>(*at, dxs, dw));
          },
          arg("w"), arg("xs"), arg("dxs"), arg("dw") = py::none());
  def_program<T>(m, program);
}

template void bind_program<float>(py::module_&);
template void bind_program<double>(py::module_&);

}  // namespace gradstack::bindings

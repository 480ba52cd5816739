// Jacobians, per-sample gradients, curvature products, derivatives with respect to the input.
#include "gradstack/registry.hpp"
#include "py_calculus.hpp"

namespace gradstack::bindings {
namespace {

template <class T> class JacobianCall final : public ArrayCall<T> {
 public:
  using J = PyJacobian<T, Jacobian<T>>;
  JacobianCall(J& jacobian, py::object owner, const py::object& w)
      : ArrayCall<T>(jacobian.graph(), w, {{jacobian.core().rows(), jacobian.core().cols()}}, false,
                     flops(jacobian)),
        jacobian_(jacobian),
        owner_(std::move(owner)) {}

 private:
  static double flops(const J& jacobian) {
    const Index products = 1 + std::min(jacobian.core().rows(), jacobian.core().cols());
    return 2.0 * static_cast<double>(jacobian.graph().n_params() * products);
  }
  void run(const T* w, const T* const* xs, Index count, T* const* outs, bool gil) override {
    jacobian_.evaluate(w, xs, count, outs[0], gil);
  }

  J& jacobian_;
  py::object owner_;
};

template <class T>
std::unique_ptr<InputDerivatives<T>> input_derivatives(const std::shared_ptr<Graph>& graph,
                                                       const py::object& w, const py::object& x,
                                                       int order, int threads) {
  if (graph->inputs().size() != 1 || graph->outputs().size() != 1)
    throw py::value_error("derivatives: expected a net with one input and one output");
  Index count = 0;
  const std::vector<RowSource> views = input_views(*graph, {x}, &count);
  if (count == 0) throw py::value_error("x: expected at least one sample");
  const T* weights = vector_view<T>(w, "w", graph->n_params(), false);
  const py::gil_scoped_release release;
  return std::make_unique<InputDerivatives<T>>(graph, active_kernels<T>(), weights, views[0], count,
                                               order, threads);
}

template <class T>
const T* cotangent(const py::object& object, const char* name, Index count, Index d) {
  return object.is_none() ? nullptr : dense_rows<T>(object, name, count, d);
}

}  // namespace

template <class T> void bind_calculus(py::module_& m) {
  using py::arg;
  using J = PyJacobian<T, Jacobian<T>>;
  py::class_<J> dense(m, "Jacobian");
  dense
      .def(py::init(
               [](const std::shared_ptr<Graph>& graph, const py::object& wrt, std::size_t output) {
                 return std::make_unique<J>(
                     graph, std::make_unique<Jacobian<T>>(graph, active_kernels<T>(),
                                                          wrt_stage(*graph, wrt), output));
               }),
           arg("graph"), arg("wrt"), arg("output") = 0)
      .def(
          "short_call",
          [](const py::object& self, const py::object& w) {
            return make_short_call(std::make_unique<JacobianCall<T>>(self.cast<J&>(), self, w));
          },
          arg("w"));
  def_jacobian(dense);

  using S = PyPerSample<T, PerSample<T>>;
  py::class_<S> per_sample(m, "PerSample");
  per_sample.def(
      py::init([](const std::shared_ptr<Graph>& graph, const std::shared_ptr<Cost<T>>& cost) {
        return std::make_unique<S>(graph, cost, [graph, cost](TargetSpec spec) {
          return std::make_unique<PerSample<T>>(graph, active_kernels<T>(), cost, spec);
        });
      }),
      arg("graph"), arg("cost"));
  def_per_sample(per_sample);

  using C = PyCurvature<T, Curvature<T>>;
  py::class_<C> curvature(m, "Curvature");
  curvature.def(py::init([](const std::shared_ptr<Graph>& graph,
                            const std::shared_ptr<Cost<T>>& cost, const std::string& name) {
                  if (name != "hessian" && name != "ggn")
                    throw py::value_error("kind: expected 'hessian' or 'ggn'");
                  using Kind = typename Curvature<T>::Kind;
                  const Kind kind = name == "hessian" ? Kind::Hessian : Kind::GaussNewton;
                  return std::make_unique<C>(graph, cost, [graph, cost, kind](TargetSpec spec) {
                    return std::make_unique<Curvature<T>>(graph, active_kernels<T>(), cost, spec,
                                                          kind);
                  });
                }),
                arg("graph"), arg("cost"), arg("kind"));
  def_curvature(curvature);

  using D = InputDerivatives<T>;
  py::class_<D>(m, "InputDerivatives")
      .def(py::init(&input_derivatives<T>), arg("graph"), arg("w"), arg("x"), arg("order"),
           arg("threads") = 0)
      .def("values",
           [](D& d) {
             py::array_t<T> y = new_rows<T>(d.count(), d.out());
             d.values(y.mutable_data());
             return y;
           })
      .def("directional",
           [](D& d) {
             const std::vector<py::ssize_t> shape{d.count(), d.out(), d.in()};
             py::array_t<T> jacobian(shape),
                 diagonal(d.order() > 1 ? shape : std::vector<py::ssize_t>{0});
             T *first = jacobian.mutable_data(),
               *second = d.order() > 1 ? diagonal.mutable_data() : nullptr;
             {
               const py::gil_scoped_release release;
               d.directional(first, second);
             }
             return py::make_tuple(jacobian,
                                   second ? py::object(diagonal) : py::object(py::none()));
           })
      .def("hessian",
           [](D& d) {
             py::array_t<T> hessian({d.count(), d.out(), d.in(), d.in()});
             T* to = hessian.mutable_data();
             {
               const py::gil_scoped_release release;
               d.hessian(to);
             }
             return hessian;
           })
      .def(
          "pullback",
          [](D& d, const py::object& dy, const py::object& djac, const py::object& ddiag) {
            // djac and ddiag come as (B, out * in) rows.
            const T* y = cotangent<T>(dy, "dy", d.count(), d.out());
            const T* jac = cotangent<T>(djac, "djac", d.count(), d.out() * d.in());
            const T* diag = cotangent<T>(ddiag, "ddiag", d.count(), d.out() * d.in());
            py::array_t<T> dx = new_rows<T>(d.count(), d.in()), dw(d.n_params());
            T *to_x = dx.mutable_data(), *to_w = dw.mutable_data();
            {
              const py::gil_scoped_release release;
              d.pullback(y, jac, diag, to_x, to_w);
            }
            return py::make_tuple(dx, dw);
          },
          arg("dy") = py::none(), arg("djac") = py::none(), arg("ddiag") = py::none());
}

template void bind_calculus<float>(py::module_&);
template void bind_calculus<double>(py::module_&);

}  // namespace gradstack::bindings

// Jacobians, per-sample gradients, curvature products, derivatives with respect to the input.
#include "bind.hpp"
#include "gradstack/calculus.hpp"
#include "gradstack/mlp.hpp"
#include "gradstack/registry.hpp"
#include "short_call.hpp"

namespace gradstack::bindings {
namespace {

// A fresh array, or the caller's `out` if it has the shape.
template <class T>
py::array_t<T> result_array(const py::object& out, const std::vector<py::ssize_t>& shape) {
  if (out.is_none()) return py::array_t<T>(shape);
  if (!py::isinstance<py::array_t<T>>(out))
    throw py::type_error("out: expected an array of the net's dtype");
  auto array = py::reinterpret_borrow<py::array_t<T>>(out);
  if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) != shape ||
      (array.flags() & py::array::c_style) == 0 || !array.writeable())
    throw py::value_error("out: expected a writable contiguous array of shape " +
                          py::str(py::tuple(py::cast(shape))).template cast<std::string>());
  return array;
}

// What to differentiate by: "w", an input's number, or the name of a stage, meaning its input z_k
// (of several: (name, number)).
int wrt_stage(const Graph& graph, const py::object& wrt) {
  if (py::isinstance<py::int_>(wrt)) {
    const auto i = wrt.cast<std::size_t>();
    if (i >= graph.inputs().size()) throw py::value_error("wrt: the net has no such input");
    return graph.inputs()[i];
  }
  const bool numbered = py::isinstance<py::tuple>(wrt);
  const auto name = (numbered ? wrt[py::int_(0)] : py::object(wrt)).cast<std::string>();
  if (!numbered && name == "w") return Jacobian<float>::kParameters;
  const Stage& stage = graph.stage(graph.find(name));
  const auto i = numbered ? wrt[py::int_(1)].cast<std::size_t>() : std::size_t{0};
  if (i >= stage.in.size() || (!numbered && stage.in.size() != 1))
    throw py::value_error("wrt: block '" + name + "' has " + std::to_string(stage.in.size()) +
                          " inputs" + (numbered ? "" : ", expected one"));
  int id = stage.in[i];
  while (graph.stage(id).kind == Kind::Reshape) id = graph.stage(id).in[0];
  return id;
}

template <class T> class PyJacobian {
 public:
  PyJacobian(std::shared_ptr<Graph> graph, const py::object& wrt, std::size_t output)
      : graph_(graph), jacobian_(graph, active_kernels<T>(), wrt_stage(*graph, wrt), output) {}

  py::array_t<T> evaluate(const py::object& w, const std::vector<py::object>& xs,
                          const py::object& out, int threads) {
    Index count = 0;
    const std::vector<RowSource> views = input_views(*graph_, xs, &count);
    const T* weights = vector_view<T>(w, "w", graph_->n_params(), false);
    py::array_t<T> array = result_array<T>(out, {count, jacobian_.rows(), jacobian_.cols()});
    T* to = array.mutable_data();
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    jacobian_.evaluate(weights, views, count, to, threads);
    return array;
  }

  // Rows of T without gaps; with the GIL held or not.
  void evaluate(const T* w, const T* const* xs, Index count, T* to, bool gil) {
    std::vector<RowSource> views;
    for (std::size_t i = 0; i < graph_->inputs().size(); ++i)
      views.push_back(rows_of(xs[i], count, size_of(graph_->stage(graph_->inputs()[i]).shape)));
    const auto lock = gil ? lock_with_gil(mutex_) : std::unique_lock<std::mutex>(mutex_);
    jacobian_.evaluate(w, views, count, to, 0);
  }

  const Graph& graph() const { return *graph_; }
  const Jacobian<T>& core() const { return jacobian_; }

 private:
  std::shared_ptr<Graph> graph_;
  Jacobian<T> jacobian_;
  std::mutex mutex_;
};

template <class T> class JacobianCall final : public ArrayCall<T> {
 public:
  JacobianCall(PyJacobian<T>& jacobian, py::object owner, const py::object& w)
      : ArrayCall<T>(jacobian.graph(), w, {{jacobian.core().rows(), jacobian.core().cols()}}, false,
                     flops(jacobian)),
        jacobian_(jacobian),
        owner_(std::move(owner)) {}

 private:
  static double flops(const PyJacobian<T>& jacobian) {
    const Index products = 1 + std::min(jacobian.core().rows(), jacobian.core().cols());
    return 2.0 * static_cast<double>(jacobian.graph().n_params() * products);
  }
  void run(const T* w, const T* const* xs, Index count, T* const* outs, bool gil) override {
    jacobian_.evaluate(w, xs, count, outs[0], gil);
  }

  PyJacobian<T>& jacobian_;
  py::object owner_;
};

// The core object for the kind of target seen last; made anew when that changes.
template <class T, class Core> class ByTarget {
 public:
  template <class Make> Core& get(TargetSpec spec, Make&& make) {
    if (!core_ || spec.dy != spec_.dy || spec.labels != spec_.labels) core_ = make(spec);
    spec_ = spec;
    return *core_;
  }
  std::mutex mutex;

 private:
  std::unique_ptr<Core> core_;
  TargetSpec spec_;
};

template <class T> class PyPerSample {
 public:
  PyPerSample(std::shared_ptr<Graph> graph, std::shared_ptr<Cost<T>> cost)
      : graph_(std::move(graph)), cost_(std::move(cost)) {}

  py::array_t<T> gradients(const py::object& w, const std::vector<py::object>& xs,
                           const py::object& y, const py::object& out, int threads) {
    const Index count = xs.empty() ? 0 : static_cast<Index>(py::len(xs[0]));
    return call(w, xs, y, result_array<T>(out, {count, graph_->n_params()}),
                [&](PerSample<T>& core, const T* at, const Batch& batch, T* to) {
                  core.gradients(at, batch, to, threads);
                });
  }
  py::array_t<T> norms(const py::object& w, const std::vector<py::object>& xs, const py::object& y,
                       int threads) {
    return call(w, xs, y, py::array_t<T>(static_cast<py::ssize_t>(py::len(xs.at(0)))),
                [&](PerSample<T>& core, const T* at, const Batch& batch, T* to) {
                  core.norms(at, batch, to, threads);
                });
  }
  py::array_t<T> clipped(const py::object& w, const std::vector<py::object>& xs,
                         const py::object& y, double max_norm, int threads) {
    if (!(max_norm > 0)) throw py::value_error("max_norm: expected a number > 0");
    return call(w, xs, y, py::array_t<T>(graph_->n_params()),
                [&](PerSample<T>& core, const T* at, const Batch& batch, T* to) {
                  core.clipped(at, batch, max_norm, to, threads);
                });
  }
  py::array_t<T> fisher_diagonal(const py::object& w, const std::vector<py::object>& xs,
                                 const py::object& y, int threads) {
    return call(w, xs, y, py::array_t<T>(graph_->n_params()),
                [&](PerSample<T>& core, const T* at, const Batch& batch, T* to) {
                  core.fisher_diagonal(at, batch, to, threads);
                });
  }
  py::array_t<T> fisher_product(const py::object& w, const std::vector<py::object>& xs,
                                const py::object& y, const py::object& v, int threads) {
    const T* direction = vector_view<T>(v, "v", graph_->n_params(), false);
    return call(w, xs, y, py::array_t<T>(graph_->n_params()),
                [&](PerSample<T>& core, const T* at, const Batch& batch, T* to) {
                  core.fisher_product(at, batch, direction, to, threads);
                });
  }

 private:
  template <class F>
  py::array_t<T> call(const py::object& w, const std::vector<py::object>& xs, const py::object& y,
                      py::array_t<T> out, F&& f) {
    const T* weights = vector_view<T>(w, "w", graph_->n_params(), false);
    const auto made = make_batch(*graph_, xs, y, py::none(), *cost_);
    const Batch& batch = made.first;
    T* to = out.mutable_data();
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(cores_.mutex);
    f(cores_.get(made.second,
                 [&](TargetSpec spec) {
                   return std::make_unique<PerSample<T>>(graph_, active_kernels<T>(), cost_, spec);
                 }),
      weights, batch, to);
    return out;
  }

  std::shared_ptr<Graph> graph_;
  std::shared_ptr<Cost<T>> cost_;
  ByTarget<T, PerSample<T>> cores_;
};

template <class T> class PyCurvature {
 public:
  PyCurvature(std::shared_ptr<Graph> graph, std::shared_ptr<Cost<T>> cost, const std::string& kind)
      : graph_(std::move(graph)),
        cost_(std::move(cost)),
        kind_(kind == "hessian" ? Curvature<T>::Kind::Hessian : Curvature<T>::Kind::GaussNewton) {
    if (kind != "hessian" && kind != "ggn")
      throw py::value_error("kind: expected 'hessian' or 'ggn'");
  }

  py::array_t<T> product(const py::object& w, const std::vector<py::object>& xs,
                         const py::object& y, const py::object& v, const py::object& sample_weight,
                         int threads) {
    const T* weights = vector_view<T>(w, "w", graph_->n_params(), false);
    const T* direction = vector_view<T>(v, "v", graph_->n_params(), false);
    const auto made = make_batch(*graph_, xs, y, sample_weight, *cost_);
    py::array_t<T> out(graph_->n_params());
    T* to = out.mutable_data();
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(cores_.mutex);
    cores_
        .get(made.second,
             [&](TargetSpec spec) {
               return std::make_unique<Curvature<T>>(graph_, active_kernels<T>(), cost_, spec,
                                                     kind_);
             })
        .product(weights, made.first, direction, to, threads);
    return out;
  }

 private:
  std::shared_ptr<Graph> graph_;
  std::shared_ptr<Cost<T>> cost_;
  typename Curvature<T>::Kind kind_;
  ByTarget<T, Curvature<T>> cores_;
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
  using J = PyJacobian<T>;
  py::class_<J>(m, "Jacobian")
      .def(py::init<std::shared_ptr<Graph>, const py::object&, std::size_t>(), arg("graph"),
           arg("wrt"), arg("output") = 0)
      .def("evaluate",
           py::overload_cast<const py::object&, const std::vector<py::object>&, const py::object&,
                             int>(&J::evaluate),
           arg("w"), arg("xs"), arg("out") = py::none(), arg("threads") = 0)
      .def(
          "short_call",
          [](const py::object& self, const py::object& w) {
            return make_short_call(std::make_unique<JacobianCall<T>>(self.cast<J&>(), self, w));
          },
          arg("w"));
  using S = PyPerSample<T>;
  py::class_<S>(m, "PerSample")
      .def(py::init<std::shared_ptr<Graph>, std::shared_ptr<Cost<T>>>(), arg("graph"), arg("cost"))
      .def("gradients", &S::gradients, arg("w"), arg("xs"), arg("y"), arg("out") = py::none(),
           arg("threads") = 0)
      .def("norms", &S::norms, arg("w"), arg("xs"), arg("y"), arg("threads") = 0)
      .def("clipped", &S::clipped, arg("w"), arg("xs"), arg("y"), arg("max_norm"),
           arg("threads") = 0)
      .def("fisher_diagonal", &S::fisher_diagonal, arg("w"), arg("xs"), arg("y"),
           arg("threads") = 0)
      .def("fisher_product", &S::fisher_product, arg("w"), arg("xs"), arg("y"), arg("v"),
           arg("threads") = 0);
  using C = PyCurvature<T>;
  py::class_<C>(m, "Curvature")
      .def(py::init<std::shared_ptr<Graph>, std::shared_ptr<Cost<T>>, const std::string&>(),
           arg("graph"), arg("cost"), arg("kind"))
      .def("product", &C::product, arg("w"), arg("xs"), arg("y"), arg("v"),
           arg("sample_weight") = py::none(), arg("threads") = 0);
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

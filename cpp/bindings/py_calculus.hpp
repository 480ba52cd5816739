// Derivatives of every kind of device as Python sees them. Core is the class of calculus.hpp or has
// its members.
#pragma once

#include <functional>
#include <mutex>

#include "bind.hpp"
#include "gradstack/calculus.hpp"
#include "gradstack/mlp.hpp"
#include "short_call.hpp"

namespace gradstack::bindings {

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
inline int wrt_stage(const Graph& graph, const py::object& wrt) {
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

template <class T, class Core> class PyJacobian {
 public:
  PyJacobian(std::shared_ptr<Graph> graph, std::unique_ptr<Core> core)
      : graph_(std::move(graph)), core_(std::move(core)) {}

  py::array_t<T> evaluate(const py::object& w, const std::vector<py::object>& xs,
                          const py::object& out, int threads) {
    Index count = 0;
    const std::vector<RowSource> views = input_views(*graph_, xs, &count);
    const T* weights = vector_view<T>(w, "w", graph_->n_params(), false);
    py::array_t<T> array = result_array<T>(out, {count, core_->rows(), core_->cols()});
    T* to = array.mutable_data();
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    core_->evaluate(weights, views, count, to, threads);
    return array;
  }

  // Rows of T without gaps; with the GIL held or not.
  void evaluate(const T* w, const T* const* xs, Index count, T* to, bool gil) {
    std::vector<RowSource> views;
    for (std::size_t i = 0; i < graph_->inputs().size(); ++i)
      views.push_back(rows_of(xs[i], count, size_of(graph_->stage(graph_->inputs()[i]).shape)));
    const auto lock = gil ? lock_with_gil(mutex_) : std::unique_lock<std::mutex>(mutex_);
    core_->evaluate(w, views, count, to, 0);
  }

  const Graph& graph() const { return *graph_; }
  const Core& core() const { return *core_; }

 private:
  std::shared_ptr<Graph> graph_;
  std::unique_ptr<Core> core_;
  std::mutex mutex_;
};

// The core object for the kind of target seen last; made anew when that changes.
template <class Core> class ByTarget {
 public:
  using Make = std::function<std::unique_ptr<Core>(TargetSpec)>;
  explicit ByTarget(Make make) : make_(std::move(make)) {}
  Core& get(TargetSpec spec) {
    if (!core_ || spec.dy != spec_.dy || spec.labels != spec_.labels) core_ = make_(spec);
    spec_ = spec;
    return *core_;
  }
  std::mutex mutex;

 private:
  Make make_;
  std::unique_ptr<Core> core_;
  TargetSpec spec_;
};

template <class T, class Core> class PyPerSample {
 public:
  PyPerSample(std::shared_ptr<Graph> graph, std::shared_ptr<Cost<T>> cost,
              typename ByTarget<Core>::Make make)
      : graph_(std::move(graph)), cost_(std::move(cost)), cores_(std::move(make)) {}

  py::array_t<T> gradients(const py::object& w, const std::vector<py::object>& xs,
                           const py::object& y, const py::object& out, int threads) {
    const Index count = xs.empty() ? 0 : static_cast<Index>(py::len(xs[0]));
    return call(w, xs, y, result_array<T>(out, {count, graph_->n_params()}),
                [&](Core& core, const T* at, const Batch& batch, T* to) {
                  core.gradients(at, batch, to, threads);
                });
  }
  py::array_t<T> norms(const py::object& w, const std::vector<py::object>& xs, const py::object& y,
                       int threads) {
    return call(w, xs, y, py::array_t<T>(static_cast<py::ssize_t>(py::len(xs.at(0)))),
                [&](Core& core, const T* at, const Batch& batch, T* to) {
                  core.norms(at, batch, to, threads);
                });
  }
  py::array_t<T> clipped(const py::object& w, const std::vector<py::object>& xs,
                         const py::object& y, double max_norm, int threads) {
    if (!(max_norm > 0)) throw py::value_error("max_norm: expected a number > 0");
    return call(w, xs, y, py::array_t<T>(graph_->n_params()),
                [&](Core& core, const T* at, const Batch& batch, T* to) {
                  core.clipped(at, batch, max_norm, to, threads);
                });
  }
  py::array_t<T> fisher_diagonal(const py::object& w, const std::vector<py::object>& xs,
                                 const py::object& y, int threads) {
    return call(w, xs, y, py::array_t<T>(graph_->n_params()),
                [&](Core& core, const T* at, const Batch& batch, T* to) {
                  core.fisher_diagonal(at, batch, to, threads);
                });
  }
  py::array_t<T> fisher_product(const py::object& w, const std::vector<py::object>& xs,
                                const py::object& y, const py::object& v, int threads) {
    const T* direction = vector_view<T>(v, "v", graph_->n_params(), false);
    return call(w, xs, y, py::array_t<T>(graph_->n_params()),
                [&](Core& core, const T* at, const Batch& batch, T* to) {
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
    f(cores_.get(made.second), weights, batch, to);
    return out;
  }

  std::shared_ptr<Graph> graph_;
  std::shared_ptr<Cost<T>> cost_;
  ByTarget<Core> cores_;
};

template <class T, class Core> class PyCurvature {
 public:
  PyCurvature(std::shared_ptr<Graph> graph, std::shared_ptr<Cost<T>> cost,
              typename ByTarget<Core>::Make make)
      : graph_(std::move(graph)), cost_(std::move(cost)), cores_(std::move(make)) {}

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
    cores_.get(made.second).product(weights, made.first, direction, to, threads);
    return out;
  }

 private:
  std::shared_ptr<Graph> graph_;
  std::shared_ptr<Cost<T>> cost_;
  ByTarget<Core> cores_;
};

template <class J> void def_jacobian(py::class_<J>& jacobian) {
  using py::arg;
  jacobian.def(
      "evaluate",
      py::overload_cast<const py::object&, const std::vector<py::object>&, const py::object&, int>(
          &J::evaluate),
      arg("w"), arg("xs"), arg("out") = py::none(), arg("threads") = 0);
}

template <class S> void def_per_sample(py::class_<S>& per_sample) {
  using py::arg;
  per_sample
      .def("gradients", &S::gradients, arg("w"), arg("xs"), arg("y"), arg("out") = py::none(),
           arg("threads") = 0)
      .def("norms", &S::norms, arg("w"), arg("xs"), arg("y"), arg("threads") = 0)
      .def("clipped", &S::clipped, arg("w"), arg("xs"), arg("y"), arg("max_norm"),
           arg("threads") = 0)
      .def("fisher_diagonal", &S::fisher_diagonal, arg("w"), arg("xs"), arg("y"),
           arg("threads") = 0)
      .def("fisher_product", &S::fisher_product, arg("w"), arg("xs"), arg("y"), arg("v"),
           arg("threads") = 0);
}

template <class C> void def_curvature(py::class_<C>& curvature) {
  using py::arg;
  curvature.def("product", &C::product, arg("w"), arg("xs"), arg("y"), arg("v"),
                arg("sample_weight") = py::none(), arg("threads") = 0);
}

}  // namespace gradstack::bindings

#include "bind.hpp"
#include "gradstack/objective.hpp"
#include "gradstack/registry.hpp"
#include "py_cost.hpp"

namespace gradstack::bindings {
namespace {

// ybar (B, d) with its targets, checked against each other.
template <class T> struct Evaluation {
  Evaluation(const Cost<T>& cost, const py::array& ybar, const py::object& y) : cost_(cost) {
    if (ybar.ndim() != 2) throw py::value_error("ybar: expected two axes (samples, features)");
    rows.count = ybar.shape(0);
    rows.d = ybar.shape(1);
    rows.ybar = dense_rows<T>(ybar, "ybar", rows.count, rows.d);
    target = target_view(y, rows.count, rows.d);
    cost.check_target(rows.d, target.spec.dy, target.spec.labels);
    rows.dy = target.spec.dy;
    if (target.spec.labels) {
      labels_.resize(static_cast<std::size_t>(rows.count));
      for (Index i = 0; i < rows.count; ++i)
        labels_[static_cast<std::size_t>(i)] = label_at(target.source, i);
      rows.labels = labels_.data();
    } else if (rows.dy > 0) {
      rows.y = dense_rows<T>(y, "y", rows.count, rows.dy);
    }
  }

  // What each sample's gradient is multiplied with in the gradient of the average, and the
  // normaliser of the average loss.
  std::vector<T> scales(const py::object& sample_weight, std::vector<T>* weights) const {
    Batch batch;
    batch.count = rows.count;
    batch.y = target.source;
    batch.labels = target.spec.labels;
    if (!sample_weight.is_none())
      batch.weight = column_view(sample_weight, "sample_weight", rows.count);
    const double unit = cost_.reduction() == Reduction::Mean ? 1.0 / total_weight(cost_, batch)
                                                             : cost_.sum_factor(rows.d);
    weights->assign(static_cast<std::size_t>(rows.count), T(1));
    for (Index i = 0; i < rows.count && batch.weight.data; ++i)
      gather_row(batch.weight, i, &(*weights)[static_cast<std::size_t>(i)]);
    std::vector<T> scale;
    for (T w : *weights) scale.push_back(static_cast<T>(static_cast<double>(w) * unit));
    unit_ = unit;
    return scale;
  }

  void run() { evaluate_rows(cost_, active_kernels<T>(), rows); }
  double unit() const { return unit_; }

  CostRows<T> rows;
  Target target;

 private:
  const Cost<T>& cost_;
  std::vector<std::int64_t> labels_;
  mutable double unit_ = 1;
};

template <class T>
double value(const Cost<T>& cost, const py::array& ybar, const py::object& y,
             const py::object& sample_weight) {
  Evaluation<T> e(cost, ybar, y);
  std::vector<T> weights, loss(static_cast<std::size_t>(e.rows.count));
  e.scales(sample_weight, &weights);
  e.rows.loss = loss.data();
  e.run();
  double sum = 0;
  for (std::size_t i = 0; i < loss.size(); ++i)
    if (weights[i] != T(0)) sum += static_cast<double>(weights[i]) * static_cast<double>(loss[i]);
  return sum * e.unit();
}

template <class T>
py::array_t<T> per_sample(const Cost<T>& cost, const py::array& ybar, const py::object& y) {
  Evaluation<T> e(cost, ybar, y);
  py::array_t<T> loss(e.rows.count);
  e.rows.loss = loss.mutable_data();
  e.run();
  return loss;
}

template <class T>
py::array_t<T> gradient(const Cost<T>& cost, const py::array& ybar, const py::object& y,
                        const py::object& sample_weight) {
  Evaluation<T> e(cost, ybar, y);
  std::vector<T> weights, loss(static_cast<std::size_t>(e.rows.count));
  const std::vector<T> scale = e.scales(sample_weight, &weights);
  py::array_t<T> grad = new_rows<T>(e.rows.count, e.rows.d);
  e.rows.scale = scale.data();
  e.rows.loss = loss.data();
  e.rows.grad = grad.mutable_data();
  e.run();
  return grad;
}

// The product of the average's Hessian in ybar, block-diagonal over samples, with v.
template <class T>
py::array_t<T> curvature(const Cost<T>& cost, const py::array& ybar, const py::object& y,
                         const py::object& v, const py::object& sample_weight) {
  Evaluation<T> e(cost, ybar, y);
  std::vector<T> weights;
  const std::vector<T> scale = e.scales(sample_weight, &weights);
  py::array_t<T> hv = new_rows<T>(e.rows.count, e.rows.d);
  e.rows.scale = scale.data();
  e.rows.v = dense_rows<T>(v, "v", e.rows.count, e.rows.d);
  e.rows.hv = hv.mutable_data();
  e.run();
  return hv;
}

}  // namespace

template <class T> void bind_cost(py::module_& m) {
  using py::arg;
  py::class_<Cost<T>, std::shared_ptr<Cost<T>>>(m, "CostBase")
      .def("value", &value<T>, arg("ybar"), arg("y"), arg("sample_weight") = py::none())
      .def("per_sample", &per_sample<T>, arg("ybar"), arg("y"))
      .def("gradient", &gradient<T>, arg("ybar"), arg("y"), arg("sample_weight") = py::none())
      .def("curvature", &curvature<T>, arg("ybar"), arg("y"), arg("v"),
           arg("sample_weight") = py::none());
  py::class_<TableCost<T>, Cost<T>, std::shared_ptr<TableCost<T>>>(m, "Cost").def(
      py::init([](const std::string& name, std::vector<double> params,
                  const std::optional<std::vector<T>>& class_weight, const std::string& reduction) {
        return std::make_shared<TableCost<T>>(name, std::move(params),
                                              class_weight.value_or(std::vector<T>{}),
                                              to_reduction(reduction));
      }),
      arg("name"), arg("params"), arg("class_weight") = py::none(), arg("reduction") = "mean");
  py::class_<PyCost<T>, Cost<T>, std::shared_ptr<PyCost<T>>>(m, "PyCost")
      .def(py::init<py::object>(), arg("impl"));
}

template void bind_cost<float>(py::module_&);
template void bind_cost<double>(py::module_&);

}  // namespace gradstack::bindings

// Costs as Python sees them, and Python objects as costs.
#pragma once

#include <memory>

#include "arrays.hpp"
#include "gradstack/cost.hpp"
#include "gradstack/parallel.hpp"

namespace gradstack::bindings {

inline Reduction to_reduction(const std::string& name) {
  if (name == "mean") return Reduction::Mean;
  if (name == "sum") return Reduction::Sum;
  throw py::value_error("reduction: got '" + name + "', expected 'mean' or 'sum'");
}

// A Python object with value(ybar, y) -> (B,) and gradient(ybar, y) -> (B, d), optionally a
// `reduction` ("mean" or "sum").
template <class T> class PyCost final : public Cost<T> {
 public:
  explicit PyCost(py::object impl) : impl_(std::move(impl)) {
    if (py::hasattr(impl_, "reduction"))
      this->reduction_ = to_reduction(impl_.attr("reduction").cast<std::string>());
  }
  // The last owner may be a plan that is replaced while the GIL is released.
  ~PyCost() override {
    const py::gil_scoped_acquire gil;
    impl_ = py::object();
  }

  void check_target(Index, Index, bool) const override {}
  bool by_block() const override { return false; }
  void rows(Index count, Index d, const T* ybar, Index dy, const T* y, const std::int64_t* labels,
            T* loss, T* grad) const override {
    const py::gil_scoped_acquire gil;
    const DefaultFloats floats;
    const py::array_t<T> outputs({count, d}, ybar);
    const py::object targets = target(count, dy, y, labels);
    copy(impl_.attr("value")(outputs, targets), "value", {count}, loss);
    if (grad) copy(impl_.attr("gradient")(outputs, targets), "gradient", {count, d}, grad);
  }
  // An optional method hvp(ybar, y, v) -> (B, d) gives the product with the Hessian in ybar.
  void curvature_rows(Index count, Index d, const T* ybar, Index dy, const T* y,
                      const std::int64_t* labels, const T* v, T* hv) const override {
    const py::gil_scoped_acquire gil;
    const DefaultFloats floats;
    if (!py::hasattr(impl_, "hvp"))
      throw py::value_error(
          py::str(py::type::of(impl_).attr("__name__")).template cast<std::string>() +
          " has no second derivative: define hvp(ybar, y, v) -> (B, d)");
    copy(impl_.attr("hvp")(py::array_t<T>({count, d}, ybar), target(count, dy, y, labels),
                           py::array_t<T>({count, d}, v)),
         "hvp", {count, d}, hv);
  }

 private:
  static py::object target(Index count, Index dy, const T* y, const std::int64_t* labels) {
    if (labels) return py::array_t<std::int64_t>(count, labels);
    if (dy > 0) return py::array_t<T>({count, dy}, y);
    return py::none();
  }

  void copy(const py::object& result, const char* method, std::vector<py::ssize_t> shape,
            T* out) const {
    const auto array = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(result);
    if (!array) throw py::error_already_set();
    if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) != shape)
      throw py::value_error(
          std::string(method) + " of " +
          py::str(py::type::of(impl_).attr("__name__")).template cast<std::string>() +
          " returned shape " + py::str(array.attr("shape")).template cast<std::string>() +
          ", expected " + py::str(py::cast(shape)).template cast<std::string>());
    std::copy(array.data(), array.data() + array.size(), out);
  }

  py::object impl_;
};

}  // namespace gradstack::bindings

// Costs as Python sees them, and Python objects as costs.
#pragma once

#include <memory>

#include "arrays.hpp"
#include "gradstack/cost.hpp"
#include "gradstack/parallel.hpp"

namespace gradstack::bindings {

// A Python object with value(ybar, y) -> (B,) and gradient(ybar, y) -> (B, d).
template <class T> class PyCost final : public Cost<T> {
 public:
  explicit PyCost(py::object impl) : impl_(std::move(impl)) {}

  void check_target(Index, Index, bool) const override {}
  bool by_block() const override { return false; }
  void rows(Index count, Index d, const T* ybar, Index dy, const T* y, const std::int64_t* labels,
            T* loss, T* grad) const override {
    const py::gil_scoped_acquire gil;
    const DefaultFloats floats;
    const py::array_t<T> outputs({count, d}, ybar);
    py::object target = py::none();
    if (labels) target = py::array_t<std::int64_t>(count, labels);
    else if (dy > 0) target = py::array_t<T>({count, dy}, y);
    copy(impl_.attr("value")(outputs, target), "value", {count}, loss);
    if (grad) copy(impl_.attr("gradient")(outputs, target), "gradient", {count, d}, grad);
  }

 private:
  void copy(const py::object& result, const char* method, std::vector<py::ssize_t> shape, T* out) const {
    const auto array = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(result);
    if (!array) throw py::error_already_set();
    if (std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()) != shape)
      throw py::value_error(std::string(method) + " of " +
                            py::str(py::type::of(impl_).attr("__name__")).template cast<std::string>() +
                            " returned shape " + py::str(array.attr("shape")).template cast<std::string>() +
                            ", expected " + py::str(py::cast(shape)).template cast<std::string>());
    std::copy(array.data(), array.data() + array.size(), out);
  }

  py::object impl_;
};

}  // namespace gradstack::bindings

// The one place that turns NumPy arrays into views of the core, with the checks the core trusts.
// Where rows are expected, arrays in a device's memory (device_tensor.hpp) are taken as well: only
// programs on that device may be given them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gradstack/data.hpp"
#include "gradstack/graph.hpp"
#include "gradstack/objective.hpp"

namespace gradstack::bindings {

namespace py = pybind11;

// A flat contiguous vector of n values; throws ValueError/TypeError naming it.
template <class T>
T* vector_view(const py::handle& object, const char* name, Index n, bool writable);

// What the core reads arrays of this dtype as, if it does.
std::optional<Scalar> find_scalar_type(const py::array& a);

// Rows of any real dtype and strides, (rows, cols) with cols = `cols`. Not copied: the array must
// outlive the view.
RowSource rows_view(const py::handle& object, const std::string& name, Index cols);
// The same for one value per row, (rows,).
RowSource column_view(const py::handle& object, const std::string& name, Index rows);

// C-contiguous rows (count, d) of T to read, and to write.
template <class T>
const T* dense_rows(const py::handle& object, const std::string& name, Index count, Index d);
template <class T>
T* out_rows(const py::handle& object, const std::string& name, Index count, Index d);

template <class T> py::array_t<T> new_rows(Index count, Index d) {
  return py::array_t<T>({count, d});
}

// Inputs of a graph: one row array each, all of the same length (returned in *count).
std::vector<RowSource> input_views(const Graph& graph, const std::vector<py::object>& xs,
                                   Index* count);

// Targets: None, labels (B,) of an integer dtype, or dense (B, dy). Labels are checked against
// [0, classes).
struct Target {
  RowSource source;
  TargetSpec spec;
};
Target target_view(const py::object& y, Index count, Index classes);

// A batch of the caller's arrays for a cost; everything is checked against the graph.
template <class T>
std::pair<Batch, TargetSpec> make_batch(const Graph& graph, const std::vector<py::object>& xs,
                                        const py::object& y, const py::object& sample_weight,
                                        const Cost<T>& cost);

}  // namespace gradstack::bindings

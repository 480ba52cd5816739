// One function per area, called by module.cpp.
#pragma once

#include "arrays.hpp"

namespace gradstack::bindings {

void bind_config(py::module_& m);
void bind_graph(py::module_& m);
void bind_short_call(py::module_& m);
template <class T> void bind_cost(py::module_& m);
template <class T> void bind_program(py::module_& m);
template <class T> void bind_backprop(py::module_& m);
template <class T> void bind_trainer(py::module_& m);
template <class T> void bind_calculus(py::module_& m);
template <class T> void bind_search(py::module_& m);
void bind_device(py::module_& m);  // float32
void bind_device_array(py::module_& m);

}  // namespace gradstack::bindings

#include "bind.hpp"

#include "gradstack/trainer.hpp"

namespace gradstack::bindings {
namespace {

template <class T> void bind_dtype(py::module_& parent, const char* name) {
  py::module_ m = parent.def_submodule(name);
  bind_cost<T>(m);
  bind_program<T>(m);
  bind_backprop<T>(m);
  bind_trainer<T>(m);
  bind_calculus<T>(m);
  bind_search<T>(m);
}

}  // namespace
}  // namespace gradstack::bindings

PYBIND11_MODULE(_core, m) {
  namespace bindings = gradstack::bindings;
  pybind11::register_local_exception<gradstack::NonFiniteLoss>(m, "NonFiniteLoss",
                                                               PyExc_FloatingPointError);
  bindings::bind_config(m);
  bindings::bind_graph(m);
  bindings::bind_short_call(m);
  bindings::bind_dtype<float>(m, "f32");
  bindings::bind_dtype<double>(m, "f64");
  pybind11::module_ device = m.def_submodule("device");
  bindings::bind_device(device);
}

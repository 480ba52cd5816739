// Ctrl-C while the GIL is released: the core polls, Python's handlers run, what they raised goes
// on.
#pragma once

#include <exception>

#include "arrays.hpp"
#include "gradstack/trainer.hpp"

namespace gradstack::bindings {

// Returns f(interrupted) with the GIL released. PyErr_CheckSignals does nothing outside the main
// thread.
template <class F> auto interruptible(F&& f) {
  std::exception_ptr signal;
  const auto interrupted = [&signal] {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() == 0) return false;
    signal = std::make_exception_ptr(py::error_already_set());
    return true;
  };
  try {
    const py::gil_scoped_release release;
    return f(interrupted);
  } catch (const Interrupted&) {
    std::rethrow_exception(signal);
  }
}

}  // namespace gradstack::bindings

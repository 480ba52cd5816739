// The extension gradstack._cuda: opens devices for gradstack._core, which takes them as capsules.
#include <pybind11/pybind11.h>

#include "cuda_device.hpp"

namespace py = pybind11;
using gradstack::DeviceQueue;

namespace {

// The core calls the queue's virtual functions: both must come from the same sources.
constexpr const char* kCapsule = "gradstack.device " GRADSTACK_VERSION;

py::capsule open(int device) {
  auto queue = std::make_unique<std::shared_ptr<DeviceQueue>>();
  {
    const py::gil_scoped_release release;
    *queue = gradstack::device::open_device(device);
  }
  return py::capsule(queue.release(), kCapsule, [](PyObject* capsule) {
    delete static_cast<std::shared_ptr<DeviceQueue>*>(PyCapsule_GetPointer(capsule, kCapsule));
  });
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("__version__") = GRADSTACK_VERSION;
  m.attr("emulated") = static_cast<bool>(GRADSTACK_CUDA_EMULATED);
  py::register_local_exception<gradstack::DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  py::register_local_exception<gradstack::DeviceOutOfMemory>(m, "DeviceOutOfMemory",
                                                             PyExc_MemoryError);
  m.def("devices", [] {
    const gradstack::device::Devices found = gradstack::device::devices();
    return py::make_tuple(found.count, found.driver, found.reason);
  });
  m.def("open", &open, py::arg("device"));
}

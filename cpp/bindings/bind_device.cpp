// Devices: opened by the extension gradstack._cuda, used from here.
#include "gradstack/device_program.hpp"
#include "gradstack/device_trainer.hpp"
#include "py_program.hpp"
#include "py_trainer.hpp"

namespace gradstack::bindings {
namespace {

// What _cuda.open returns; made from the same sources or refused.
constexpr const char* kCapsule = "gradstack.device " GRADSTACK_VERSION;

struct Device {
  std::shared_ptr<DeviceQueue> queue;
};

Device from_capsule(const py::object& object) {
  if (!PyCapsule_IsValid(object.ptr(), kCapsule))
    throw py::type_error(std::string("capsule: expected a '") + kCapsule +
                         "' of gradstack._cuda.open");
  return {
      *static_cast<std::shared_ptr<DeviceQueue>*>(PyCapsule_GetPointer(object.ptr(), kCapsule))};
}

// A device is used without the GIL: one thread may wait for the hardware, or for another thread
// that uses it and wants the GIL to look for Ctrl-C.
std::unique_ptr<DeviceLinearization> linearize(DeviceProgram& program, const py::object& w,
                                               const std::vector<py::object>& xs,
                                               const CallOptions& options) {
  Index count = 0;
  const std::vector<RowSource> views = input_views(program.graph(), xs, &count);
  const float* weights = vector_view<float>(w, "w", program.graph().n_params(), false);
  const py::gil_scoped_release release;
  return std::make_unique<DeviceLinearization>(program.shared_graph(), program.queue(), weights,
                                               views, count, options, program.precision());
}

DeviceType half_type(const std::string& precision) {
  const DeviceType type = storage_of(precision_of(precision));
  if (type == DeviceType::Float32)
    throw py::value_error("precision: expected 'bf16' or 'fp16', got '" + precision + "'");
  return type;
}

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bits = py::array_t<std::uint16_t, py::array::c_style | py::array::forcecast>;

// What the device makes of values in 16 bits, and of those bits.
Bits to_half(const Device& device, const Floats& values, const std::string& precision) {
  const DeviceType type = half_type(precision);
  const Index n = values.size();
  Bits bits(n);
  DeviceArray<float> from(device.queue, n, "values");
  const DeviceBuffer to(device.queue, n, type, "values");
  from.from_host(values.data(), n);
  device.queue->convert(n, from.data(), to.values());
  device.queue->to_host(bits.mutable_data(), to.values().data,
                        static_cast<std::size_t>(n) * sizeof(std::uint16_t));
  return bits;
}

Floats from_half(const Device& device, const Bits& bits, const std::string& precision) {
  const DeviceType type = half_type(precision);
  const Index n = bits.size();
  Floats values(n);
  const DeviceBuffer from(device.queue, n, type, "values");
  const DeviceArray<float> to(device.queue, n, "values");
  device.queue->to_device(from.values().data, bits.data(),
                          static_cast<std::size_t>(n) * sizeof(std::uint16_t));
  device.queue->convert(n, from.values(), to.data());
  to.to_host(values.mutable_data(), n);
  return values;
}

}  // namespace

void bind_device(py::module_& m) {
  using py::arg;
  using Opt = Optimizer<float>;
  py::register_local_exception<DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  py::register_local_exception<DeviceOutOfMemory>(m, "DeviceOutOfMemory", PyExc_MemoryError);
  py::class_<Device>(m, "Device")
      .def(py::init(&from_capsule), arg("capsule"))
      .def_property_readonly("name", [](const Device& d) { return d.queue->name(); })
      .def("to_half", &to_half, arg("values"), arg("precision"))
      .def("from_half", &from_half, arg("bits"), arg("precision"));

  py::class_<DeviceLinearization> linearization(m, "DeviceLinearization");
  def_linearization<float>(linearization);
  py::class_<DeviceProgram> program(m, "DeviceProgram");
  program
      .def(py::init([](const std::shared_ptr<Graph>& graph, const Device& device,
                       const std::string& precision) {
             if (!graph->finished()) throw py::value_error("graph: finish() comes first");
             const py::gil_scoped_release release;
             return std::make_unique<DeviceProgram>(graph, device.queue, precision_of(precision));
           }),
           arg("graph"), arg("device"), arg("precision") = "float32")
      .def(
          "vjp",
          [](DeviceProgram& p, const py::object& w, const std::vector<py::object>& xs, bool train,
             std::uint64_t seed, std::int64_t step,
             int threads) { return linearize(p, w, xs, call_options(train, seed, step, threads)); },
          arg("w"), arg("xs"), py::kw_only(), arg("train") = false, arg("seed") = 0,
          arg("step") = 0, arg("threads") = 0);
  def_program<float>(m, program);

  using Tr = PyTrainer<float, DeviceTrainer>;
  py::class_<Tr> trainer(m, "DeviceTrainer");
  trainer
      .def(
          py::init([](const std::shared_ptr<Graph>& graph, const std::shared_ptr<Cost<float>>& cost,
                      std::shared_ptr<Opt> optimizer, const Device& device,
                      const std::vector<std::string>& frozen, const std::string& precision) {
            std::vector<char> fixed = frozen_parameters(*graph, frozen);
            const py::gil_scoped_release release;
            return std::make_unique<Tr>(cost, graph, device.queue, cost, std::move(optimizer),
                                        std::move(fixed), precision_of(precision));
          }),
          arg("graph"), arg("cost"), arg("optimizer"), arg("device"), py::kw_only(),
          arg("frozen") = std::vector<std::string>{}, arg("precision") = "float32")
      .def_property(
          "loss_scaling",
          [](const Tr& t) { return py::make_tuple(t.core().loss_scale(), t.core().good_steps()); },
          [](Tr& t, const std::pair<double, std::int64_t>& state) {
            t.core().set_loss_scale(state.first, state.second);
          })
      .def_property_readonly("updates", [](const Tr& t) { return t.core().updates(); });
  def_trainer(trainer);
}

}  // namespace gradstack::bindings

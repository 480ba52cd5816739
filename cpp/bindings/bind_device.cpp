// Devices: opened by the extension gradstack._cuda, used from here.
#include "device_tensor.hpp"
#include "gradstack/device_calculus.hpp"
#include "gradstack/device_trainer.hpp"
#include "py_calculus.hpp"
#include "py_program.hpp"
#include "py_trainer.hpp"

namespace gradstack::bindings {
namespace {

// What _cuda.open returns; made from the same sources or refused.
constexpr const char* kCapsule = "gradstack.device " GRADSTACK_VERSION;

using Device = PyDevice;

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
                                               const std::vector<py::object>& xs, bool tangents,
                                               const CallOptions& options) {
  Index count = 0;
  const std::vector<RowSource> views = input_views(program.graph(), xs, &count);
  const float* weights = vector_view<float>(w, "w", program.graph().n_params(), false);
  const py::gil_scoped_release release;
  return std::make_unique<DeviceLinearization>(
      program.shared_graph(), program.queue(), weights, views, count, tangents, options,
      tangents ? DevicePrecision::Float32 : program.precision());
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

// What the device makes of a function in the same call as a matrix product of 128 cubed: "forward",
// "bits" for the backward pass, "backward", and with it the "sums" that are the bias's gradient.
std::vector<std::string> epilogues(const Device& device, const std::string& name,
                                   const std::string& precision) {
  constexpr Index n = 128;
  const DevicePrecision kind = precision_of(precision);
  const DeviceType type = storage_of(kind);
  DeviceOp op;
  op.id = find_op(name.c_str());
  if (op.id < 0) throw py::value_error("op: there is no function '" + name + "'");
  for (int i = 0; i < op_info(op.id).n_params; ++i) op.p[i] = op_info(op.id).params[i].value;
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(device.queue->mutex());
  const DeviceBuffer matrix(device.queue, n * n, type, "matrices");
  const DeviceArray<float> vector(device.queue, n, "matrices");
  const DeviceArray<std::uint8_t> bits(device.queue, n * bytes_of_bits(n), "matrices");
  DeviceGemm g;
  g.m = g.n = g.k = n;
  g.a = g.b = g.c = matrix.values();
  g.tf32 = kind == DevicePrecision::TF32;
  g.fuse = true;
  g.op = op;
  std::vector<std::string> found;
  const auto ask = [&](const char* what) {
    if (device.queue->fuses(g)) found.emplace_back(what);
  };
  ask("forward");
  const bool relu = op_info(op.id).epilogue == Epilogue::ReLU;
  g.bits = bits.data();
  if (relu) ask("bits");
  g.bits = nullptr;
  g.op = {};
  g.slope = {op, relu ? bits.data() : nullptr, relu ? DeviceIn() : DeviceIn(matrix.values())};
  ask("backward");
  g.slope.sums = vector.data();
  ask("sums");
  return found;
}

py::tuple jvp(DeviceProgram& program, const py::object& w, const std::vector<py::object>& xs,
              const std::vector<py::object>& dxs, const py::object& dw) {
  const Graph& graph = program.graph();
  Index count = 0;
  const std::vector<RowSource> views = input_views(graph, xs, &count);
  const float* weights = vector_view<float>(w, "w", graph.n_params(), false);
  const std::vector<const float*> tangents =
      optional_rows<float>(graph, graph.inputs(), dxs, "dx", count);
  const float* direction =
      dw.is_none() ? nullptr : vector_view<float>(dw, "dw", graph.n_params(), false);
  std::vector<float*> values, pushed;
  py::list ys = new_outputs<float>(graph, count, &values);
  py::list dys = new_outputs<float>(graph, count, &pushed);
  {
    const py::gil_scoped_release release;
    program.jvp(weights, views, count, tangents, direction, values, pushed);
  }
  return py::make_tuple(ys, dys);
}

std::unique_ptr<DeviceMoments> moments_of(const std::shared_ptr<Graph>& graph, const Device& device,
                                          const std::vector<std::string>& names) {
  std::vector<int> blocks;
  for (const std::string& name : names) blocks.push_back(graph->find(name));
  const py::gil_scoped_release release;
  return std::make_unique<DeviceMoments>(graph, device.queue, std::move(blocks));
}

// Per block the moments of its inputs and of the gradients at its output, see DeviceMoments.
py::list moments(DeviceMoments& core, const py::object& w, const std::vector<py::object>& xs,
                 const py::object& dybar, Index directions) {
  const Graph& graph = core.graph();
  Index count = 0;
  const std::vector<RowSource> views = input_views(graph, xs, &count);
  const float* weights = vector_view<float>(w, "w", graph.n_params(), false);
  if (directions < 1) throw py::value_error("directions: expected at least one");
  const float* rows = dense_rows<float>(dybar, "dybar", count * directions,
                                        size_of(graph.stage(graph.outputs()[0]).shape));
  std::vector<double*> z, ds;
  py::list results;
  const auto square = [](Index n) {
    py::array_t<double> matrix({n, n});
    std::fill_n(matrix.mutable_data(), n * n, 0.0);
    return matrix;
  };
  for (const int block : core.blocks()) {
    const bool bias = graph.stage(block).bias_id >= 0;
    py::array_t<double> a = square(core.inputs(block) + (bias ? 1 : 0));
    py::array_t<double> s = square(core.outputs(block));
    z.push_back(a.mutable_data());
    ds.push_back(s.mutable_data());
    results.append(py::make_tuple(a, s));
  }
  const py::gil_scoped_release release;
  core.evaluate(weights, views, count, rows, directions, z, ds);
  return results;
}

void bind_derivatives(py::module_& m) {
  using py::arg;
  using CostPtr = std::shared_ptr<Cost<float>>;
  using J = PyJacobian<float, DeviceJacobian>;
  py::class_<J> jacobian(m, "DeviceJacobian");
  jacobian.def(py::init([](const std::shared_ptr<Graph>& graph, const Device& device,
                           const py::object& wrt, std::size_t output) {
                 return std::make_unique<J>(
                     graph, std::make_unique<DeviceJacobian>(graph, device.queue,
                                                             wrt_stage(*graph, wrt), output));
               }),
               arg("graph"), arg("device"), arg("wrt"), arg("output") = 0);
  def_jacobian(jacobian);

  const auto with_cost = []<class Py, class Core>() {
    return py::init(
        [](const std::shared_ptr<Graph>& graph, const Device& device, const CostPtr& cost) {
          return std::make_unique<Py>(graph, cost,
                                      [graph, cost, queue = device.queue](TargetSpec spec) {
                                        return std::make_unique<Core>(graph, queue, cost, spec);
                                      });
        });
  };
  using S = PyPerSample<float, DevicePerSample>;
  py::class_<S> per_sample(m, "DevicePerSample");
  per_sample.def(with_cost.operator()<S, DevicePerSample>(), arg("graph"), arg("device"),
                 arg("cost"));
  def_per_sample(per_sample);
  using C = PyCurvature<float, DeviceGaussNewton>;
  py::class_<C> curvature(m, "DeviceGaussNewton");
  curvature.def(with_cost.operator()<C, DeviceGaussNewton>(), arg("graph"), arg("device"),
                arg("cost"));
  def_curvature(curvature);
  py::class_<DeviceMoments>(m, "DeviceMoments")
      .def(py::init(&moments_of), arg("graph"), arg("device"), arg("blocks"))
      .def("evaluate", &moments, arg("w"), arg("xs"), arg("dybar"), arg("directions"));
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
      .def("from_half", &from_half, arg("bits"), arg("precision"))
      .def("epilogues", &epilogues, arg("op"), arg("precision") = "float32");

  bind_device_array(m);

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
             std::uint64_t seed, std::int64_t step, int threads) {
            return linearize(p, w, xs, false, call_options(train, seed, step, threads));
          },
          arg("w"), arg("xs"), py::kw_only(), arg("train") = false, arg("seed") = 0,
          arg("step") = 0, arg("threads") = 0)
      .def(
          "linearize",
          [](DeviceProgram& p, const py::object& w, const std::vector<py::object>& xs, bool train,
             std::uint64_t seed, std::int64_t step, int threads) {
            return linearize(p, w, xs, true, call_options(train, seed, step, threads));
          },
          arg("w"), arg("xs"), py::kw_only(), arg("train") = false, arg("seed") = 0,
          arg("step") = 0, arg("threads") = 0)
      .def("jvp", &jvp, arg("w"), arg("xs"), arg("dxs"), arg("dw") = py::none());
  def_program<float>(m, program);
  bind_derivatives(m);

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

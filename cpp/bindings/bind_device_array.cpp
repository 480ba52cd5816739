// gs.DeviceArray, and calls whose results stay on the device.
#include "device_tensor.hpp"
#include "gradstack/device_program.hpp"
#include "py_program.hpp"

namespace gradstack::bindings {
namespace {

using Shape = DeviceTensor::Shape;

py::tuple shape_tuple(const DeviceTensor& t) { return py::tuple(py::cast(t.shape())); }

py::dtype dtype_of(const DeviceTensor& t) {
  return t.type() == DeviceTensor::Type::Float32 ? py::dtype::of<float>()
                                                 : py::dtype::of<std::int64_t>();
}

std::string device_name(const DeviceTensor& t) {
  return "cuda:" + std::to_string(t.queue()->id().number);
}

py::array to_numpy(const DeviceTensor& t) {
  py::array copy(dtype_of(t), t.shape());
  void* to = copy.mutable_data();
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(t.queue()->mutex());
  if (t.bytes() > 0) t.queue()->to_host(to, t.data(), t.bytes());
  return copy;
}

py::array take(const DeviceTensor& t, const std::vector<Index>& rows) {
  Shape shape = t.shape();
  if (shape.empty()) throw py::index_error("take: the array has no rows");
  for (const Index row : rows)
    if (row < 0 || row >= shape[0])
      throw py::index_error("take: row " + std::to_string(row) + " of " + std::to_string(shape[0]));
  const std::size_t bytes = shape[0] ? t.bytes() / static_cast<std::size_t>(shape[0]) : 0;
  shape[0] = static_cast<Index>(rows.size());
  py::array copy(dtype_of(t), shape);
  auto* to = static_cast<char*>(copy.mutable_data());
  const auto* from = static_cast<const char*>(t.data());
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(t.queue()->mutex());
  for (std::size_t i = 0; bytes > 0 && i < rows.size(); ++i)
    t.queue()->to_host(to + i * bytes, from + static_cast<std::size_t>(rows[i]) * bytes, bytes);
  return copy;
}

DeviceTensor reshape(const DeviceTensor& t, const py::args& shape) {
  return t.reshaped(shape.size() == 1 && !py::isinstance<py::int_>(shape[0])
                        ? shape[0].cast<Shape>()
                        : shape.cast<Shape>());
}

// An array of this device; anything else with DLPack's protocol lends its memory.
LentTensor lend(const PyDevice& device, const py::object& object, const std::string& name,
                bool writable) {
  if (const DeviceTensor* ours = device_tensor(object); ours && ours->queue() == device.queue)
    return LentTensor(*ours);
  return LentTensor(from_dlpack(device, object, name, writable));
}

// A copy of the host's values on the device.
LentTensor upload(const PyDevice& device,
                  const py::array_t<float, py::array::c_style | py::array::forcecast>& values) {
  DeviceTensor copy(device.queue, Shape(values.shape(), values.shape() + values.ndim()),
                    "the data set");
  const float* from = values.data();
  {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(device.queue->mutex());
    if (copy.bytes() > 0) device.queue->to_device(copy.data(), from, copy.bytes());
  }
  return LentTensor(std::move(copy));
}

// Rows of a matrix on the device, in an order of the host's, as another one there.
LentTensor gathered(const DeviceTensor& t,
                    const py::array_t<Index, py::array::c_style | py::array::forcecast>& rows) {
  if (t.type() != DeviceTensor::Type::Float32 || t.shape().size() != 2)
    throw py::value_error("gather: got " + t.describe() + ", expected float32 of two axes");
  const Index *index = rows.data(), count = rows.size();
  for (Index i = 0; i < count; ++i)
    if (index[i] < 0 || index[i] >= t.shape()[0])
      throw py::index_error("gather: row " + std::to_string(index[i]) + " of " +
                            std::to_string(t.shape()[0]));
  DeviceTensor copy(t.queue(), {count, t.shape()[1]}, "a batch");
  if (copy.size() > 0) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(t.queue()->mutex());
    DeviceArray<Index> order(t.queue(), count, "an order of samples");
    order.from_host(index, count);
    const DeviceArray<DeviceStep> start(t.queue(), 1, "an order of samples");  // at its first row
    DeviceGather g;
    g.count = count;
    g.order = order.data();
    g.at = start.data();
    g.cols = t.shape()[1];
    g.from = static_cast<const float*>(t.data());
    g.to = static_cast<float*>(copy.data());
    t.queue()->gather(g);
  }
  return LentTensor(std::move(copy));
}

// (P,) float32 in this device's memory to write to.
float* parameters_out(const DeviceTensor& t, Index n) {
  if (t.type() != DeviceTensor::Type::Float32 || t.shape() != Shape{n})
    throw py::value_error("dw: got " + t.describe() + ", expected float32 of shape (" +
                          std::to_string(n) + ",)");
  return static_cast<float*>(t.data());
}

std::vector<float*> rows_out(const Graph& graph, const std::vector<int>& ids,
                             const std::vector<py::object>& arrays, const char* name, Index count) {
  std::vector<float*> rows;
  for (std::size_t i = 0; i < ids.size(); ++i)
    rows.push_back(out_rows<float>(arrays.at(i), name, count, size_of(graph.stage(ids[i]).shape)));
  return rows;
}

void outputs_into(DeviceLinearization& at, const std::vector<py::object>& outs) {
  const auto rows = rows_out(at.graph(), at.graph().outputs(), outs, "out", at.count());
  const py::gil_scoped_release release;
  for (std::size_t i = 0; i < rows.size(); ++i) at.output(i, rows[i]);
}

void pull_into(DeviceLinearization& at, const std::vector<py::object>& dys,
               const std::vector<py::object>& dxs, const DeviceTensor& dw) {
  const Graph& graph = at.graph();
  const auto cotangents = optional_rows<float>(graph, graph.outputs(), dys, "dy", at.count());
  const auto rows = rows_out(graph, graph.inputs(), dxs, "dx", at.count());
  float* gradient = parameters_out(dw, graph.n_params());
  const py::gil_scoped_release release;
  at.vjp(cotangents, rows, gradient);
}

double value_and_grad_into(DeviceProgram& program, const py::object& w,
                           const std::vector<py::object>& xs, const py::object& y,
                           std::shared_ptr<Cost<float>> cost, const py::object& sample_weight,
                           const DeviceTensor& dw, bool train, std::uint64_t seed) {
  const Graph& graph = program.graph();
  const float* weights = vector_view<float>(w, "w", graph.n_params(), false);
  const auto [batch, target] = make_batch(graph, xs, y, sample_weight, *cost);
  float* gradient = parameters_out(dw, graph.n_params());
  const py::gil_scoped_release release;
  return program.value_and_grad(weights, batch, target, std::move(cost), gradient,
                                call_options(train, seed, 0, 0));
}

constexpr const char* kDoc =
    R"(Values in the memory of a GPU, as results of calls whose inputs lie there.

They may still be on their way: every use waits for them as it has to. Other libraries take the
memory without a copy, on their own stream: ``torch.from_dlpack(y)``, ``cupy.from_dlpack(y)``.

Attributes
----------
shape : tuple of int
ndim, size, nbytes : int
dtype : numpy.dtype
    float32 (int64 for labels that were lent).
device : str
    Such as "cuda:0".
)";

}  // namespace

void bind_device_array(py::module_& m) {
  using py::arg;
  py::class_<DeviceTensor> array(m, "DeviceArray", kDoc);
  array.attr("__module__") = "gradstack";
  array.def_property_readonly("shape", &shape_tuple, "Lengths of the axes.")
      .def_property_readonly(
          "ndim", [](const DeviceTensor& t) { return t.shape().size(); }, "Number of axes.")
      .def_property_readonly("size", &DeviceTensor::size, "Number of values.")
      .def_property_readonly("nbytes", &DeviceTensor::bytes, "Bytes of the values.")
      .def_property_readonly("dtype", &dtype_of, "Type of the values, as NumPy's.")
      .def_property_readonly("device", &device_name, "Where the values lie.")
      .def("numpy", &to_numpy, "A copy in the host's memory, when the values are there.")
      .def("take", &take, arg("rows"), "A copy of some rows in the host's memory.")
      .def("reshape", &reshape, "The same memory in another shape.")
      .def("__len__",
           [](const DeviceTensor& t) {
             if (t.shape().empty()) throw py::type_error("len() of an array without axes");
             return t.shape()[0];
           })
      .def("__repr__",
           [](const DeviceTensor& t) {
             return "DeviceArray(shape=" + py::str(shape_tuple(t)).cast<std::string>() +
                    ", dtype=" + py::str(dtype_of(t)).cast<std::string>() + ", device='" +
                    device_name(t) + "')";
           })
      .def("__dlpack__", &to_dlpack, py::kw_only(), arg("stream") = py::none(),
           arg("max_version") = py::none(), arg("dl_device") = py::none(), arg("copy") = py::none(),
           "The memory for another library, whose `stream` waits for the values.")
      .def(
          "__dlpack_device__",
          [](const DeviceTensor& t) {
            const DeviceId id = t.queue()->id();
            return py::make_tuple(id.type, id.number);
          },
          "Kind and number of the device, as DLPack counts them.");
  py::class_<LentTensor, DeviceTensor>(m, "LentArray")
      .def("reshape", [](const LentTensor& t, const py::args& shape) {
        return LentTensor(reshape(t, shape));
      });

  m.def(
      "empty",
      [](const PyDevice& device, Shape shape) {
        return DeviceTensor(device.queue, std::move(shape));
      },
      arg("device"), arg("shape"));
  m.def("lend", &lend, arg("device"), arg("array"), arg("name"), arg("writable") = false);
  m.def("upload", &upload, arg("device"), arg("values"));
  m.def("gather", &gathered, arg("array"), arg("rows"));
  m.def(
      "synchronize",
      [](const PyDevice& device) {
        const py::gil_scoped_release release;
        const std::lock_guard<std::mutex> lock(device.queue->mutex());
        device.queue->synchronize();
      },
      arg("device"));
  m.def("outputs_into", &outputs_into, arg("at"), arg("outs"));
  m.def("pull_into", &pull_into, arg("at"), arg("dys"), arg("dxs"), arg("dw"));
  m.def("value_and_grad_into", &value_and_grad_into, arg("program"), arg("w"), arg("xs"), arg("y"),
        arg("cost"), arg("sample_weight"), arg("dw"), py::kw_only(), arg("train") = false,
        arg("seed") = 0);
}

}  // namespace gradstack::bindings

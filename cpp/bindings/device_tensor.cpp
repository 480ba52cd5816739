#include "device_tensor.hpp"

#include "dlpack.hpp"

namespace gradstack::bindings {
namespace {

constexpr const char* kName = "dltensor";
constexpr const char* kUsedName = "used_dltensor";
constexpr const char* kVersionedName = "dltensor_versioned";
constexpr const char* kUsedVersionedName = "used_dltensor_versioned";

std::string shape_text(const std::vector<Index>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::string device_text(DeviceId id) {
  if (id.type == 2) return "cuda:" + std::to_string(id.number);
  return "the device that DLPack numbers (" + std::to_string(id.type) + ", " +
         std::to_string(id.number) + ")";
}

std::string type_text(dlpack::Type type) {
  const char* kinds[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  const std::string bits = std::to_string(type.bits);
  std::string text = type.code < 7 ? kinds[type.code] + bits : "type " + std::to_string(type.code);
  return type.lanes == 1 ? text : text + "x" + std::to_string(type.lanes);
}

// Memory of somebody else: told when nobody here uses it any more.
template <class Managed> class Lent {
 public:
  Lent(std::shared_ptr<DeviceQueue> queue, Managed* managed, const void* data, std::size_t bytes)
      : queue_(std::move(queue)), managed_(managed), data_(data) {
    queue_->borrow(data_, bytes);
  }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  ~Lent() {
    queue_->give_back(data_);
    if (managed_->deleter) managed_->deleter(managed_);
  }

 private:
  std::shared_ptr<DeviceQueue> queue_;
  Managed* managed_;
  const void* data_;
};

// A tensor's shape in one of DLPack's structures.
DeviceTensor::Shape checked_shape(const dlpack::Tensor& tensor, DeviceId id,
                                  const std::string& name) {
  if (tensor.device.type != id.type || tensor.device.number != id.number)
    throw py::value_error(name + ": lies on " +
                          device_text({tensor.device.type, tensor.device.number}) +
                          ", the net on " + device_text(id));
  DeviceTensor::Shape shape(tensor.shape, tensor.shape + tensor.ndim);
  const bool real = tensor.type.code == dlpack::kFloat && tensor.type.bits == 32;
  const bool label = tensor.type.code == dlpack::kInt && tensor.type.bits == 64;
  if (tensor.type.lanes != 1 || !(real || label))
    throw py::type_error(name + ": has dtype " + type_text(tensor.type) +
                         " on the device, expected float32 (or int64 for class labels)");
  Index expected = 1;
  bool dense = true;
  for (std::size_t i = shape.size(); i-- > 0;) {
    if (tensor.strides && shape[i] != 1 && tensor.strides[i] != expected) dense = false;
    expected *= shape[i];
  }
  if (!dense && expected > 0) {
    const DeviceTensor::Shape strides(tensor.strides, tensor.strides + tensor.ndim);
    throw py::value_error(name + ": has strides " + shape_text(strides) + " for shape " +
                          shape_text(shape) +
                          ", expected contiguous memory on the device: make a contiguous copy");
  }
  return shape;
}

// Takes the capsule's tensor over, unless it is refused.
template <class Managed>
DeviceTensor taken(const PyDevice& device, py::capsule capsule, const char* used,
                   const std::string& name) {
  auto* managed = capsule.get_pointer<Managed>();
  const dlpack::Tensor& tensor = managed->tensor;
  DeviceTensor::Shape shape = checked_shape(tensor, device.queue->id(), name);
  void* data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  const auto type =
      tensor.type.code == dlpack::kFloat ? DeviceTensor::Type::Float32 : DeviceTensor::Type::Int64;
  std::size_t bytes = type == DeviceTensor::Type::Float32 ? 4 : 8;
  for (const Index n : shape) bytes *= static_cast<std::size_t>(n);
  auto keep = std::make_shared<Lent<Managed>>(device.queue, managed, data, bytes);
  capsule.set_name(used);  // from now on the deleter is ours to call
  return {device.queue, std::move(keep), data, std::move(shape), type};
}

// What to_dlpack gives away lives until whoever took it calls the deleter.
template <class Managed> struct Given {
  Managed managed{};
  DeviceTensor tensor;
  std::vector<std::int64_t> shape, strides;

  explicit Given(const DeviceTensor& from)
      : tensor(from), shape(from.shape().begin(), from.shape().end()), strides(shape.size()) {
    std::int64_t stride = 1;
    for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) strides[i] = stride;
    const DeviceId id = from.queue()->id();
    managed.tensor.data = from.data();
    managed.tensor.device = {id.type, id.number};
    managed.tensor.ndim = static_cast<std::int32_t>(shape.size());
    managed.tensor.type = {
        from.type() == DeviceTensor::Type::Float32 ? dlpack::kFloat : dlpack::kInt,
        static_cast<std::uint8_t>(8 * from.item_size()), 1};
    managed.tensor.shape = shape.data();
    managed.tensor.strides = strides.data();
    managed.context = this;
    managed.deleter = [](Managed* self) { delete static_cast<Given*>(self->context); };
  }
};

template <class Managed> py::capsule capsule_of(Given<Managed>* given, const char* name) {
  return py::capsule(&given->managed, name, [](PyObject* object) {
    // Renamed by whoever took the tensor, who then calls the deleter.
    const std::string now = PyCapsule_GetName(object);
    if (now != kName && now != kVersionedName) return;
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(object, now.c_str()));
    managed->deleter(managed);
  });
}

}  // namespace

DeviceTensor::DeviceTensor(std::shared_ptr<DeviceQueue> queue, Shape shape, const char* what)
    : queue_(std::move(queue)), shape_(std::move(shape)) {
  const py::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  auto memory = std::make_shared<DeviceArray<float>>(queue_, size(), what);
  data_ = memory->data();
  keep_ = std::move(memory);
}

DeviceTensor::DeviceTensor(std::shared_ptr<DeviceQueue> queue, std::shared_ptr<void> keep,
                           void* data, Shape shape, Type type)
    : queue_(std::move(queue)),
      keep_(std::move(keep)),
      data_(data),
      shape_(std::move(shape)),
      type_(type) {}

Index DeviceTensor::size() const {
  Index n = 1;
  for (const Index d : shape_) n *= d;
  return n;
}

DeviceTensor DeviceTensor::reshaped(Shape shape) const {
  DeviceTensor view(queue_, keep_, data_, std::move(shape), type_);
  if (view.size() != size())
    throw py::value_error("reshape: " + shape_text(shape_) + " does not become " +
                          shape_text(view.shape_));
  return view;
}

std::string DeviceTensor::describe() const {
  return "shape " + shape_text(shape_) + " of dtype " +
         (type_ == Type::Float32 ? "float32" : "int64") + " on " + device_text(queue_->id());
}

const DeviceTensor* device_tensor(const py::handle& object) {
  return py::isinstance<DeviceTensor>(object) ? object.cast<const DeviceTensor*>() : nullptr;
}

RowSource device_rows(const DeviceTensor& tensor, const std::string& name, Index rows, Index cols) {
  const DeviceTensor::Shape& shape = tensor.shape();
  if (tensor.type() != DeviceTensor::Type::Float32 || shape.size() != 2 || shape[1] != cols ||
      (rows >= 0 && shape[0] != rows))
    throw py::value_error(name + ": got " + tensor.describe() + ", expected float32 of shape (" +
                          (rows < 0 ? "samples" : std::to_string(rows)) + ", " +
                          std::to_string(cols) + ")");
  constexpr auto kSize = static_cast<Index>(sizeof(float));
  return {
      static_cast<const char*>(tensor.data()), shape[0], cols, cols * kSize, kSize, Scalar::F32};
}

DeviceTensor from_dlpack(const PyDevice& device, const py::object& object, const std::string& name,
                         bool writable) {
  const DeviceId id = device.queue->id();
  const auto place = object.attr("__dlpack_device__")().cast<py::tuple>();
  // Asked before the tensor is: the producer may have to do something with our stream.
  const DeviceId theirs{py::int_(place[0]).cast<int>(), py::int_(place[1]).cast<int>()};
  if (!(theirs == id))
    throw py::value_error(name + ": lies on " + device_text(theirs) + ", the net on " +
                          device_text(id));
  const py::int_ stream(device.queue->stream());
  py::object found;
  try {
    found = object.attr("__dlpack__")(py::arg("stream") = stream,
                                      py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;  // a producer from before version 1.0
    found = object.attr("__dlpack__")(py::arg("stream") = stream);
  }
  if (!py::isinstance<py::capsule>(found))
    throw py::type_error(name + ": __dlpack__ returned no capsule");
  const auto capsule = py::reinterpret_borrow<py::capsule>(found);
  const std::string kind = capsule.name() ? capsule.name() : "";
  if (kind == kVersionedName) {
    const auto* managed = capsule.get_pointer<dlpack::ManagedVersioned>();
    if (managed->version.major > dlpack::kVersion.major)
      throw py::buffer_error(name + ": DLPack version " + std::to_string(managed->version.major) +
                             " of the tensor is newer than 1.0");
    if (writable && (managed->flags & dlpack::kReadOnly))
      throw py::value_error(name + ": the memory on the device is read-only");
    return taken<dlpack::ManagedVersioned>(device, capsule, kUsedVersionedName, name);
  }
  if (kind != kName)
    throw py::type_error(name + ": expected a capsule 'dltensor' or 'dltensor_versioned', got '" +
                         kind + "'");
  return taken<dlpack::Managed>(device, capsule, kUsedName, name);
}

py::capsule to_dlpack(const DeviceTensor& tensor, const py::object& stream,
                      const py::object& max_version, const py::object& dl_device,
                      const py::object& copy) {
  const DeviceId id = tensor.queue()->id();
  if (!dl_device.is_none()) {
    const auto place = dl_device.cast<py::tuple>();
    if (!(DeviceId{py::int_(place[0]).cast<int>(), py::int_(place[1]).cast<int>()} == id))
      throw py::buffer_error("dl_device: the array stays on " + device_text(id) +
                             "; numpy() copies it to the host");
  }
  if (!copy.is_none() && copy.cast<bool>())
    throw py::buffer_error("copy: expected None or False, the memory itself is handed over");
  // As the array API has it for CUDA: None is the legacy default stream, -1 asks for no waiting.
  const auto wanted = stream.is_none() ? std::intptr_t{1} : stream.cast<std::intptr_t>();
  if (wanted == 0 || wanted < -1)
    throw py::value_error(
        "stream: expected None, -1, 1 (legacy default), 2 (per thread) or a "
        "stream's address, got " +
        std::to_string(wanted));
  if (wanted != -1) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(tensor.queue()->mutex());
    tensor.queue()->lead(wanted);
  }
  if (!max_version.is_none() && max_version.cast<py::tuple>()[0].cast<int>() >= 1) {
    auto* given = new Given<dlpack::ManagedVersioned>(tensor);
    given->managed.version = dlpack::kVersion;
    return capsule_of(given, kVersionedName);
  }
  return capsule_of(new Given<dlpack::Managed>(tensor), kName);
}

}  // namespace gradstack::bindings

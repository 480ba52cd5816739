// Arrays in a device's memory as Python sees them (gs.DeviceArray): results of calls, and memory
// that other libraries lend through DLPack. float32, rows without gaps.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gradstack/data.hpp"
#include "gradstack/device.hpp"

namespace gradstack::bindings {

namespace py = pybind11;

// What _core.device.Device holds.
struct PyDevice {
  std::shared_ptr<DeviceQueue> queue;
};

class DeviceTensor {
 public:
  enum class Type { Float32, Int64 };
  using Shape = std::vector<Index>;

  // New memory; the queue is taken without the GIL.
  DeviceTensor(std::shared_ptr<DeviceQueue> queue, Shape shape, const char* what = "a result");
  // Memory that `keep` holds.
  DeviceTensor(std::shared_ptr<DeviceQueue> queue, std::shared_ptr<void> keep, void* data,
               Shape shape, Type type);

  const std::shared_ptr<DeviceQueue>& queue() const { return queue_; }
  void* data() const { return data_; }
  const Shape& shape() const { return shape_; }
  Type type() const { return type_; }
  Index size() const;
  std::size_t item_size() const { return type_ == Type::Float32 ? 4 : 8; }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * item_size(); }
  DeviceTensor reshaped(Shape shape) const;
  std::string describe() const;

 private:
  std::shared_ptr<DeviceQueue> queue_;
  std::shared_ptr<void> keep_;
  void* data_ = nullptr;
  Shape shape_;
  Type type_ = Type::Float32;
};

// An argument that a device may read: what Python makes of arrays there, and of no others.
class LentTensor : public DeviceTensor {
 public:
  explicit LentTensor(DeviceTensor tensor) : DeviceTensor(std::move(tensor)) {}
};

// Null for everything else.
const DeviceTensor* device_tensor(const py::handle& object);

// Rows (rows, cols) of float32 for the core; throws errors that name it. rows < 0: any number.
RowSource device_rows(const DeviceTensor& tensor, const std::string& name, Index rows, Index cols);

// DLPack: memory that `object` lends to a device, and the capsules of __dlpack__.
DeviceTensor from_dlpack(const PyDevice& device, const py::object& object, const std::string& name,
                         bool writable);
py::capsule to_dlpack(const DeviceTensor& tensor, const py::object& stream,
                      const py::object& max_version, const py::object& dl_device,
                      const py::object& copy);

}  // namespace gradstack::bindings

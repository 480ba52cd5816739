// How a device stores numbers and multiplies matrices: the precisions of a run.
#pragma once

#include <stdexcept>
#include <string>

#include "gradstack/config.hpp"

namespace gradstack {

// How values are stored. Kernels compute in float32 whatever it is.
enum class DeviceType : std::uint8_t { Float32, BFloat16, Float16 };

// Float32: exact. TF32: matrix products round their operands to 10 bits of mantissa. BF16, FP16:
// activations and their gradients are stored in that type and products take them and a copy of the
// weights in that type; sums, costs, parameters, their gradients and the optimiser are float32.
enum class DevicePrecision : std::uint8_t { Float32, TF32, BF16, FP16 };

inline DeviceType storage_of(DevicePrecision precision) {
  switch (precision) {
    case DevicePrecision::BF16:
      return DeviceType::BFloat16;
    case DevicePrecision::FP16:
      return DeviceType::Float16;
    default:
      return DeviceType::Float32;
  }
}

inline std::size_t bytes_of(DeviceType type) { return type == DeviceType::Float32 ? 4 : 2; }

inline DevicePrecision precision_of(const std::string& name) {
  if (name == "float32") return DevicePrecision::Float32;
  if (name == "tf32") return DevicePrecision::TF32;
  if (name == "bf16") return DevicePrecision::BF16;
  if (name == "fp16") return DevicePrecision::FP16;
  throw std::invalid_argument("precision must be 'float32', 'tf32', 'bf16' or 'fp16', got '" +
                              name + "'");
}

// Values in device memory with their type. Where one is asked for, a float* will do.
struct DeviceOut {
  DeviceOut() = default;
  DeviceOut(float* values) : data(values) {}
  DeviceOut(void* values, DeviceType stored) : data(values), type(stored) {}
  explicit operator bool() const { return data != nullptr; }
  template <class T> GS_HD T* as() const { return static_cast<T*>(data); }

  void* data = nullptr;
  DeviceType type = DeviceType::Float32;
};

struct DeviceIn {
  DeviceIn() = default;
  DeviceIn(const float* values) : data(values) {}
  DeviceIn(const void* values, DeviceType stored) : data(values), type(stored) {}
  DeviceIn(DeviceOut values) : data(values.data), type(values.type) {}
  explicit operator bool() const { return data != nullptr; }
  template <class T> GS_HD const T* as() const { return static_cast<const T*>(data); }

  const void* data = nullptr;
  DeviceType type = DeviceType::Float32;
};

// n values further on.
inline DeviceOut operator+(DeviceOut values, Index n) {
  return {static_cast<char*>(values.data) + n * static_cast<Index>(bytes_of(values.type)),
          values.type};
}
inline DeviceIn operator+(DeviceIn values, Index n) {
  return {static_cast<const char*>(values.data) + n * static_cast<Index>(bytes_of(values.type)),
          values.type};
}

}  // namespace gradstack

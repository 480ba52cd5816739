// DLPack's structures (specification 1.0), which libraries exchange arrays in. Names are ours, the
// layout is the specification's.
#pragma once

#include <cstdint>

namespace gradstack::dlpack {

struct Device {
  std::int32_t type;
  std::int32_t number;
};

struct Type {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
constexpr std::uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6;

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  Type type;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: row-major without gaps
  std::uint64_t byte_offset;
};

// Before version 1.0: capsules named "dltensor", afterwards "used_dltensor".
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Version {
  std::uint32_t major, minor;
};
constexpr Version kVersion{1, 0};
constexpr std::uint64_t kReadOnly = 1;

// Since version 1.0: capsules named "dltensor_versioned", afterwards "used_dltensor_versioned".
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

}  // namespace gradstack::dlpack

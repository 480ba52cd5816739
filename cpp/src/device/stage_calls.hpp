// Blocks as the calls of a queue take them.
#pragma once

#include <algorithm>

#include "gradstack/device.hpp"
#include "gradstack/graph.hpp"

namespace gradstack {

inline DeviceOp op_of(const Stage& stage) {
  DeviceOp op;
  op.id = stage.op_id;
  std::copy_n(stage.params.begin(), std::min<std::size_t>(stage.params.size(), kMaxOpParams), op.p);
  return op;
}

inline DeviceBinary binary_of(Kind kind) {
  switch (kind) {
    case Kind::Add:
      return DeviceBinary::Add;
    case Kind::Sub:
      return DeviceBinary::Sub;
    case Kind::Mul:
      return DeviceBinary::Mul;
    default:
      return DeviceBinary::Div;
  }
}

inline std::size_t bytes_of(Index n) { return static_cast<std::size_t>(n) * sizeof(float); }

}  // namespace gradstack

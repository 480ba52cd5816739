// The order in which an epoch visits the samples, drawn on the device: the CPU's bit for bit.
#pragma once

#include <memory>

#include "gradstack/device.hpp"

namespace gradstack {

class DeviceOrder {
 public:
  DeviceOrder(std::shared_ptr<DeviceQueue> queue, std::uint64_t seed, Index count);
  // Before the kernels of an epoch are queued.
  void open(std::int64_t epoch);
  const Index* data() const { return order_.data(); }
  // An error came in the middle of something: nothing of what is there can be relied on.
  void forget() { epoch_ = kNone; }

 private:
  static constexpr std::int64_t kNone = -1;
  std::shared_ptr<DeviceQueue> queue_;
  std::uint64_t seed_;
  std::int64_t epoch_ = kNone;
  DeviceArray<Index> order_, lists_;
};

}  // namespace gradstack

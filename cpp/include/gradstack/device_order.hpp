// The order in which an epoch visits the samples. It is the CPU's bit for bit, and Fisher-Yates is
// sequential, so the host draws it: the next epoch's while the device works on this one.
#pragma once

#include <memory>
#include <vector>

#include "gradstack/device.hpp"

namespace gradstack {

// The orders of two epochs in a row. The device reads one while the host draws the other into
// page-locked memory and a copy beside the kernels takes it over: nobody waits for it.
class DeviceOrder {
 public:
  // resident: the device reads orders; otherwise the host alone does.
  DeviceOrder(std::shared_ptr<DeviceQueue> queue, std::uint64_t seed, Index count, bool resident);
  // The order of the current or the next epoch; drawn and on its way if it was not yet.
  const Index* of(std::int64_t epoch);
  // Before the kernels of the (now current) epoch are queued, which wait for the copy alone.
  // Returns where in data() its order begins.
  Index open(std::int64_t epoch);
  const Index* data() const { return orders_.data(); }
  // An error came in the middle of something: nothing of what is there can be relied on.
  void forget();

 private:
  static constexpr std::int64_t kNone = -3;  // precedes no epoch by two
  struct Half {
    std::int64_t epoch = kNone;
    std::unique_ptr<LockedMemory> locked;  // of the host, or:
    std::vector<Index> plain;
    std::unique_ptr<DeviceFence> copied, used;  // by the copies, by the kernels
    Index* order() const;
  };
  Half& half(std::int64_t epoch) { return halves_[epoch % 2]; }

  std::shared_ptr<DeviceQueue> queue_;
  std::uint64_t seed_;
  Index count_;
  bool resident_;
  std::int64_t current_ = kNone;  // the epoch whose order the kernels have waited for
  DeviceArray<Index> orders_;
  Half halves_[2];
};

}  // namespace gradstack

#include "gradstack/device_order.hpp"

#include "at.hpp"
#include "gradstack/random.hpp"

namespace gradstack {

DeviceOrder::DeviceOrder(std::shared_ptr<DeviceQueue> queue, std::uint64_t seed, Index count,
                         bool resident)
    : queue_(std::move(queue)), seed_(seed), count_(count), resident_(resident) {
  constexpr const char* kWhat = "the order of the samples";
  if (resident) orders_ = DeviceArray<Index>(queue_, 2 * count, kWhat);
  for (Half& half : halves_) {
    if (!resident) {
      half.plain.resize(at(count));
      continue;
    }
    half.locked = std::make_unique<LockedMemory>(queue_, at(count) * sizeof(Index), kWhat);
    half.copied = queue_->fence();
    half.used = queue_->fence();
  }
}

Index* DeviceOrder::Half::order() const {
  if (!locked) return const_cast<Index*>(plain.data());
  return static_cast<Index*>(static_cast<void*>(locked->data()));
}

const Index* DeviceOrder::of(std::int64_t epoch) {
  Half& to = half(epoch);
  if (to.epoch == epoch) return to.order();
  // The last copy has read what the host is about to write: it was for two epochs ago.
  if (resident_) queue_->wait_for(*to.copied);
  const bool in_turn = to.epoch == epoch - 2;
  to.epoch = kNone;
  permutation(seed_, static_cast<std::uint64_t>(epoch), count_, to.order());
  if (resident_) {
    if (!in_turn) queue_->mark(*to.used, DeviceLine::Kernels);
    queue_->hold(DeviceLine::Copies, *to.used);
    queue_->copy_beside(orders_.data() + epoch % 2 * count_, to.order(),
                        at(count_) * sizeof(Index));
    queue_->mark(*to.copied, DeviceLine::Copies);
  }
  to.epoch = epoch;
  return to.order();
}

Index DeviceOrder::open(std::int64_t epoch) {
  of(epoch);
  if (current_ != epoch) {
    // Behind the last kernels that read the other half, and before any of this epoch.
    queue_->mark(*half(epoch + 1).used, DeviceLine::Kernels);
    queue_->hold(DeviceLine::Kernels, *half(epoch).copied);
    current_ = epoch;
  }
  return epoch % 2 * count_;
}

void DeviceOrder::forget() {
  for (Half& half : halves_) half.epoch = kNone;
  current_ = kNone;
}

}  // namespace gradstack

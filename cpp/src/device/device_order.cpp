#include "gradstack/device_order.hpp"

#include "gradstack/random.hpp"

namespace gradstack {

DeviceOrder::DeviceOrder(std::shared_ptr<DeviceQueue> queue, std::uint64_t seed, Index count)
    : queue_(std::move(queue)),
      seed_(seed),
      order_(queue_, count, "the order of the samples"),
      lists_(queue_, 2 * count, "the order of the samples") {}

void DeviceOrder::open(std::int64_t epoch) {
  if (epoch_ == epoch) return;
  epoch_ = kNone;
  DevicePermutation p;
  p.key = permutation_key(seed_, static_cast<std::uint64_t>(epoch));
  p.n = order_.size();
  p.order = order_.data();
  p.first = lists_.data();
  p.next = lists_.data() + p.n;
  queue_->permutation(p);
  epoch_ = epoch;
}

}  // namespace gradstack

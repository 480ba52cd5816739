#include "emulated.hpp"

#include "cuda_device.hpp"

namespace gradstack::device {

Devices devices() { return {1, 1, ""}; }

// GRADSTACK_EMULATED_MEMORY: bytes that one allocation may have, to see what a full device does.
// GRADSTACK_EMULATED_PART: bytes of a part, to see batches in several.
std::shared_ptr<DeviceQueue> open_device(int) {
  auto queue = std::make_shared<EmulatedQueue>();
  if (const char* limit = std::getenv("GRADSTACK_EMULATED_MEMORY"))
    queue->limit = std::strtoull(limit, nullptr, 10);
  if (const char* part = std::getenv("GRADSTACK_EMULATED_PART"))
    queue->part_bytes = std::strtoull(part, nullptr, 10);
  return queue;
}

}  // namespace gradstack::device

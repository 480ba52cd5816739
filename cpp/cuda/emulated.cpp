#include "emulated.hpp"

#include "cuda_device.hpp"

namespace gradstack::device {

Devices devices() { return {1, 1, ""}; }

// What tests ask for: GRADSTACK_EMULATED_MEMORY, bytes of memory; GRADSTACK_EMULATED_COPIES=early,
// see emulated.hpp; GRADSTACK_EMULATED_FAIL, a kernel that fails.
std::shared_ptr<DeviceQueue> open_device(int) {
  auto queue = std::make_shared<EmulatedQueue>();
  if (const char* limit = std::getenv("GRADSTACK_EMULATED_MEMORY"))
    queue->limit = std::strtoull(limit, nullptr, 10);
  if (const char* copies = std::getenv("GRADSTACK_EMULATED_COPIES"))
    queue->early = std::string(copies) == "early";
  if (const char* kernel = std::getenv("GRADSTACK_EMULATED_FAIL")) queue->fail(kernel);
  return queue;
}

}  // namespace gradstack::device

#include "emulated.hpp"

#include "cuda_device.hpp"

namespace gradstack::device {

Devices devices() { return {1, 1, ""}; }

// What tests ask for: GRADSTACK_EMULATED_MEMORY, bytes of memory (parts
// are a sixteenth); GRADSTACK_EMULATED_PART, bytes of a part; GRADSTACK_EMULATED_COPIES=early,
// see emulated.hpp; GRADSTACK_EMULATED_FAIL=kernel:n, which fails when it runs for the n-th time.
// GRADSTACK_EMULATED_EPILOGUES, what may follow a product: all (the default); none; forward, no
// derivatives; no sums beside derivatives; eights, only for sizes that are multiples of 8; and with
// errors that must be found: nan, a ReLU that makes it 0; kink, whose bits say 1 at 0; order, of
// the bits in a byte.
std::shared_ptr<DeviceQueue> open_device(int) {
  auto queue = std::make_shared<EmulatedQueue>();
  if (const char* limit = std::getenv("GRADSTACK_EMULATED_MEMORY")) {
    queue->limit = std::strtoull(limit, nullptr, 10);
    queue->part_bytes = queue->limit / 16;
  }
  if (const char* part = std::getenv("GRADSTACK_EMULATED_PART"))
    queue->part_bytes = std::strtoull(part, nullptr, 10);
  if (const char* copies = std::getenv("GRADSTACK_EMULATED_COPIES"))
    queue->early = std::string(copies) == "early";
  if (const char* epilogues = std::getenv("GRADSTACK_EMULATED_EPILOGUES"))
    queue->epilogues = epilogues;
  if (const char* set = std::getenv("GRADSTACK_EMULATED_FAIL")) {
    const std::string text = set;
    const std::size_t colon = text.find(':');
    queue->fail(text.substr(0, colon), std::stoll(text.substr(colon + 1)));
  }
  return queue;
}

}  // namespace gradstack::device

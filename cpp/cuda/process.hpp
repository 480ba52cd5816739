// What every kind of device does alike: it does not survive a fork, and says how it failed.
#pragma once

#include <pthread.h>

#include <atomic>
#include <string>

#include "gradstack/device.hpp"

namespace gradstack::device {

// CUDA does not survive a fork: the child would use memory and locks of its parent's driver.
inline std::atomic<bool> forked{false};

inline void watch_forks() {
  static std::atomic<bool> watched{false};
  if (!watched.exchange(true)) pthread_atfork(nullptr, nullptr, [] { forked = true; });
}

inline void check_process() {
  if (forked)
    throw DeviceError(
        "CUDA was in use when this process was forked, which CUDA does not support: use the "
        "device in the parent alone, or start processes with multiprocessing's 'spawn'");
}

inline std::string mebibytes(std::size_t bytes) {
  return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB";
}

inline DeviceOutOfMemory out_of_memory(std::size_t bytes, const char* what, DeviceMemory memory,
                                       const std::string& name) {
  return DeviceOutOfMemory("out of device memory: " + mebibytes(bytes) + " wanted for " + what +
                           ", " + mebibytes(memory.free) + " of " + mebibytes(memory.total) +
                           " are free on " + name);
}

// Of work that failed some time after it was queued, when the host waits for it.
inline std::string while_waiting(const std::string& what, const char* last) {
  return what + ", in kernel '" + last + "' or one before it (GRADSTACK_CUDA_SYNC=1 names it)";
}

}  // namespace gradstack::device

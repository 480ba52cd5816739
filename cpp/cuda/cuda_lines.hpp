// What runs beside the kernels of a GPU: a stream for copies, events between streams, page-locked
// memory. Whoever calls has made the device current.
#pragma once

#include <cuda_runtime_api.h>

#include "gradstack/device.hpp"

namespace gradstack::device {

// Where memory lies; of the host's own memory nothing is known: "unregistered".
cudaMemoryType memory_type(const void* memory);

void* allocate_locked(std::size_t bytes, const char* what);

class CopyLine {
 public:
  void open();
  void close() noexcept;
  cudaStream_t stream() const { return stream_; }
  void copy(void* to, const void* locked, std::size_t bytes);
  void finish() noexcept;

 private:
  cudaStream_t stream_ = nullptr;
};

class EventFence final : public DeviceFence {
 public:
  EventFence();
  ~EventFence() override;
  EventFence(const EventFence&) = delete;
  EventFence& operator=(const EventFence&) = delete;
  void mark(cudaStream_t stream);
  void hold(cudaStream_t stream) const;
  void wait() const;

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace gradstack::device

#include "cuda_lines.hpp"

#include "cuda_launch.hpp"
#include "process.hpp"

namespace gradstack::device {

cudaMemoryType memory_type(const void* memory) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, memory) == cudaSuccess) return attributes.type;
  cudaGetLastError();
  return cudaMemoryTypeUnregistered;
}

void* allocate_locked(std::size_t bytes, const char* what) {
  void* memory = nullptr;
  if (const cudaError_t status = cudaHostAlloc(&memory, bytes, cudaHostAllocDefault);
      status != cudaSuccess) {
    cudaGetLastError();
    if (status != cudaErrorMemoryAllocation) check(status, "cudaHostAlloc");
    throw DeviceOutOfMemory("out of page-locked memory: " + mebibytes(bytes) + " wanted for " +
                            what);
  }
  return memory;
}

void CopyLine::open() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

void CopyLine::close() noexcept {
  if (stream_) {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  stream_ = nullptr;
}

void CopyLine::copy(void* to, const void* locked, std::size_t bytes) {
  check(cudaMemcpyAsync(to, locked, bytes, cudaMemcpyHostToDevice, stream_),
        "copy beside the kernels");
}

void CopyLine::finish() noexcept {
  if (stream_) cudaStreamSynchronize(stream_);
}

EventFence::EventFence() {
  check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
}

EventFence::~EventFence() {
  if (!forked) cudaEventDestroy(event_);
}

void EventFence::mark(cudaStream_t stream) {
  check(cudaEventRecord(event_, stream), "cudaEventRecord");
}

void EventFence::hold(cudaStream_t stream) const {
  check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
}

void EventFence::wait() const { check(cudaEventSynchronize(event_), "copy beside the kernels"); }

}  // namespace gradstack::device

// How kernels are launched on a GPU. The templates are defined for nvcc alone (kernels.cu); the
// host's compiler sees the class.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels.hpp"

namespace gradstack::device {

// Throws DeviceError naming `what` unless status is success.
void check(cudaError_t status, const char* what);

struct CudaLaunch {
  cudaStream_t stream = nullptr;
  int processors = 1;     // of the device
  bool wait = false;      // for every kernel, so that an error names it
  const char* last = "";  // the kernel launched last

  template <class Body> void each(const char* name, Index n, const Body& body);
  template <class Value, class Finish>
  void sum(const char* name, Index n, const Value& value, const Finish& finish);
  template <class Value, class Finish>
  void rows(const char* name, Index n, Index cols, const Value& value, const Finish& finish);
  // body(Block) by `blocks` blocks of threads with `shared` bytes of shared memory each.
  template <class Body> void tiles(const char* name, int blocks, int shared, const Body& body);

 private:
  void launched(const char* name);
};

extern template class KernelQueue<CudaLaunch>;

}  // namespace gradstack::device

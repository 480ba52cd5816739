// The fused MLP for a GPU; a translation unit of its own, as it takes long to compile.
#include "cuda_launch.hpp"
#include "fused_queue.hpp"

namespace gradstack::device {
namespace {

template <class Body>
__global__ void __launch_bounds__(kBlockThreads, Body::kResident)
    run_tiles(const __grid_constant__ Body body) {
  extern __shared__ uint4 shared[];
  body(Block(reinterpret_cast<std::uint16_t*>(shared)));
}

}  // namespace

// More than 48 KiB of shared memory have to be asked for, and room for a second block as well.
template <class Body>
void CudaLaunch::tiles(const char* name, int blocks, int shared, const Body& body) {
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check(cudaFuncSetAttribute(run_tiles<Body>, attribute, value), name);
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  run_tiles<<<static_cast<unsigned>(blocks), kBlockThreads, static_cast<std::size_t>(shared),
              stream>>>(body);
  launched(name);
}

template void KernelQueue<CudaLaunch>::mlp_forward(const DeviceMlp& m);
template void KernelQueue<CudaLaunch>::mlp_backward(const DeviceMlp& m);

}  // namespace gradstack::device

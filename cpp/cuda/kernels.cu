// kernels.hpp for a GPU.
#include "cuda_launch.hpp"
#include "fused_mlp.hpp"
#include "kernel_queue.hpp"
#include "process.hpp"

namespace gradstack::device {
namespace {

constexpr int kBlock = 256;
constexpr int kSmallBlock = 64;  // little work: spread it over the processors
constexpr Index kSmall = Index{1} << 14;
constexpr Index kWaves = 16;  // blocks per processor at most; each takes several turns
constexpr int kSumBlock = 1024;
// Blocks that a processor is to hold: what ptxas may share registers out among.
constexpr int kHeld = 4;

template <class Body>
__global__ void __launch_bounds__(kBlock, kHeld) run_each(Index n, Body body) {
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride)
    body(i);
}

// One block: threads add up strided parts, the parts are added up pairwise.
template <class Value, class Finish>
__global__ void __launch_bounds__(kSumBlock) run_sum(Index n, Value value, Finish finish) {
  __shared__ double part[kSumBlock];
  double sum = 0;
  for (Index i = threadIdx.x; i < n; i += kSumBlock) sum += value(i);
  part[threadIdx.x] = sum;
  for (unsigned half = kSumBlock / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
  }
  if (threadIdx.x == 0) finish(part[0]);
}

// A block for every row in turn: threads add up strided parts, the parts are added up pairwise.
template <int kThreads, class Value, class Finish>
__global__ void __launch_bounds__(kThreads)
    run_rows(Index n, Index cols, Value value, Finish finish) {
  __shared__ float part[kThreads];
  for (Index row = blockIdx.x; row < n; row += gridDim.x) {
    float sum = 0;
    for (Index j = threadIdx.x; j < cols; j += kThreads) sum += value(row, j);
    part[threadIdx.x] = sum;
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    if (threadIdx.x == 0) finish(row, part[0]);
    __syncthreads();
  }
}

}  // namespace

template <class Body> void CudaLaunch::each(const char* name, Index n, const Body& body) {
  if (n <= 0) return;
  const int block = n <= kSmall ? kSmallBlock : kBlock;
  Index blocks = (n + block - 1) / block;
  if (blocks > kWaves * processors) blocks = kWaves * processors;
  run_each<<<static_cast<unsigned>(blocks), block, 0, stream>>>(n, body);
  launched(name);
}

template <class Value, class Finish>
void CudaLaunch::sum(const char* name, Index n, const Value& value, const Finish& finish) {
  run_sum<<<1, kSumBlock, 0, stream>>>(n, value, finish);
  launched(name);
}

template <class Value, class Finish>
void CudaLaunch::rows(const char* name, Index n, Index cols, const Value& value,
                      const Finish& finish) {
  if (n <= 0) return;
  constexpr Index kMostBlocks = 64;  // per processor
  const auto blocks =
      static_cast<unsigned>(n < kMostBlocks * processors ? n : kMostBlocks * processors);
  if (row_threads(cols) == kNarrowRow)
    run_rows<kNarrowRow><<<blocks, kNarrowRow, 0, stream>>>(n, cols, value, finish);
  else
    run_rows<kWideRow><<<blocks, kWideRow, 0, stream>>>(n, cols, value, finish);
  launched(name);
}

void CudaLaunch::launched(const char* name) {
  // It may also be the error of a kernel that was launched before.
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess)
    check(status, while_waiting(std::string("launching ") + name, last).c_str());
  last = name;
  if (wait) check(cudaStreamSynchronize(stream), name);
}

template class KernelQueue<CudaLaunch>;
template void CudaLaunch::each(const char*, Index, const MlpGradients&);  // for fused_mlp.cu

}  // namespace gradstack::device

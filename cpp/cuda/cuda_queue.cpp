// The queue of a GPU: memory, matrix products by cuBLASLt, recordings as CUDA graphs. Compiled by
// the host's compiler; kernels.cu has the kernels.
#include <cublasLt.h>

#include <cstdlib>
#include <map>
#include <optional>
#include <tuple>

#include "cuda_device.hpp"
#include "cuda_launch.hpp"
#include "cuda_lines.hpp"
#include "gradstack/ops.hpp"
#include "process.hpp"

namespace gradstack::device {
namespace {

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw DeviceError(std::string("cuBLASLt: ") + what + ": " + cublasLtGetStatusString(status));
}

class Recording final : public DeviceRecording {
 public:
  explicit Recording(cudaGraphExec_t graph) : exec(graph) {}
  ~Recording() override {
    if (!forked) cudaGraphExecDestroy(exec);
  }
  cudaGraphExec_t exec;
};

template <class Handle, cublasStatus_t (*kDestroy)(Handle)> struct Owned {
  Handle handle = nullptr;
  Owned() = default;
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (handle && !forked) kDestroy(handle);
  }
};
using Descriptor = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Matrix = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t type_of(DeviceType type) {
  switch (type) {
    case DeviceType::BFloat16:
      return CUDA_R_16BF;
    case DeviceType::Float16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}

// The largest power of two that divides the address, at most 256: what algorithms may load at once.
std::uint32_t alignment(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  std::uint32_t most = 256;
  while (address % most) most /= 2;
  return most;
}

class CudaQueue final : public KernelQueue<CudaLaunch> {
 public:
  explicit CudaQueue(int device);
  ~CudaQueue() override;

  std::string name() const override { return name_; }
  void* allocate(std::size_t bytes, const char* what) override;
  void release(void* memory) noexcept override;
  void to_device(void* to, const void* host, std::size_t bytes) override;
  void to_host(void* host, const void* from, std::size_t bytes) override;
  void zero(void* to, std::size_t bytes) override;
  void synchronize() override;
  DeviceMemory memory() override;
  void* allocate_host(std::size_t bytes, const char* what) override;
  void release_host(void* memory) noexcept override;
  void copy_beside(void* to, const void* locked, std::size_t bytes) override;
  std::unique_ptr<DeviceFence> fence() override;
  void mark(DeviceFence& fence, DeviceLine line) override;
  void hold(DeviceLine line, const DeviceFence& fence) override;
  void wait_for(const DeviceFence& fence) override;
  DeviceId id() const override { return {2, device_}; }
  std::intptr_t stream() const override { return reinterpret_cast<std::intptr_t>(launch_.stream); }
  void lead(std::intptr_t stream) override;
  bool on_device(const void* memory) const override {
    return memory && !forked && memory_type(memory) == cudaMemoryTypeDevice;
  }
  void borrow(const void*, std::size_t) override {}
  void give_back(const void*) noexcept override {}
  bool records() const override { return !wait_for_each_; }
  void record() override;
  std::unique_ptr<DeviceRecording> recorded() override;
  void abandon_recording() noexcept override;
  void replay(const DeviceRecording& recording) override;

 private:
  struct Algorithm {
    bool found = false;
    cublasLtMatmulAlgo_t algo{};
  };
  // Shape, transpositions, accumulation, types, epilogue and alignments: what a choice depends on.
  using Key = std::tuple<Index, Index, Index, bool, bool, bool, bool, DeviceType, DeviceType, int,
                         std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>;
  // With the vectors and matrices that it takes or makes; aux_ld: values or bits, 0: without aux.
  struct Epilogue {
    cublasLtEpilogue_t kind = CUBLASLT_EPILOGUE_DEFAULT;
    const void* vector = nullptr;
    const void* aux = nullptr;
    std::int64_t aux_ld = 0;
  };

  void enter();
  bool product(const DeviceGemm& g, Call call, bool run) override;
  static std::optional<Epilogue> epilogue_of(const DeviceGemm& g, Call call);
  bool matmul(const DeviceGemm& g, const Epilogue& epilogue, bool run);
  void expect(cudaError_t status, const char* what) const;
  void wait(const char* what);
  void destroy() noexcept;
  cudaStream_t stream(DeviceLine line) const {
    return line == DeviceLine::Kernels ? launch_.stream : copies_.stream();
  }

  int device_;
  CopyLine copies_;
  const bool wait_for_each_ = std::getenv("GRADSTACK_CUDA_SYNC") != nullptr;
  std::string name_;
  cublasLtHandle_t blas_ = nullptr;
  void* workspace_ = nullptr;
  static constexpr std::size_t kWorkspace = std::size_t{32} << 20;
  std::map<Key, Algorithm> algorithms_;
};

CudaQueue::CudaQueue(int device) : device_(device) {
  watch_forks();
  enter();
  cudaDeviceProp properties{};
  device::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  name_ = properties.name;
  launch_.processors = properties.multiProcessorCount;
  launch_.wait = wait_for_each_;
  try {
    device::check(cudaStreamCreateWithFlags(&launch_.stream, cudaStreamNonBlocking),
                  "cudaStreamCreate");
    copies_.open();
    check(cublasLtCreate(&blas_), "cublasLtCreate");
    workspace_ = allocate(kWorkspace, "the workspace of matrix products");
    scratch_ = static_cast<float*>(allocate(kScratch * sizeof(float), "scratch"));
    factor_ = static_cast<double*>(allocate(sizeof(double), "scratch"));
  } catch (...) {
    destroy();
    throw;
  }
}

CudaQueue::~CudaQueue() { destroy(); }

// Errors are of no use here: the process may be about to end, with the driver gone.
void CudaQueue::destroy() noexcept {
  if (forked || cudaSetDevice(device_) != cudaSuccess) return;
  if (launch_.stream) cudaStreamSynchronize(launch_.stream);
  for (void* memory : {workspace_, static_cast<void*>(scratch_), static_cast<void*>(factor_)})
    release(memory);
  if (blas_) cublasLtDestroy(blas_);
  copies_.close();
  if (launch_.stream) cudaStreamDestroy(launch_.stream);
}

// Every call: the current device is a property of the calling thread.
void CudaQueue::enter() {
  check_process();
  expect(cudaSetDevice(device_), "cudaSetDevice");
}

void* CudaQueue::allocate(std::size_t bytes, const char* what) {
  enter();
  void* found = nullptr;
  if (const cudaError_t status = cudaMalloc(&found, bytes); status != cudaSuccess) {
    cudaGetLastError();  // this error is not sticky: later calls must not find it
    if (status != cudaErrorMemoryAllocation) device::check(status, "cudaMalloc");
    throw out_of_memory(bytes, what, memory(), name_);
  }
  try {
    zero(found, bytes);
  } catch (...) {
    release(found);
    throw;
  }
  return found;
}

void CudaQueue::release(void* memory) noexcept {
  if (!memory || forked || cudaSetDevice(device_) != cudaSuccess) return;
  cudaFree(memory);  // waits for kernels that use it
}

// An error that a call reports may be that of a kernel queued before.
void CudaQueue::expect(cudaError_t status, const char* what) const {
  if (status != cudaSuccess) device::check(status, while_waiting(what, launch_.last).c_str());
}

void CudaQueue::wait(const char* what) { expect(cudaStreamSynchronize(launch_.stream), what); }

void CudaQueue::to_device(void* to, const void* host, std::size_t bytes) {
  enter();
  // The kind is seen from the addresses: `host` may be device memory.
  expect(cudaMemcpyAsync(to, host, bytes, cudaMemcpyDefault, launch_.stream), "copy to the device");
  // CUDA leaves open when it has read the host's memory, page-locked or not.
  if (memory_type(host) != cudaMemoryTypeDevice) wait("copy to the device");
}

void CudaQueue::to_host(void* host, const void* from, std::size_t bytes) {
  enter();
  expect(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDefault, launch_.stream), "copy to the host");
  if (memory_type(host) != cudaMemoryTypeDevice) wait("copy to the host");
}

void CudaQueue::zero(void* to, std::size_t bytes) {
  enter();
  expect(cudaMemsetAsync(to, 0, bytes, launch_.stream), "zeroing memory");
}

void CudaQueue::synchronize() {
  enter();
  wait("waiting for the device");
}

DeviceMemory CudaQueue::memory() {
  enter();
  DeviceMemory found;
  device::check(cudaMemGetInfo(&found.free, &found.total), "cudaMemGetInfo");
  return found;
}

void* CudaQueue::allocate_host(std::size_t bytes, const char* what) {
  enter();
  return allocate_locked(bytes, what);
}

void CudaQueue::release_host(void* memory) noexcept {
  if (!memory || forked || cudaSetDevice(device_) != cudaSuccess) return;
  copies_.finish();  // they may be reading it
  cudaFreeHost(memory);
}

void CudaQueue::copy_beside(void* to, const void* locked, std::size_t bytes) {
  enter();
  copies_.copy(to, locked, bytes);
}

std::unique_ptr<DeviceFence> CudaQueue::fence() {
  enter();
  return std::make_unique<EventFence>();
}

void CudaQueue::mark(DeviceFence& fence, DeviceLine line) {
  enter();
  static_cast<EventFence&>(fence).mark(stream(line));
}

void CudaQueue::hold(DeviceLine line, const DeviceFence& fence) {
  enter();
  static_cast<const EventFence&>(fence).hold(stream(line));
}

void CudaQueue::wait_for(const DeviceFence& fence) {
  enter();
  static_cast<const EventFence&>(fence).wait();
}

// DLPack's numbers: 1 is the legacy default stream, 2 the per-thread one, as CUDA's own handles.
void CudaQueue::lead(std::intptr_t stream) {
  enter();
  EventFence fence;
  fence.mark(launch_.stream);
  fence.hold(reinterpret_cast<cudaStream_t>(stream));
}

void CudaQueue::record() {
  enter();
  launch_.wait = false;  // nothing runs while recording
  // Other threads may go on using CUDA meanwhile.
  device::check(cudaStreamBeginCapture(launch_.stream, cudaStreamCaptureModeThreadLocal),
                "recording a step");
}

std::unique_ptr<DeviceRecording> CudaQueue::recorded() {
  enter();
  launch_.wait = wait_for_each_;
  cudaGraph_t graph = nullptr;
  device::check(cudaStreamEndCapture(launch_.stream, &graph), "recording a step");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  device::check(status, "cudaGraphInstantiate");
  return std::make_unique<Recording>(exec);
}

void CudaQueue::abandon_recording() noexcept {
  launch_.wait = wait_for_each_;
  if (forked) return;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(launch_.stream, &status) == cudaSuccess &&
      status != cudaStreamCaptureStatusNone) {
    cudaGraph_t graph = nullptr;
    cudaStreamEndCapture(launch_.stream, &graph);
    if (graph) cudaGraphDestroy(graph);
  }
  cudaGetLastError();
}

void CudaQueue::replay(const DeviceRecording& recording) {
  enter();
  expect(cudaGraphLaunch(static_cast<const Recording&>(recording).exec, launch_.stream),
         "replaying a step");
  launch_.last = "a recorded step";
  if (launch_.wait) wait("replaying a step");
}

// What cuBLASLt has for a call, whether it has an algorithm for it or not.
std::optional<CudaQueue::Epilogue> CudaQueue::epilogue_of(const DeviceGemm& g, Call call) {
  const auto kind = [](int sum) { return static_cast<cublasLtEpilogue_t>(sum); };
  const auto named = [](const DeviceOp& op) { return op_info(op.id).epilogue; };
  Epilogue found;
  switch (call) {
    case Call::Product:
      break;
    case Call::Bias:
      found = {CUBLASLT_EPILOGUE_BIAS, g.bias.data};
      break;
    case Call::Op: {
      const bool relu = named(g.op) == gradstack::Epilogue::ReLU;
      int sum = relu ? CUBLASLT_EPILOGUE_RELU : CUBLASLT_EPILOGUE_GELU;
      if (g.bits) sum = CUBLASLT_EPILOGUE_RELU_AUX;
      if (g.bias) sum |= CUBLASLT_EPILOGUE_BIAS;
      found = {kind(sum), g.bias.data, g.bits, g.bits ? 8 * bytes_of_bits(g.n) : 0};
      break;
    }
    case Call::ASums:
      found = {CUBLASLT_EPILOGUE_BGRADB, g.a_sums};
      break;
    case Call::Slope:
    case Call::SlopeSums: {
      const bool sums = call == Call::SlopeSums;
      if (named(g.slope.op) == gradstack::Epilogue::ReLU)
        found = {sums ? CUBLASLT_EPILOGUE_DRELU_BGRAD : CUBLASLT_EPILOGUE_DRELU, g.slope.sums,
                 g.slope.bits, 8 * bytes_of_bits(g.n)};
      else if (g.n % 8 == 0)  // or s would need padding
        found = {sums ? CUBLASLT_EPILOGUE_DGELU_BGRAD : CUBLASLT_EPILOGUE_DGELU, g.slope.sums,
                 g.slope.s.data, g.n};
      else
        return {};
      break;
    }
  }
  return found;
}

bool CudaQueue::product(const DeviceGemm& g, Call call, bool run) {
  enter();
  const std::optional<Epilogue> epilogue = epilogue_of(g, call);
  return epilogue && matmul(g, *epilogue, run);
}

// cuBLAS is column-major: C^T (n, m) = op(B)^T op(A)^T. False: no algorithm has this epilogue.
bool CudaQueue::matmul(const DeviceGemm& g, const Epilogue& epilogue, bool run) {
  Descriptor operation;
  Matrix a, b, c;
  check(cublasLtMatmulDescCreate(&operation.handle,
                                 g.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
                                 CUDA_R_32F),
        "descriptor");
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulDescSetAttribute(operation.handle, attribute, &value, sizeof(value)),
          "descriptor");
  };
  const cublasOperation_t first = g.tb ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = g.ta ? CUBLAS_OP_T : CUBLAS_OP_N;
  set(CUBLASLT_MATMUL_DESC_TRANSA, first);
  set(CUBLASLT_MATMUL_DESC_TRANSB, second);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue.kind);
  if (epilogue.vector) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, epilogue.vector);  // of C's type
  if (epilogue.aux_ld) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, epilogue.aux);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, epilogue.aux_ld);
  }
  const auto layout = [&](Matrix& matrix, DeviceType type, Index rows, Index cols) {
    check(
        cublasLtMatrixLayoutCreate(&matrix.handle, type_of(type), static_cast<std::uint64_t>(rows),
                                   static_cast<std::uint64_t>(cols), rows),  // column-major
        "layout");
  };
  layout(a, g.b.type, g.tb ? g.k : g.n, g.tb ? g.n : g.k);
  layout(b, g.a.type, g.ta ? g.m : g.k, g.ta ? g.k : g.m);
  layout(c, g.c.type, g.n, g.m);

  const Key key{g.m,
                g.n,
                g.k,
                g.ta,
                g.tb,
                g.accumulate,
                g.tf32,
                g.a.type,
                g.c.type,
                static_cast<int>(epilogue.kind),
                alignment(g.a.data),
                alignment(g.b.data),
                alignment(g.c.data),
                alignment(epilogue.vector),
                alignment(epilogue.aux)};
  auto [found, fresh] = algorithms_.try_emplace(key);
  if (fresh) {
    Preference preference;
    check(cublasLtMatmulPreferenceCreate(&preference.handle), "preference");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check(
          cublasLtMatmulPreferenceSetAttribute(preference.handle, attribute, &value, sizeof(value)),
          "preference");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(g.b.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(g.a.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(g.c.data));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(g.c.data));
    // Parts of a sum over k are added up in float32 whatever C is.
    if (g.c.type != DeviceType::Float32)
      prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
             static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    cublasLtMatmulHeuristicResult_t result{};
    int results = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(blas_, operation.handle, a.handle, b.handle, c.handle,
                                       c.handle, preference.handle, 1, &result, &results);
    found->second.found =
        status == CUBLAS_STATUS_SUCCESS && results > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    found->second.algo = result.algo;
  }
  if (!found->second.found || !run) return found->second.found;
  const float one = 1, beta = g.accumulate ? 1.0F : 0.0F;
  const cublasStatus_t status = cublasLtMatmul(
      blas_, operation.handle, &one, g.b.data, a.handle, g.a.data, b.handle, &beta, g.c.data,
      c.handle, g.c.data, c.handle, &found->second.algo, workspace_, kWorkspace, launch_.stream);
  // What was offered may still be refused, before anything is queued.
  const bool refused =
      status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
  if (refused && epilogue.kind != CUBLASLT_EPILOGUE_DEFAULT) return found->second.found = false;
  if (status != CUBLAS_STATUS_SUCCESS) expect(cudaGetLastError(), "a matrix product");
  check(status, "matrix product");
  launch_.last = "a matrix product";
  if (launch_.wait) wait("a matrix product");
  return true;
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw DeviceError(std::string("CUDA: ") + what + ": " + cudaGetErrorName(status) + ", " +
                      cudaGetErrorString(status));
}

Devices devices() {
  Devices found;
  cudaDriverGetVersion(&found.driver);
  const cudaError_t status = cudaGetDeviceCount(&found.count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    found.count = 0;
    found.reason = cudaGetErrorString(status);
  }
  return found;
}

std::shared_ptr<DeviceQueue> open_device(int device) { return std::make_shared<CudaQueue>(device); }

}  // namespace gradstack::device

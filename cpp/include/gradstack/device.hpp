// What a device with memory of its own (a GPU) offers: a queue of kernels that run in order. It is
// to device_plan.hpp what the table of kernels (backend.hpp) is to plan.hpp; cpp/cuda fills it, and
// only there is CUDA known.
//
// Layout: a per-sample variable with d features is (count, d), row-major and without padding, as
// vendors' matrix products want it. All pointers are device memory unless a name says host. Calls
// return before the work is done; what a call reads and writes is in order with all other calls.
// Arithmetic is float32; DeviceIn and DeviceOut may be stored in half (device_types.hpp), all those
// of one call in the same type unless it says otherwise.
#pragma once

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "gradstack/config.hpp"
#include "gradstack/cost_info.hpp"
#include "gradstack/device_rows.hpp"
#include "gradstack/device_types.hpp"
#include "gradstack/ops/op.hpp"
#include "gradstack/updates.hpp"

namespace gradstack {

// The device, its driver or its libraries failed.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// There is not enough device memory; nothing was changed.
class DeviceOutOfMemory : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// A row of the op table with its parameters; id < 0: none.
struct DeviceOp {
  int id = -1;
  double p[kMaxOpParams] = {};
};

// Bits of a matrix, row by row, the first column in a byte's lowest bit. Rows are padded to a
// multiple of 128 bits, as cuBLASLt wants them.
GS_HD inline Index bytes_of_bits(Index cols) { return (cols + 127) / 128 * 16; }

// A factor h'(s) for every entry of a product (m, n).
struct DeviceSlope {
  DeviceOp op;                         // id < 0: none
  const std::uint8_t* bits = nullptr;  // where h' is 1, for Epilogue::ReLU
  DeviceIn s{};                        // (m, n), of C's type, for the other epilogues
  float* sums = nullptr;  // (n), receives the sums of C over its rows; null: not wanted
};

// C (m, n) (+)= op(A) (m, k) op(B) (k, n), all row-major; op transposes when ta or tb is set.
// Products are summed in float32; C may be float32 where A and B are half.
struct DeviceGemm {
  Index m = 0, n = 0, k = 0;
  DeviceIn a{};
  bool ta = false;
  DeviceIn b{};
  bool tb = false;
  DeviceOut c{};
  bool accumulate = false;
  bool tf32 = false;        // of float32 operands 10 bits of mantissa count
  DeviceIn bias{};          // (n) of C's type, added to every row; null: none
  DeviceOp op;              // applied to the sum, not with accumulate
  float* a_sums = nullptr;  // (m), receives the sums of op(A) over k; null: not wanted
  bool fuse = false;        // op may be the library's own, where that is the op table's
  // (m, n), receives where op' is 1; for Epilogue::ReLU alone; null: not wanted.
  std::uint8_t* bits = nullptr;
  DeviceSlope slope;  // with neither op, bias nor accumulate, and only if the queue `fuses` it
};

enum class DeviceBinary { Add, Sub, Mul, Div };

// Rows of a matrix inside wider rows.
struct DeviceColumns {
  Index rows = 0, cols = 0;
  DeviceIn from{};
  Index ld_from = 0;
  DeviceOut to{};
  Index ld_to = 0;
  bool accumulate = false;
  Index repeats = 1;  // each row of `from` is taken that often, `rows` counts those of `to`
};

// Loss scaling: gradients are those of `scale` times the loss, so that small ones stay above what
// half resolves. A step whose gradient overflows is skipped and halves the scale, kLossScaleSteps
// good steps double it.
struct DeviceLossScale {
  double scale = 1;
  float inverse = 1;
  std::int32_t adapts = 0;    // 0: the scale stays as it is
  std::int64_t good = 0;      // steps since the scale changed
  std::int64_t overflow = 0;  // 1: the gradient of this step is not finite
};
inline constexpr double kFirstLossScale = 65536;
inline constexpr double kLeastLossScale = 1.0 / (1 << 24), kMostLossScale = 1 << 24;
inline constexpr std::int64_t kLossScaleSteps = 2000;

// Where a run is, kept on the device so that a recorded step can be replayed.
struct DeviceStep {
  std::int64_t step = 0;     // of the dropout stream
  std::int64_t first = 0;    // first sample of the batch in the order of visits
  std::int64_t index = 0;    // steps made in this run: the row of losses and weights
  std::int64_t updates = 0;  // of them not skipped: the row of constants
  std::int64_t failed = 0;   // 1: a loss was not finite; all later steps change nothing
  double weight = 0;         // total weight of the batch
  double scale = 0;          // a sample of weight 1 multiplies its gradient with this
  std::int64_t wrap = 0;     // `first` goes back to 0 when it gets here: data in a ring; 0: never
  DeviceLossScale loss;
};

struct DeviceDropout {
  Index rows = 0, d = 0;
  const DeviceStep* at = nullptr;  // its `step` is the stream's
  std::uint64_t seed = 0, stream = 0;
  std::uint64_t first_sample = 0;
  std::uint32_t threshold = 0;
  float scale = 1;
  DeviceIn s{};
  DeviceOut z{};
  bool accumulate = false;
};

// Edges grouped by the unit that they end at (connectivity.hpp): y[r] = sum w[edge] x[other].
struct DeviceSparse {
  Index rows = 0;              // samples
  Index units = 0, other = 0;  // features of y and of x
  const Index* begin = nullptr;
  const std::int32_t* end_unit = nullptr;
  const std::int32_t* edge = nullptr;
  const float* w = nullptr;
  DeviceIn x{};
  const float* bias = nullptr;
  DeviceOut y{};
  bool accumulate = false;
};

// dw[e] (+)= sum over samples of dy[edges[2 e]] x[edges[2 e + 1]].
struct DeviceSparseGradient {
  Index rows = 0, edges = 0, d_out = 0, d_in = 0;
  const std::int32_t* ends = nullptr;
  DeviceIn dy{};
  DeviceIn x{};
  float* dw = nullptr;
  bool accumulate = false;
};

// Data set and batch: rows order[at->first + i] of the sources, or rows at->first + i themselves.
struct DeviceGather {
  Index count = 0;
  const Index* order = nullptr;
  const DeviceStep* at = nullptr;
  Index cols = 0;
  const float* from = nullptr;  // (samples, cols), or:
  DeviceOut to{};               // of any type
  const std::int64_t* labels_from = nullptr;
  std::int64_t* labels_to = nullptr;
};

// order[0..n): gradstack::permutation of permutation_key `key`; first and next (n each) are memory
// to work in.
struct DevicePermutation {
  std::uint64_t key = 0;
  Index n = 0;
  Index* order = nullptr;
  Index* first = nullptr;
  Index* next = nullptr;
};

// Costs of a batch. loss[i] is the unscaled L; grad is multiplied with weight[i] * at->scale and
// the loss scale.
struct DeviceCost {
  int id = -1;
  double p[kMaxCostParams] = {};
  Index count = 0, d = 0, dy = 0;
  const float* ybar = nullptr;
  const float* y = nullptr;
  const std::int64_t* labels = nullptr;
  const float* class_weight = nullptr;
  const float* weight = nullptr;  // (count,) sample weights; null: 1
  const DeviceStep* at = nullptr;
  float* loss = nullptr;  // (count,)
  float* grad = nullptr;  // (count, d) or null
  // hv, (count, d): (d2L/dybar2) v times what multiplies grad; null without v.
  const float* v = nullptr;
  float* hv = nullptr;
};

// Constants of a run's steps for an update rule, computed by the host.
struct DeviceConstants {
  double with_decay[kMaxUpdateConstants];
  double without_decay[kMaxUpdateConstants];
};

struct DeviceUpdate {
  int rule = -1;
  int n_state = 0;
  Index n = 0;
  float* w = nullptr;
  const float* g = nullptr;
  float* state[kMaxState] = {};                // null: the rule does not need it
  const std::uint8_t* what = nullptr;          // bits of EntryUpdate
  const DeviceConstants* constants = nullptr;  // one per update of the run
  const DeviceStep* at = nullptr;
  float clip_value = 0;  // 0: none
  double clip_norm = 0;
  DeviceOut copy{};  // (n), of any type: receives w as it moves; null: not wanted
};

struct DeviceMlp;  // device_mlp.hpp

// A sequence of calls recorded once to be replayed as a whole.
class DeviceRecording {
 public:
  virtual ~DeviceRecording() = default;
};

// Kernels, and copies beside them. Work of one line runs in order; between the two there is no
// order but that of fences.
enum class DeviceLine { Kernels, Copies };

// A place in a line that others can wait for; until it is marked it holds nobody up.
class DeviceFence {
 public:
  virtual ~DeviceFence() = default;
};

struct DeviceMemory {
  std::size_t free = 0, total = 0;  // bytes
};

// As DLPack numbers them: the kind of device, and which of them.
struct DeviceId {
  int type = 0, number = 0;
  friend bool operator==(DeviceId a, DeviceId b) {
    return a.type == b.type && a.number == b.number;
  }
};

class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;
  // Held by whoever uses the queue: one caller at a time.
  std::mutex& mutex() { return mutex_; }
  // For people, such as "NVIDIA H100 80GB HBM3".
  virtual std::string name() const = 0;
  // Memory that a part of a batch takes up, where batches go through in parts.
  std::size_t part_bytes = std::size_t{1} << 28;

  // Zeroed memory. `what` names it in the message of DeviceOutOfMemory.
  virtual void* allocate(std::size_t bytes, const char* what) = 0;
  virtual void release(void* memory) noexcept = 0;
  // The host's memory may be used again on return; to_host waits for everything before it. In place
  // of the host's either takes memory that is on_device: then the copy is queued like everything
  // else and nothing is waited for.
  virtual void to_device(void* to, const void* host, std::size_t bytes) = 0;
  virtual void to_host(void* host, const void* from, std::size_t bytes) = 0;
  virtual void zero(void* to, std::size_t bytes) = 0;
  virtual void synchronize() = 0;

  virtual DeviceMemory memory() = 0;
  // Page-locked memory of the host, which copies read while the host does other things.
  virtual void* allocate_host(std::size_t bytes, const char* what) = 0;
  virtual void release_host(void* memory) noexcept = 0;
  // In the line of copies; `locked`, of allocate_host, is read when the copy runs.
  virtual void copy_beside(void* to, const void* locked, std::size_t bytes) = 0;
  virtual std::unique_ptr<DeviceFence> fence() = 0;
  // The fence stands behind everything queued in the line so far.
  virtual void mark(DeviceFence& fence, DeviceLine line) = 0;
  // What is queued in the line from now on runs after what the fence, as it stands now, is behind.
  virtual void hold(DeviceLine line, const DeviceFence& fence) = 0;
  virtual void wait_for(const DeviceFence& fence) = 0;

  // Memory shared with other libraries (DLPack). Whoever lends memory makes `stream` wait for its
  // own work; `lead` makes a stream of somebody else wait for everything queued so far.
  virtual DeviceId id() const = 0;
  virtual std::intptr_t stream() const = 0;
  virtual void lead(std::intptr_t stream) = 0;
  virtual bool on_device(const void* memory) const = 0;
  // Between the two, memory that somebody lends is this device's.
  virtual void borrow(const void* memory, std::size_t bytes) = 0;
  virtual void give_back(const void* memory) noexcept = 0;

  // False: every call is waited for, so that an error names it, and nothing should be recorded.
  virtual bool records() const = 0;
  // Calls between the two are noted and not run. Neither allocates nor copies from the host.
  virtual void record() = 0;
  virtual std::unique_ptr<DeviceRecording> recorded() = 0;
  virtual void abandon_recording() noexcept = 0;
  virtual void replay(const DeviceRecording& recording) = 0;

  virtual void gemm(const DeviceGemm& g) = 0;
  // Whether one call of the library makes the product with its op, or its slope and their sums, and
  // gives what the op table gives. The answer is the same for pointers of the same alignment. The
  // first question of a kind may queue work and wait for it.
  virtual bool fuses(const DeviceGemm& g) = 0;
  // z = h(s); s and z may alias.
  virtual void forward(const DeviceOp& op, Index n, DeviceIn s, DeviceOut z) = 0;
  // ds (+)= dz h'(s), from z where s is null; ds may alias dz.
  virtual void backward(const DeviceOp& op, Index n, DeviceIn s, DeviceIn z, DeviceIn dz,
                        DeviceOut ds, bool accumulate) = 0;
  virtual void binary(DeviceBinary kind, Index n, DeviceIn a, DeviceIn b, DeviceOut z) = 0;
  // da (+)= dz dz/da for the first operand, or dz dz/db for the second; a and b may be null for
  // sums.
  virtual void binary_backward(DeviceBinary kind, bool first, Index n, DeviceIn a, DeviceIn b,
                               DeviceIn dz, DeviceOut to, bool accumulate) = 0;
  virtual void columns(const DeviceColumns& c) = 0;
  virtual void softmax(Index rows, Index d, DeviceIn s, DeviceOut z, bool log) = 0;
  virtual void softmax_backward(Index rows, Index d, DeviceIn z, DeviceIn dz, DeviceOut ds,
                                bool log, bool accumulate) = 0;
  // dz = the perturbation of the logarithms z by ds; the softmax's own is its softmax_backward.
  virtual void log_softmax_tangent(Index rows, Index d, const float* z, const float* ds,
                                   float* dz) = 0;
  virtual void dropout(const DeviceDropout& d) = 0;
  // out[j] (+)= sum over rows of x[row][j], in an order that depends on shapes alone.
  virtual void column_sums(Index rows, Index d, DeviceIn x, float* out, bool accumulate) = 0;
  // From one type to another, rounded to nearest; one of the two is Float32.
  virtual void convert(Index n, DeviceIn from, DeviceOut to) = 0;
  virtual void sparse(const DeviceSparse& s) = 0;
  virtual void sparse_gradient(const DeviceSparseGradient& s) = 0;
  // index[i] = argmin_k ||x_i - w_k||^2, the first of equals; chosen (rows, d): that w_k, or null.
  virtual void nearest(Index rows, Index prototypes, Index d, const float* w, const float* x,
                       float* index, float* chosen) = 0;
  // dw (prototypes, d) (+)= the gradients of the samples that chose each.
  virtual void nearest_gradient(Index rows, Index prototypes, Index d, const float* index,
                                const float* grad, float* dw, bool accumulate) = 0;
  // All layers of an MLP with halves as factors (device_mlp.hpp).
  virtual void mlp_forward(const DeviceMlp& m) = 0;
  virtual void mlp_backward(const DeviceMlp& m) = 0;

  // to[row * ld + k] (+)= entry k of the row's outer product.
  virtual void outer(const DeviceOuter& o, float* to, Index ld, bool accumulate) = 0;
  // sums[row] += factor * sum of the products of u's and v's entries.
  virtual void outer_dots(const DeviceOuter& u, const DeviceOuter& v, float factor,
                          float* sums) = 0;
  virtual void row_dots(const DeviceDots& r) = 0;
  virtual void transpose(const DeviceTranspose& t) = 0;

  virtual void permutation(const DevicePermutation& p) = 0;
  virtual void gather(const DeviceGather& g) = 0;
  // at->weight and at->scale of a batch: sum of weight[i] class_weight[label[i]] (null: 1);
  // `sum_factor` > 0: scale is that factor, else 1 / weight (0 for a batch of no weight).
  virtual void open_step(DeviceStep* at, Index count, const float* weight,
                         const float* class_weight, const std::int64_t* labels,
                         double sum_factor) = 0;
  virtual void cost(const DeviceCost& c) = 0;
  // results[2 at->index] = scale * sum of weight * loss, results[2 at->index + 1] = at->weight.
  // A loss that is not finite sets at->failed, unless allowed.
  virtual void close_loss(DeviceStep* at, Index count, const float* loss, const float* weight,
                          double* results, bool allow_non_finite) = 0;
  // at->loss.overflow: whether an entry of g (n,) that `what` concerns is not finite.
  virtual void find_overflow(DeviceStep* at, Index n, const float* g, const std::uint8_t* what) = 0;
  // Nothing happens once at->failed, or at an overflow.
  virtual void update(const DeviceUpdate& u) = 0;
  // step and index count one, first moves on by `count`, the loss scale adapts; not once
  // at->failed. An overflow at the least scale fails, unless allowed.
  virtual void close_step(DeviceStep* at, Index count, bool allow_non_finite) = 0;

 private:
  std::mutex mutex_;
};

// Page-locked memory that lives as long as its owner.
class LockedMemory {
 public:
  LockedMemory(std::shared_ptr<DeviceQueue> queue, std::size_t bytes, const char* what)
      : queue_(std::move(queue)), data_(static_cast<char*>(queue_->allocate_host(bytes, what))) {}
  LockedMemory(const LockedMemory&) = delete;
  LockedMemory& operator=(const LockedMemory&) = delete;
  ~LockedMemory() { queue_->release_host(data_); }
  char* data() const { return data_; }

 private:
  std::shared_ptr<DeviceQueue> queue_;
  char* data_;
};

// Device memory that lives as long as its owner.
template <class T> class DeviceArray {
 public:
  DeviceArray() = default;
  // Somebody else's memory, which is not released.
  DeviceArray(T* memory, Index n) : size_(n), data_(memory) {}
  DeviceArray(std::shared_ptr<DeviceQueue> queue, Index n, const char* what)
      : queue_(std::move(queue)),
        size_(n),
        data_(static_cast<T*>(
            queue_->allocate(static_cast<std::size_t>(n > 0 ? n : 1) * sizeof(T), what))) {}
  DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(queue_, other.queue_);
    std::swap(size_, other.size_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~DeviceArray() {
    if (queue_) queue_->release(data_);
  }

  T* data() const { return data_; }
  Index size() const { return size_; }
  void from_host(const T* values, Index n) {
    if (n > 0) queue_->to_device(data_, values, static_cast<std::size_t>(n) * sizeof(T));
  }
  void to_host(T* values, Index n) const {
    if (n > 0) queue_->to_host(values, data_, static_cast<std::size_t>(n) * sizeof(T));
  }

 private:
  std::shared_ptr<DeviceQueue> queue_;
  Index size_ = 0;
  T* data_ = nullptr;
};

// The same for a type that is known when it runs.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(std::shared_ptr<DeviceQueue> queue, Index n, DeviceType type, const char* what)
      : bytes_(std::move(queue), n * static_cast<Index>(bytes_of(type)), what), type_(type) {}
  DeviceOut values() const { return {bytes_.data(), type_}; }

 private:
  DeviceArray<std::uint8_t> bytes_;
  DeviceType type_ = DeviceType::Float32;
};

}  // namespace gradstack

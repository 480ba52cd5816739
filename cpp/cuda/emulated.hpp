// A device without a device: the kernels of kernels.hpp in loops on the host, on memory of its own.
// Its purpose is to test everything but CUDA itself (plans, training, index arithmetic, waiting,
// the Python API) where no GPU is. Slow.
//
// Nothing runs before something waits for it: what reads a result too early, or writes to memory
// that queued work still wants, gets other numbers. Copies beside the kernels run as late as they
// may, or as early (GRADSTACK_EMULATED_COPIES=early): a fence that is missing shows in one of the
// two.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <vector>

#include "kernels.hpp"
#include "process.hpp"

namespace gradstack::device {

struct HostCall {
  const char* name;
  std::function<void()> body;
};
using Tape = std::vector<HostCall>;

// Work in the order in which it was queued.
class HostLine {
 public:
  void add(HostCall call) {
    calls_.push_back(std::move(call));
    ++queued_;
  }
  Index queued() const { return queued_; }
  std::size_t waiting() const { return calls_.size(); }
  // Everything up to that place.
  template <class F> void run(Index place, F&& run_one) {
    while (done_ < place) {
      const HostCall call = std::move(calls_.front());
      calls_.pop_front();
      ++done_;  // first: a call may wait for the other line, which waits for this one so far
      run_one(call);
    }
  }

 private:
  std::deque<HostCall> calls_;
  Index queued_ = 0, done_ = 0;
};

struct HostLaunch {
  Tape* tape = nullptr;  // set while recording
  HostLine kernels;
  bool wait = false;                 // for every call, so that an error names it
  std::string failing;               // the kernel that fails ...
  Index fails_at = 1;                // ... when it runs for this time
  bool failed = false;               // as a GPU after an error: nothing works any more
  std::map<std::string, Index> ran;  // how often each has
  const char* last = "";
  // Memory is released by threads that do not hold the queue, and waits for its work.
  std::unique_lock<std::recursive_mutex> hold() const {
    return std::unique_lock<std::recursive_mutex>(mutex);
  }
  mutable std::recursive_mutex mutex;

  template <class F> void call(F&& f, const char* name = "a call") {
    const auto lock = hold();
    if (tape) {
      tape->push_back({name, f});
      return;
    }
    last = name;
    kernels.add({name, f});
    if (wait || kernels.waiting() > kMostWaiting) run_all(name);
  }
  void run(const HostCall& call) {
    if (call.name == failing && --fails_at == 0) failed = true;
    if (failed) throw DeviceError("injected failure");
    ++ran[call.name];
    call.body();
  }
  // The host waits for all that was queued; `what` is being done meanwhile.
  void finish(const std::string& what) {
    ++waits;
    run_all(what);
  }
  Index waits = 0;
  void run_all(const std::string& what) {
    const auto lock = hold();
    try {
      kernels.run(kernels.queued(), [this](const HostCall& each) { run(each); });
    } catch (const DeviceError& error) {
      throw DeviceError(what + ": " + error.what());
    }
  }

  template <class Body> void each(const char* name, Index n, const Body& body) {
    // Backwards: a result that depends on the order of the threads shows.
    call(
        [n, body] {
          for (Index i = n; i-- > 0;) body(i);
        },
        name);
  }

  template <class Value, class Finish>
  void sum(const char* name, Index n, const Value& value, const Finish& finish) {
    call(
        [n, value, finish] {
          constexpr Index kThreads = 1024;
          std::vector<double> part(kThreads);
          for (Index i = 0; i < n; ++i) part[static_cast<std::size_t>(i % kThreads)] += value(i);
          for (std::size_t half = kThreads / 2; half > 0; half /= 2)
            for (std::size_t t = 0; t < half; ++t) part[t] += part[t + half];
          finish(part[0]);
        },
        name);
  }

  template <class Value, class Finish>
  void rows(const char* name, Index n, Index cols, const Value& value, const Finish& finish) {
    call(
        [n, cols, value, finish] {
          const auto threads = static_cast<std::size_t>(row_threads(cols));
          std::vector<float> part(threads);
          for (Index row = n; row-- > 0;) {
            std::fill(part.begin(), part.end(), 0.0F);
            for (Index j = 0; j < cols; ++j)
              part[static_cast<std::size_t>(j) % threads] += value(row, j);
            for (std::size_t half = threads / 2; half > 0; half /= 2)
              for (std::size_t t = 0; t < half; ++t) part[t] += part[t + half];
            finish(row, part[0]);
          }
        },
        name);
  }

  // See emulated_mlp.cpp.
  template <class Body> void tiles(const char* name, int blocks, int shared, const Body& body);

  // Of the kernels with shared memory: so that a thread sanitizer sees where a barrier is missing.
  bool warps_in_threads = false;

 private:
  static constexpr std::size_t kMostWaiting = 4096;
};

extern template class KernelQueue<HostLaunch>;  // see emulated.cpp and emulated_mlp.cpp

class EmulatedQueue final : public KernelQueue<HostLaunch> {
 public:
  EmulatedQueue() {
    watch_forks();
    scratch_ = static_cast<float*>(allocate(kScratch * sizeof(float), "scratch"));
    factor_ = static_cast<double*>(allocate(sizeof(double), "scratch"));
    used_ = 0;  // `limit` is what is left to users
    launch_.wait = std::getenv("GRADSTACK_CUDA_SYNC") != nullptr;
  }
  ~EmulatedQueue() override {
    release(scratch_);
    release(factor_);
  }

  std::size_t limit = std::size_t{1} << 40;  // bytes of memory
  bool early = false;                        // copies beside the kernels
  std::string epilogues = "all";             // of products, see emulated.cpp
  void fail(const std::string& kernel, Index time) {
    launch_.failing = kernel;
    launch_.fails_at = time;
  }
  void run_warps_in_threads() { launch_.warps_in_threads = true; }
  // How often the host has waited for kernels.
  Index waits() const { return launch_.waits; }
  // How often a kernel has run.
  Index ran(const std::string& kernel) {
    synchronize();
    return launch_.ran[kernel];
  }

  std::string name() const override { return "emulated device"; }
  DeviceMemory memory() override { return {limit - used_, limit}; }
  void* allocate(std::size_t bytes, const char* what) override {
    const auto lock = launch_.hold();
    must_not_record("allocate");
    if (bytes > limit - used_) throw out_of_memory(bytes, what, memory(), name());
    void* memory = std::calloc(bytes, 1);
    if (!memory) throw DeviceOutOfMemory("out of memory");
    used_ += bytes;
    sizes_[memory] = bytes;
    return memory;
  }
  void release(void* memory) noexcept override {
    const auto lock = launch_.hold();
    finish_all();
    used_ -= memory == scratch_ || memory == factor_ ? 0 : sizes_[memory];
    sizes_.erase(memory);
    std::free(memory);
  }
  void to_device(void* to, const void* host, std::size_t bytes) override {
    const auto lock = launch_.hold();
    must_not_record("to_device");
    if (on_device(host)) return copy(to, host, bytes);
    const char* from = static_cast<const char*>(host);
    // The host's memory may be used again on return.
    const auto kept = std::make_shared<std::vector<char>>(from, from + bytes);
    launch_.kernels.add({"copy to the device", [=] { std::memcpy(to, kept->data(), bytes); }});
    if (bytes > kMostKept) launch_.finish("copy to the device");
  }
  void to_host(void* host, const void* from, std::size_t bytes) override {
    const auto lock = launch_.hold();
    must_not_record("to_host");
    if (on_device(host)) return copy(host, from, bytes);
    finish("copy to the host");
    std::memcpy(host, from, bytes);
  }
  void zero(void* to, std::size_t bytes) override {
    launch_.call([=] { std::memset(to, 0, bytes); }, "zeroing memory");
  }
  void synchronize() override {
    must_not_record("synchronize");
    finish("waiting for the device");
  }

  void* allocate_host(std::size_t bytes, const char* what) override {
    must_not_record("allocate_host");
    void* memory = std::malloc(bytes);
    if (!memory)
      throw DeviceOutOfMemory(std::string("out of page-locked memory, wanted for ") + what);
    return memory;
  }
  void release_host(void* memory) noexcept override {
    finish_all();
    std::free(memory);
  }
  void copy_beside(void* to, const void* locked, std::size_t bytes) override {
    const auto lock = launch_.hold();
    must_not_record("copy_beside");
    copies_.add({"copy beside the kernels", [=] { std::memcpy(to, locked, bytes); }});
    if (early) run_until(DeviceLine::Copies, copies_.queued());
  }
  std::unique_ptr<DeviceFence> fence() override { return std::make_unique<Fence>(); }
  void mark(DeviceFence& fence, DeviceLine which) override {
    const auto lock = launch_.hold();
    must_not_record("mark");
    auto& at = static_cast<Fence&>(fence);
    at.line = which;
    at.place = line(which).queued();
  }
  void hold(DeviceLine which, const DeviceFence& fence) override {
    const auto lock = launch_.hold();
    must_not_record("hold");
    const Fence& at = static_cast<const Fence&>(fence);
    line(which).add(
        {"a fence", [this, where = at.line, place = at.place] { run_until(where, place); }});
  }
  void wait_for(const DeviceFence& fence) override {
    const auto lock = launch_.hold();
    must_not_record("wait_for");
    const Fence& at = static_cast<const Fence&>(fence);
    run_until(at.line, at.place);
  }

  // DLPack's number for devices that it does not know.
  DeviceId id() const override { return {12, 0}; }
  std::intptr_t stream() const override { return 3; }
  // Others work at once, on the host.
  void lead(std::intptr_t) override { synchronize(); }
  bool on_device(const void* memory) const override {
    const auto lock = launch_.hold();
    return within(sizes_, memory) || within(lent_, memory);
  }
  void borrow(const void* memory, std::size_t bytes) override {
    const auto lock = launch_.hold();
    lent_.emplace(memory, bytes);
  }
  void give_back(const void* memory) noexcept override {
    const auto lock = launch_.hold();
    if (const auto found = lent_.find(memory); found != lent_.end()) lent_.erase(found);
  }

  bool records() const override { return !launch_.wait; }
  void record() override {
    must_not_record("record");
    launch_.tape = &tape_;
  }
  std::unique_ptr<DeviceRecording> recorded() override {
    auto recording = std::make_unique<Recording>();
    recording->tape = std::make_shared<Tape>(std::move(tape_));
    tape_.clear();
    launch_.tape = nullptr;
    return recording;
  }
  void abandon_recording() noexcept override {
    tape_.clear();
    launch_.tape = nullptr;
  }
  void replay(const DeviceRecording& recording) override {
    must_not_record("replay");
    launch_.call(
        [this, tape = static_cast<const Recording&>(recording).tape] {
          for (const HostCall& call : *tape) launch_.run(call);
        },
        "a recorded step");
  }

 private:
  bool product(const DeviceGemm& g, Call call, bool run) override;
  // What this library has, and what is wrong with it: see emulated.cpp.
  bool has(const DeviceGemm& g, Call call) const;
  static const char* name_of(Call call);
  template <class T, class C> void multiply(const DeviceGemm& g, Call call) const;
  template <class C> float function(const DeviceGemm& g, Index row, Index col, float s) const;
  template <class C> float slope(const DeviceGemm& g, Index row, Index col) const;

  struct Recording final : DeviceRecording {
    std::shared_ptr<Tape> tape;
  };
  struct Fence final : DeviceFence {
    DeviceLine line = DeviceLine::Kernels;
    Index place = 0;
  };

  void must_not_record(const char* call) const {
    check_process();
    if (launch_.tape) throw DeviceError(std::string(call) + " while recording a step");
    if (launch_.failed) throw DeviceError(std::string(call) + ": an earlier error");
  }
  HostLine& line(DeviceLine which) {
    return which == DeviceLine::Kernels ? launch_.kernels : copies_;
  }
  void run_until(DeviceLine which, Index place) {
    line(which).run(place, [this](const HostCall& call) { launch_.run(call); });
  }
  template <class Map> static bool within(const Map& ranges, const void* memory) {
    auto next = ranges.upper_bound(memory);
    if (!memory || next == ranges.begin()) return false;
    --next;
    return static_cast<const char*>(memory) < static_cast<const char*>(next->first) + next->second;
  }
  void copy(void* to, const void* from, std::size_t bytes) {
    launch_.call([=] { std::memcpy(to, from, bytes); }, "copy on the device");
  }
  void finish(const char* what) { launch_.finish(while_waiting(what, launch_.last)); }
  // Errors are found again by the next call.
  void finish_all() noexcept {
    try {
      run_until(DeviceLine::Copies, copies_.queued());
      run_until(DeviceLine::Kernels, launch_.kernels.queued());
    } catch (const DeviceError&) {
      launch_.failed = true;
    }
  }

  static constexpr std::size_t kMostKept = std::size_t{1} << 24;
  std::map<const void*, std::size_t> sizes_;      // of what is the device's
  std::multimap<const void*, std::size_t> lent_;  // and of what counts as if
  std::size_t used_ = 0;
  HostLine copies_;
  Tape tape_;
};

}  // namespace gradstack::device

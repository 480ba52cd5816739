// A device without a device: the kernels of kernels.hpp in loops on the host, on memory of its own.
// Its purpose is to test everything but CUDA itself (plans, training, index arithmetic, the Python
// API) where no GPU is. Slow.
#pragma once

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "fused_queue.hpp"
#include "kernel_queue.hpp"

namespace gradstack::device {

using Tape = std::vector<std::function<void()>>;

struct HostLaunch {
  Tape* tape = nullptr;  // set while recording

  template <class F> void call(F&& f) {
    if (tape)
      tape->push_back(f);
    else
      f();
  }

  template <class Body> void each(const char*, Index n, const Body& body) {
    // Backwards: a result that depends on the order of the threads shows.
    call([n, body] {
      for (Index i = n; i-- > 0;) body(i);
    });
  }

  template <class Value, class Finish>
  void sum(const char*, Index n, const Value& value, const Finish& finish) {
    call([n, value, finish] {
      constexpr Index kThreads = 1024;
      std::vector<double> part(kThreads);
      for (Index i = 0; i < n; ++i) part[static_cast<std::size_t>(i % kThreads)] += value(i);
      for (std::size_t half = kThreads / 2; half > 0; half /= 2)
        for (std::size_t t = 0; t < half; ++t) part[t] += part[t + half];
      finish(part[0]);
    });
  }

  template <class Value, class Finish>
  void rows(const char*, Index n, Index cols, const Value& value, const Finish& finish) {
    call([n, cols, value, finish] {
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
    });
  }

  template <class Body> void tiles(const char*, int blocks, int shared, const Body& body) {
    call([=, threads = warps_in_threads] {
      const auto halves = static_cast<std::size_t>(shared) / sizeof(std::uint16_t);
      for (int block = blocks; block-- > 0;) {
        std::vector<std::uint16_t> memory(halves, 0xffff);  // NaN: what nobody wrote shows
        if (threads)
          run_threads(body, block, memory.data());
        else
          body(Block(block, memory.data()));
      }
    });
  }

  // Of the kernels with shared memory: so that a thread sanitizer sees where a barrier is missing.
  bool warps_in_threads = false;

 private:
  template <class Body>
  static void run_threads(const Body& body, int block, std::uint16_t* memory) {
    std::mutex mutex;
    std::condition_variable all_here;
    int waiting = 0, round = 0;
    const auto wait = [&] {
      std::unique_lock<std::mutex> lock(mutex);
      const int mine = round;
      if (++waiting == kWarps) {
        waiting = 0;
        ++round;
        all_here.notify_all();
      }
      all_here.wait(lock, [&] { return round != mine; });
    };
    std::vector<std::thread> warps;
    for (int warp = 0; warp < kWarps; ++warp)
      warps.emplace_back([&, warp] { body(Block(block, memory, warp, wait)); });
    for (std::thread& warp : warps) warp.join();
  }
};

class EmulatedQueue final : public KernelQueue<HostLaunch> {
 public:
  EmulatedQueue() {
    scratch_ = static_cast<float*>(allocate(kScratch * sizeof(float), "scratch"));
    factor_ = static_cast<double*>(allocate(sizeof(double), "scratch"));
  }
  ~EmulatedQueue() override {
    release(scratch_);
    release(factor_);
  }

  void run_warps_in_threads() { launch_.warps_in_threads = true; }

  // So that tests see what a device without memory does; 0: no limit.
  std::size_t limit = 0;

  std::string name() const override { return "emulated device"; }
  void* allocate(std::size_t bytes, const char* what) override {
    must_not_record("allocate");
    if (limit > 0 && bytes > limit)
      throw DeviceOutOfMemory("out of device memory: " + std::to_string(bytes) +
                              " bytes wanted for " + what);
    void* memory = std::calloc(bytes, 1);
    if (!memory) throw DeviceOutOfMemory("out of memory");
    return memory;
  }
  void release(void* memory) noexcept override { std::free(memory); }
  void to_device(void* to, const void* host, std::size_t bytes) override {
    must_not_record("to_device");
    std::memcpy(to, host, bytes);
  }
  void to_host(void* host, const void* from, std::size_t bytes) override {
    must_not_record("to_host");
    std::memcpy(host, from, bytes);
  }
  void zero(void* to, std::size_t bytes) override {
    launch_.call([=] { std::memset(to, 0, bytes); });
  }
  void synchronize() override { must_not_record("synchronize"); }

  void record() override {
    must_not_record("record");
    launch_.tape = &tape_;
  }
  std::unique_ptr<DeviceRecording> recorded() override {
    auto recording = std::make_unique<Recording>();
    recording->tape.swap(tape_);
    launch_.tape = nullptr;
    return recording;
  }
  void abandon_recording() noexcept override {
    tape_.clear();
    launch_.tape = nullptr;
  }
  void replay(const DeviceRecording& recording) override {
    must_not_record("replay");
    for (const auto& call : static_cast<const Recording&>(recording).tape) call();
  }

  void gemm(const DeviceGemm& g) override {
    launch_.call([g] {
      for (Index i = 0; i < g.m; ++i)
        for (Index j = 0; j < g.n; ++j) {
          double sum = g.bias ? static_cast<double>(g.bias[j]) : 0.0;
          for (Index k = 0; k < g.k; ++k)
            sum += static_cast<double>(g.a[g.ta ? k * g.m + i : i * g.k + k]) *
                   static_cast<double>(g.b[g.tb ? j * g.k + k : k * g.n + j]);
          put(g.c + i * g.n + j, static_cast<float>(sum), g.accumulate);
        }
    });
    if (g.op.id >= 0) forward(g.op, g.m * g.n, g.c, g.c);
    if (g.a_sums) column_sums(g.k, g.m, g.a, g.a_sums, false);
  }

 private:
  struct Recording final : DeviceRecording {
    Tape tape;
  };
  void must_not_record(const char* call) const {
    if (launch_.tape) throw DeviceError(std::string(call) + " while recording a step");
  }
  Tape tape_;
};

}  // namespace gradstack::device

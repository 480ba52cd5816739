#include "gradstack/parallel.hpp"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gradstack {
namespace {

// A child of fork() has none of its parent's worker threads, and the OpenMP runtime does not know.
std::atomic<bool> forked{false};

const int atfork_registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int cgroup_cpus() {
  long quota = -1, period = 0;
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(file, "%ld %ld", &quota, &period) != 2) quota = -1;
    std::fclose(file);
  }
  if (quota <= 0 || period <= 0) return 0;
  return std::max(
      1, static_cast<int>(std::ceil(static_cast<double>(quota) / static_cast<double>(period))));
}

constexpr int kSpins = 2000;          // about 50 us of pauses: longer than any phase should differ
constexpr double kThreadFlops = 3e6;  // below this a second thread costs more than it brings
constexpr int kMostThreads = 64;      // of those asked for, where there are fewer processors

}  // namespace

// The processors that the members of a team run on. A system may wake them all on one and leave
// them there for milliseconds, which is longer than many a call takes. Where members were when they
// last looked is a guess at where they are; a wrong one is mended when the next of them waits long.
class Places {
 public:
  Places() {
    for (auto& at : at_) at.store(kUnknown, std::memory_order_relaxed);
  }

  // Moves the calling member to a processor that no other has, if there is one; but not the leader,
  // whose thread is the caller's.
  void part(int id) {
    const int here = sched_getcpu();
    if (here < 0 || id >= kMostParted || settle(id, here) || id == 0) return;
    cpu_set_t allowed, next;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    for (int i = 1; i < CPU_SETSIZE; ++i) {
      const int there = (here + i) % CPU_SETSIZE;
      if (!CPU_ISSET(there, &allowed) || !settle(id, there)) continue;
      CPU_ZERO(&next);
      CPU_SET(there, &next);
      // The first call moves the thread at once, the second lets the system move it again.
      if (sched_setaffinity(0, sizeof next, &next) != 0) break;
      sched_setaffinity(0, sizeof allowed, &allowed);
      return;
    }
    at_[id].store(here, std::memory_order_relaxed);
  }

 private:
  static constexpr int kUnknown = -1;
  static constexpr int kMostParted = 64;  // members beyond them stay where the system puts them
  // Whether the member is alone there.
  bool settle(int id, int processor) {
    at_[id].store(processor, std::memory_order_relaxed);
    for (int other = 0; other < kMostParted; ++other) {
      if (other != id && at_[other].load(std::memory_order_relaxed) == processor) return false;
    }
    return true;
  }

  std::atomic<int> at_[kMostParted];
};

// Meets at a spin barrier: bounded spinning, then yielding, so that more threads than processors
// still progress.
class Team {
 public:
  Team() { places_.part(0); }

  // Comes first in every member.
  void join(int id) {
    joined_.fetch_add(1, std::memory_order_relaxed);
    if (id > 0) places_.part(id);
  }

  void meet(int id, int count) {
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spin = 0; generation_.load(std::memory_order_acquire) == generation; ++spin) {
      // Who has not begun yet may be waiting for this very processor.
      if (spin < kSpins && joined_.load(std::memory_order_relaxed) == count) {
        relax();
        continue;
      }
      if (spin == kSpins) places_.part(id);
      sched_yield();
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> generation_{0};
  std::atomic<int> joined_{0};
  alignas(64) Places places_;
};

void Worker::meet() const { team->meet(id, count); }

void TeamError::capture() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!first_) first_ = std::current_exception();
  stop();
}

void TeamError::rethrow() {
  if (first_) std::rethrow_exception(first_);
}

Poll::Poll(std::function<bool()> interrupted, TeamError& error)
    : interrupted_(std::move(interrupted)),
      error_(error),
      last_(Clock::now()),
      next_(last_ + std::chrono::milliseconds(50)) {}

void Poll::check() {
  const Clock::time_point now = Clock::now();
  countdown_ = now - last_ > std::chrono::milliseconds(1) ? 1 : kTicks;
  last_ = now;
  if (now < next_ || error_.stopped()) return;
  try {
    if (interrupted_ && interrupted_()) error_.stop();
  } catch (...) {
    error_.capture();
  }
  next_ = now + std::chrono::milliseconds(50);
}

namespace {

#if defined(__x86_64__)
constexpr std::uint64_t kFlush = 0x8040;  // FTZ | DAZ
std::uint64_t float_mode() { return _mm_getcsr(); }
void set_float_mode(std::uint64_t mode) { _mm_setcsr(static_cast<unsigned>(mode)); }
#elif defined(__aarch64__)
constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;  // FZ
std::uint64_t float_mode() {
  std::uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(std::uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
constexpr std::uint64_t kFlush = 0;
std::uint64_t float_mode() { return 0; }
void set_float_mode(std::uint64_t) {}
#endif

}  // namespace

FlushDenormals::FlushDenormals() : saved_(float_mode()) { set_float_mode(saved_ | kFlush); }
FlushDenormals::~FlushDenormals() { set_float_mode(saved_); }

DefaultFloats::DefaultFloats() : saved_(float_mode()) { set_float_mode(saved_ & ~kFlush); }
DefaultFloats::~DefaultFloats() { set_float_mode(saved_); }

void run_team(int threads, void (*body)(void*, const Worker&), void* context) {
  if (threads <= 1 || forked.load()) {
    const FlushDenormals flush;
    body(context, Worker{});
    return;
  }
  Team team;
#pragma omp parallel num_threads(threads)
  {
    const FlushDenormals flush;
    const int id = omp_get_thread_num();
    team.join(id);
    body(context, Worker{id, omp_get_num_threads(), &team, nullptr, nullptr});
  }
}

int max_threads() {
  if (forked.load()) return 1;
  static const int quota = cgroup_cpus();
  const int wanted = std::min(omp_get_max_threads(), omp_get_num_procs());
  return std::max(1, quota > 0 ? std::min(wanted, quota) : wanted);
}

int threads_for(double flops, int requested) {
  // The results are the same; a system that can start no more threads would end the process.
  if (requested > 0) return std::min(requested, std::max(kMostThreads, omp_get_num_procs()));
  const double useful = useful_threads(flops);
  if (useful < 2) return 1;  // max_threads asks the system, which a short step would feel
  return static_cast<int>(std::min<double>(max_threads(), useful));
}

double useful_threads(double flops) { return flops / kThreadFlops; }

}  // namespace gradstack

// Threads: one team runs one function (SPMD). Work is divided by shape; who does it never shows in
// the bits. With one worker no threading runtime is touched.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <mutex>

#include "gradstack/config.hpp"

namespace gradstack {

class Team;  // what the members of one run_team share

// Ends a team's work early: an exception in one of its members, or a request from outside. Members
// then skip items of work (never barriers) until the next point where all agree to stop.
class TeamError {
 public:
  void capture() noexcept;  // call inside a catch block; the first exception is kept
  void stop() noexcept { stopped_.store(true, std::memory_order_relaxed); }
  bool stopped() const noexcept { return stopped_.load(std::memory_order_relaxed); }
  void rethrow();

 private:
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  std::exception_ptr first_;
};

// Asks now and then, on the calling thread, whether the work should be given up (a pending signal).
class Poll {
 public:
  using Clock = std::chrono::steady_clock;
  // `interrupted` is called about every 50 ms and stops the team by returning true or throwing.
  Poll(std::function<bool()> interrupted, TeamError& error);
  void tick() {
    if (--countdown_ <= 0) check();
  }

 private:
  void check();

  std::function<bool()> interrupted_;
  TeamError& error_;
  int countdown_ = kTicks;
  Clock::time_point last_, next_;
  static constexpr int kTicks = 16;  // short items of work between two looks at the clock
};

struct Worker {
  int id = 0;
  int count = 1;
  Team* team = nullptr;
  const TeamError* stop = nullptr;  // skip items once it is stopped; null: never
  Poll* poll = nullptr;             // leader only

  // Waits until all members have come here.
  void sync() const {
    if (count > 1) meet();
  }
  bool leader() const { return id == 0; }
  Worker alone() const { return {0, 1, nullptr, stop, poll}; }
  Worker unstoppable() const { return {id, count, team, nullptr, nullptr}; }

  // f(i) for this worker's contiguous share of 0..n-1.
  template <class F> void for_each(Index n, F&& f) const {
    // Divisions are felt where the work is a single sample's.
    const Index begin = count == 1 ? 0 : n * id / count;
    const Index end = count == 1 ? n : n * (id + 1) / count;
    for (Index i = begin; i < end; ++i) {
      if (poll) poll->tick();
      if (stop && stop->stopped()) return;
      f(i);
    }
  }

 private:
  void meet() const;
};

// Denormals to zero while the library computes (Adam's state underflows; denormal arithmetic is ten
// times slower); the caller's mode is restored.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  std::uint64_t saved_;
};

// The caller's floating-point mode again, while user code runs inside the library.
class DefaultFloats {
 public:
  DefaultFloats();
  ~DefaultFloats();
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
  std::uint64_t saved_;
};

// Runs body(context, worker) on `threads` workers and returns when all have returned. `body` must
// not throw (use TeamError).
void run_team(int threads, void (*body)(void*, const Worker&), void* context);

template <class F> void run_team(int threads, F&& body) {
  run_team(
      threads, [](void* context, const Worker& worker) { (*static_cast<F*>(context))(worker); },
      &body);
}

// Threads this process may use: OMP_NUM_THREADS, CPU affinity, cgroup quota; 1 after a fork.
int max_threads();

// How many threads `flops` of work are worth, on a machine that has them.
double useful_threads(double flops);

// The number of workers for `flops` of work when the user asked for `requested` (0: automatic).
int threads_for(double flops, int requested);

}  // namespace gradstack

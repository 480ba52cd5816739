// The team: barriers, errors, floating-point mode, and life after fork().
#include <doctest/doctest.h>
#include <omp.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "gradstack/parallel.hpp"

using gradstack::Index;
using gradstack::TeamError;
using gradstack::Worker;

namespace {

cpu_set_t processors() {
  cpu_set_t set;
  REQUIRE(sched_getaffinity(0, sizeof set, &set) == 0);
  return set;
}

// True while denormals are flushed to zero on this thread.
bool flushes() {
  volatile float smallest = std::numeric_limits<float>::min();
  volatile float half = smallest * 0.5F;
  return half == 0.0F;
}

}  // namespace

TEST_CASE("a barrier separates rounds, with more workers than cores") {
  for (const int workers : {1, 2, 5, 8}) {
    CAPTURE(workers);
    constexpr int kRounds = 400;
    std::vector<long> mine(static_cast<std::size_t>(workers), 0);
    std::vector<int> wrong(static_cast<std::size_t>(workers), 0);
    gradstack::run_team(workers, [&](const Worker& worker) {
      for (int round = 1; round <= kRounds; ++round) {
        mine[static_cast<std::size_t>(worker.id)] = round * (worker.id + 1);
        worker.sync();
        for (int other = 0; other < worker.count; ++other)
          wrong[static_cast<std::size_t>(worker.id)] +=
              mine[static_cast<std::size_t>(other)] != round * (other + 1);
        worker.sync();
      }
    });
    for (const int w : wrong) CHECK(w == 0);
  }
}

TEST_CASE("workers share out all items, each once") {
  for (const int workers : {1, 3, 8})
    for (const Index n : {0, 1, 2, 7, 8, 100}) {
      std::vector<int> seen(static_cast<std::size_t>(n), 0);
      std::atomic<int> members{0};
      gradstack::run_team(workers, [&](const Worker& worker) {
        ++members;
        CHECK(worker.leader() == (worker.id == 0));
        worker.for_each(n, [&](Index i) { ++seen[static_cast<std::size_t>(i)]; });
      });
      CHECK(members == workers);
      for (const int times : seen) CHECK(times == 1);
    }
}

TEST_CASE("the leader runs on the calling thread, and one worker needs no other") {
  const std::thread::id caller = std::this_thread::get_id();
  for (const int workers : {1, 4}) {
    std::vector<std::thread::id> ids(4);
    gradstack::run_team(workers, [&](const Worker& worker) {
      ids[static_cast<std::size_t>(worker.id)] = std::this_thread::get_id();
    });
    CHECK(ids[0] == caller);
    if (workers > 1) CHECK(ids[1] != caller);
  }
}

TEST_CASE("a team inside a team, and teams of several threads at once") {
  std::atomic<int> inner{0};
  gradstack::run_team(2, [&](const Worker&) {
    gradstack::run_team(3, [&](const Worker& worker) {
      worker.sync();
      if (worker.leader()) ++inner;
    });
  });
  CHECK(inner == 2);
  std::atomic<long> sum{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i)
        gradstack::run_team(3, [&](const Worker& worker) {
          worker.sync();
          sum += worker.id;
          worker.sync();
        });
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(sum == 3 * 20 * (0 + 1 + 2));
}

TEST_CASE("members that share a processor part, and may run anywhere afterwards") {
  constexpr int kWorkers = 2;
  const cpu_set_t before = processors();
  if (CPU_COUNT(&before) < kWorkers) return;
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  int parted = 0, free = 0;
  constexpr int kTimes = 20;
  for (int i = 0; i < kTimes; ++i) {
    gradstack::run_team(kWorkers, [&](const Worker& worker) {
      worker.sync();
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(first, &one);
      sched_setaffinity(0, sizeof one, &one);
      sched_setaffinity(0, sizeof before, &before);
    });
    int at[kWorkers] = {};
    cpu_set_t allowed[kWorkers];
    gradstack::run_team(kWorkers, [&](const Worker& worker) {
      at[worker.id] = sched_getcpu();
      allowed[worker.id] = processors();
    });
    parted += at[0] != at[1];
    free += CPU_EQUAL(&allowed[0], &before) && CPU_EQUAL(&allowed[1], &before);
  }
  CHECK(free == kTimes);
  CHECK(parted > kTimes / 2);  // the system may bring them together again
}

TEST_CASE("of several errors the first is kept, and items are skipped from then on") {
  TeamError error;
  std::atomic<int> after{0};
  gradstack::run_team(4, [&](Worker worker) {
    worker.stop = &error;
    worker.for_each(8, [&](Index i) {
      try {
        throw std::runtime_error(std::to_string(i));
      } catch (...) {
        error.capture();
      }
    });
    worker.sync();
    worker.for_each(100, [&](Index) { ++after; });
    worker.unstoppable().for_each(4, [&](Index) { after += 1000; });
  });
  CHECK(error.stopped());
  CHECK(after == 4000);
  CHECK_THROWS_AS(error.rethrow(), std::runtime_error);
  TeamError none;
  none.stop();
  none.rethrow();  // a request to stop is not an exception
  CHECK(none.stopped());
}

TEST_CASE("the poll stops the team, by its answer or by throwing") {
  using Clock = std::chrono::steady_clock;
  const auto spin_until_stopped = [](TeamError& error, gradstack::Poll& poll) {
    const auto deadline = Clock::now() + std::chrono::seconds(20);
    while (!error.stopped() && Clock::now() < deadline) poll.tick();
  };
  int calls = 0;
  TeamError error;
  gradstack::Poll poll([&] { return ++calls == 3; }, error);
  const auto begin = Clock::now();
  spin_until_stopped(error, poll);
  CHECK(calls == 3);
  CHECK(Clock::now() - begin >= std::chrono::milliseconds(150));
  error.rethrow();

  TeamError thrown;
  gradstack::Poll throwing([]() -> bool { throw std::domain_error("from the poll"); }, thrown);
  spin_until_stopped(thrown, throwing);
  CHECK_THROWS_AS(thrown.rethrow(), std::domain_error);
}

TEST_CASE("denormals are flushed inside a team, and nowhere else") {
  CHECK_FALSE(flushes());
  for (const int workers : {1, 4}) {
    std::vector<char> inside(4, 1), user_code(4, 0), again(4, 1);
    gradstack::run_team(workers, [&](const Worker& worker) {
      const auto id = static_cast<std::size_t>(worker.id);
      inside[id] = flushes();
      {
        const gradstack::DefaultFloats floats;
        user_code[id] = flushes();
      }
      again[id] = flushes();
    });
    CHECK(inside == std::vector<char>(4, 1));
    CHECK(user_code == std::vector<char>(4, 0));
    CHECK(again == std::vector<char>(4, 1));
    CHECK_FALSE(flushes());
  }
  // The threads of the pool belong to others as well.
  std::atomic<int> flushing{0};
#pragma omp parallel num_threads(4)
  flushing += flushes();
  CHECK(flushing == 0);
  // A caller who flushes keeps doing so.
  {
    const gradstack::FlushDenormals outer;
    gradstack::run_team(4, [](const Worker&) {});
    CHECK(flushes());
  }
  CHECK_FALSE(flushes());
}

TEST_CASE("threads are wanted only for enough work") {
  const int all = gradstack::max_threads();
  CHECK(all >= 1);
  CHECK(all <= omp_get_num_procs());
  CHECK(gradstack::threads_for(1e12, 3) == 3);  // the user's word
  CHECK(gradstack::threads_for(0, 3) == 3);
  CHECK(gradstack::threads_for(0, 0) == 1);
  CHECK(gradstack::threads_for(1e6, 0) == 1);
  CHECK(gradstack::threads_for(1e12, 0) == all);
  CHECK(gradstack::threads_for(1e30, 0) == all);  // more than fits an int
  CHECK(gradstack::threads_for(std::numeric_limits<double>::infinity(), 0) == all);
  int previous = 1;
  for (double flops = 1e5; flops < 1e9; flops *= 1.5) {
    const int threads = gradstack::threads_for(flops, 0);
    CHECK(threads >= previous);
    previous = threads;
  }
}

TEST_CASE("OMP_NUM_THREADS is respected") {
  if (const char* value = std::getenv("OMP_NUM_THREADS"))
    CHECK(gradstack::max_threads() <= std::atoi(value));
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  CHECK(gradstack::max_threads() == 1);
  CHECK(gradstack::threads_for(1e12, 0) == 1);
  omp_set_num_threads(before);
}

TEST_CASE("a child of fork() works alone") {
  // The parent has worker threads; the child has none of them, and must not wait for them.
  gradstack::run_team(4, [](const Worker& worker) { worker.sync(); });
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    alarm(60);  // a hang is a failure
    int members = 0, items = 0;
    gradstack::run_team(4, [&](const Worker& worker) {
      members += worker.count;
      worker.sync();
      worker.for_each(10, [&](Index) { ++items; });
    });
    _exit(members == 1 && items == 10 && gradstack::max_threads() == 1 ? 0 : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  // The parent still has its team.
  std::atomic<int> members{0};
  gradstack::run_team(4, [&](const Worker&) { ++members; });
  CHECK(members == 4);
}

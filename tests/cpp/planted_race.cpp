// A team of four whose workers pass a value on: with a barrier between writing and reading it is
// correct, with `--race` the barrier is left out. ThreadSanitizer must see the difference, or a
// clean run of the tests under it would mean nothing.
#include <cstdio>
#include <cstring>

#include "gradstack/parallel.hpp"

int main(int argc, char** argv) {
  const bool race = argc > 1 && std::strcmp(argv[1], "--race") == 0;
  constexpr int kThreads = 4;
  long values[kThreads] = {}, sums[kThreads] = {};
  gradstack::run_team(kThreads, [&](const gradstack::Worker& worker) {
    for (int round = 0; round < 100; ++round) {
      values[worker.id] += worker.id + round;
      if (!race) worker.sync();
      sums[worker.id] += values[(worker.id + 1) % worker.count];
      worker.sync();
    }
  });
  long total = 0;
  for (const long sum : sums) total += sum;
  std::printf("total %ld\n", total);
  return 0;
}

// Running allocates nothing: calls of operator new are counted while plans run and trainers train.
#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "gradstack/program.hpp"
#include "support/plan_run.hpp"
#include "support/random_graphs.hpp"
#include "support/training.hpp"

namespace {

std::atomic<long> allocations{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = nullptr;
  if (posix_memalign(&p, alignment < sizeof(void*) ? sizeof(void*) : alignment,
                     bytes > 0 ? bytes : 1) != 0)
    throw std::bad_alloc();
  return p;
}

}  // namespace

// All other forms of new and delete are defined by these. Not inlined: a compiler that sees free()
// behind delete warns that it does not fit new.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  return counted(bytes, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

using namespace test;

namespace {

template <class F> long allocations_of(F&& f) {
  const long before = allocations.load();
  f();
  return allocations.load() - before;
}

}  // namespace

TEST_CASE("the counter counts") {
  // Called as functions: a compiler may leave out new-expressions.
  CHECK(allocations_of([] { ::operator delete(::operator new(8)); }) == 1);
  CHECK(allocations_of([] { ::operator delete[](::operator new[](8)); }) == 1);
  CHECK(allocations_of([] { gradstack::Arena().allocate<float>(10); }) >= 1);
}

TEST_CASE_TEMPLATE("forward and backward allocate nothing", T, float, double) {
  for (unsigned seed = 400; seed < 410; ++seed)
    for (const Index count : {1, 3, 70})
      for (const int workers : {1, 3}) {
        const auto graph = RandomGraph(seed).build();
        const std::vector<T> w = cast<T>(random_parameters(*graph, 1));
        const auto xs = cast_all<T>(random_inputs(*graph, count, 2));
        gradstack::PlanOptions options;
        options.batch = count;
        options.want_dx = true;
        gradstack::Plan<T> plan(graph, best_kernels<T>(), options);
        for (std::size_t i = 0; i < xs.size(); ++i)
          plan.bind_input(i, xs[i].data(),
                          gradstack::size_of(graph->stage(graph->inputs()[i]).shape));
        std::vector<T> dw(w.size());
        gradstack::TeamError error;
        gradstack::Run<T> run;
        run.w = w.data();
        run.dw = dw.data();
        run.error = &error;
        const auto pass = [&] {
          gradstack::run_team(workers, [&](const gradstack::Worker& worker) {
            plan.forward(run, worker);
            plan.backward(run, worker);
          });
        };
        pass();  // the OpenMP runtime makes its threads
        CHECK(allocations_of([&] {
                for (int i = 0; i < 3; ++i) pass();
              }) == 0);
      }
}

TEST_CASE_TEMPLATE("a training step allocates nothing", T, float, double) {
  for (const Schedule& schedule : all_schedules(0.2))
    for (const int workers : {1, 3})
      for (const bool clip : {false, true}) {
        CAPTURE(schedule.name);
        CAPTURE(workers);
        Plot p = plot(schedule);
        use_rule(p, "adam");
        p.optimizer.clip_norm = clip ? 0.5 : 0;
        // Two runs that differ in the number of steps alone (a few epochs each): what they allocate
        // is for the call, not for the steps.
        Training<T> training(p, workers);
        training.begin();
        training.run(3);
        const std::vector<double> lrs(12, p.lr);
        const long few = allocations_of([&] { training.trainer.run(lrs.data(), 3, kNever); });
        const long many = allocations_of([&] { training.trainer.run(lrs.data(), 12, kNever); });
        CHECK(many == few);
        CHECK(few < 10);
      }
}

TEST_CASE("predictions allocate nothing that grows with the data") {
  const auto graph = gradstack::mlp({17, 33, 5}, "tanh");
  const std::vector<float> w = cast<float>(random_parameters(*graph, 1));
  const std::vector<double> x =
      random_values(2000 * 17, 2);  // of another type: gathered row by row
  std::vector<float> y(2000 * 5);
  gradstack::Program<float> program(graph, best_kernels<float>());
  const auto predict = [&](Index count) {
    const std::vector<gradstack::RowSource> sources{gradstack::rows_of(x.data(), count, Index{17})};
    const std::vector<float*> outs{y.data()};
    program.forward(w.data(), sources, count, outs, {.threads = 1});
  };
  predict(2000);
  const long few = allocations_of([&] { predict(200); });
  CHECK(allocations_of([&] { predict(2000); }) == few);
  CHECK(few < 10);
}

// Whatever ends a training early, the weights are those between two steps, and it can go on from
// there with the bits of an undisturbed run.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/training.hpp"

using namespace test;
using gradstack::Interrupted;
using gradstack::NonFiniteLoss;

namespace {

// After the run was stopped somewhere: the state is that after position.step whole steps, and goes
// on as if nothing had happened.
template <class T> void check_whole_steps(const Plot& p, Training<T>& training) {
  const std::int64_t done = training.trainer.position.step;
  Training<T> undisturbed(p, 1);
  undisturbed.begin();
  if (done > 0) undisturbed.run(done);
  CHECK(training.state() == undisturbed.state());
  const std::vector<double> epochs = training.run(4);
  CHECK(same_bits(epochs, undisturbed.run(4)));
  CHECK(training.state() == undisturbed.state());
}

class Custom : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A user's cost that fails in one of its calls.
class FailingCost final : public gradstack::Cost<float> {
 public:
  int fail_at = -1;
  mutable int calls = 0;
  void check_target(Index, Index, bool) const override {}
  bool by_block() const override { return false; }
  void rows(Index count, Index d, const float* ybar, Index, const float* y, const std::int64_t*,
            float* loss, float* grad) const override {
    if (calls++ == fail_at) throw Custom("cost");
    for (Index i = 0; i < count * d; ++i) {
      const float e = ybar[i] - y[i];
      loss[i / d] = (i % d == 0 ? 0 : loss[i / d]) + e * e;
      if (grad) grad[i] = 2 * e;
    }
  }
};

// The identity, whose gradient fails in one of its calls.
class FailingBlock final : public gradstack::OpaqueFunction {
 public:
  int fail_at = -1;
  mutable int calls = 0;
  void forward(Index n, Index d, Index, const float* x, float* y) const override {
    std::copy(x, x + n * d, y);
  }
  void forward(Index n, Index d, Index, const double* x, double* y) const override {
    std::copy(x, x + n * d, y);
  }
  void vjp(Index n, Index d, Index, const float*, const float* dy, float* dx) const override {
    pull(n * d, dy, dx);
  }
  void vjp(Index n, Index d, Index, const double*, const double* dy, double* dx) const override {
    pull(n * d, dy, dx);
  }
  void jvp(Index, Index, Index, const float*, const float*, float*) const override {}
  void jvp(Index, Index, Index, const double*, const double*, double*) const override {}

 private:
  template <class T> void pull(Index n, const T* dy, T* dx) const {
    if (calls++ == fail_at) throw Custom("vjp");
    std::copy(dy, dy + n, dx);
  }
};

// x holds row numbers of bad values.
template <class T> std::string message_of(Training<T>& training, Index steps) {
  try {
    training.run(steps);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("an interruption at any moment leaves whole steps") {
  Net net;
  const std::string x = net.input({300});
  const Schedule long_step{
      "long step", net.finish({net.linear(net.pointwise(net.linear(x, 560), "relu"), 3)}), 1000};
  std::vector<Schedule> schedules = all_schedules(0.2);
  schedules.push_back(long_step);
  for (const Schedule& schedule : schedules)
    for (const int threads : {1, 3})
      for (const int polls : {1, 2}) {
        CAPTURE(schedule.name);
        CAPTURE(threads);
        Plot p = plot(schedule);
        use_rule(p, "nadam");
        p.lr = 1e-4;
        Training<float> training(p, threads);
        training.begin();
        int left = polls;
        CHECK_THROWS_AS(training.run(1 << 20, [&] { return --left == 0; }), Interrupted);
        check_whole_steps(p, training);
      }
}

TEST_CASE("what the poll throws comes out") {
  const Plot p = plot(chunks());
  for (const int threads : {1, 3}) {
    Training<double> training(p, threads);
    training.begin();
    CHECK_THROWS_WITH_AS(training.run(1 << 20, []() -> bool { throw Custom("poll"); }), "poll",
                         Custom);
    check_whole_steps(p, training);
  }
}

TEST_CASE("a loss that is not finite stops before its update") {
  for (const Schedule& schedule : all_schedules(0, true))
    for (const int threads : {1, 3}) {
      CAPTURE(schedule.name);
      CAPTURE(threads);
      Plot p = plot(schedule);
      p.shuffle = false;
      use_rule(p, "nadam");
      Training<float> training(p, threads);
      training.begin();
      // In the last row of the second batch.
      float& bad = training.data.y[training.data.y.size() / at(p.samples) * at(2 * p.batch - 1)];
      const float good = bad;
      bad = 1e30F;  // its square overflows
      Training<float> undisturbed(p, 1);
      undisturbed.begin();
      undisturbed.run(1);
      CHECK_THROWS_AS(training.run(5), NonFiniteLoss);
      CHECK(training.trainer.position.step == 1);
      CHECK(training.state() == undisturbed.state());
      const std::string message = message_of(training, 5);  // again
      CAPTURE(message);
      CHECK(message.find("epoch 0, step 1") != std::string::npos);
      CHECK(training.state() == undisturbed.state());
      bad = good;
      check_whole_steps(p, training);
    }
}

TEST_CASE("a run may carry on when the loss is not finite") {
  Plot p = plot(chunks());
  p.shuffle = false;
  p.allow_non_finite = true;
  Training<float> training(p, 2);
  training.data.y[0] = std::numeric_limits<float>::infinity();
  training.begin();
  CHECK(training.run(6).size() == 2);
  CHECK(training.optimizer->steps == 6);
}

TEST_CASE("rows that are not finite are named, before the step that would use them") {
  for (const Schedule& schedule : all_schedules())
    for (const int threads : {1, 3})
      for (const bool in_y : {false, true}) {
        CAPTURE(schedule.name);
        Plot p = plot(schedule);
        p.check_finite = true;
        Training<float> training(p, threads);
        training.begin();
        const Index row = p.batch + 5;
        std::vector<float>& values = in_y ? training.data.y : training.data.x;
        float& bad = values[values.size() / at(p.samples) * at(row) + 1];
        const float good = bad;
        bad =
            in_y ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
        CHECK_THROWS_AS(training.run(3), std::invalid_argument);
        const std::string message = message_of(training, 3);
        CAPTURE(message);
        CHECK(message.find("row " + std::to_string(row) + " ") != std::string::npos);
        CHECK(training.trainer.position.step < 3);
        bad = good;
        check_whole_steps(p, training);
      }
}

TEST_CASE("single steps are taken back as well") {
  const Schedule schedule = narrow_tiles();
  Plot p = plot(schedule);
  use_rule(p, "nadam");
  Training<double> training(p, 2);
  gradstack::Batch batch = training.data.batch(false, true);
  const auto step = [&] {
    return training.trainer.step(training.w.data(), batch, training.data.target(false), 0.01, 2,
                                 true, 1);
  };
  step();
  const auto before = training.state();
  const double good = training.data.y[7];
  training.data.y[7] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(step(), NonFiniteLoss);
  CHECK(training.state() == before);
  training.data.y[7] = good;
  CHECK(std::isfinite(step()));
  CHECK(training.optimizer->steps == 2);
}

TEST_CASE("errors of the user's code come out, and the step is taken back") {
  for (const int threads : {1, 4})
    for (const Index batch : {Index{20}, Index{150}}) {
      CAPTURE(threads);
      CAPTURE(batch);
      const auto block = std::make_shared<FailingBlock>();
      Net net;
      const std::string x = net.input({6});
      const std::string h = net.opaque(net.pointwise(net.linear(x, 9), "tanh"), 9, block);
      Plot p;
      p.graph = net.finish({net.linear(net.linear(h, 9), 2)});
      p.batch = batch;
      p.samples = 3 * batch - 1;
      use_rule(p, "nadam");

      const Trajectory<float> whole = record<float>(p, 5, 1);
      block->calls = 0;
      block->fail_at = 3;
      Training<float> training(p, threads);
      training.begin();
      CHECK_THROWS_WITH_AS(training.run(5), "vjp", Custom);
      CHECK(training.trainer.position.step == 3);
      CHECK(training.state() == whole.states[3]);
      training.run(2);
      CHECK(training.state() == whole.states[5]);
      // The same in single steps on the user's batch.
      block->fail_at = block->calls;
      const auto before = training.state();
      CHECK_THROWS_WITH_AS(
          training.trainer.step(training.w.data(), training.data.batch(false, true),
                                training.data.target(false), 0.01, threads, true, 1),
          "vjp", Custom);
      CHECK(training.state() == before);
      block->fail_at = -1;

      const auto cost = std::make_shared<FailingCost>();
      cost->fail_at = 2;
      Training<float> own(p, threads, best_kernels<float>(), cost);
      own.begin();
      CHECK_THROWS_WITH_AS(own.run(5), "cost", Custom);
      CHECK(own.trainer.position.step == 2);
      const auto at_two = own.state();
      own.run(3);
      Training<float> undisturbed(p, 1, best_kernels<float>(), std::make_shared<FailingCost>());
      undisturbed.begin();
      undisturbed.run(2);
      CHECK(undisturbed.state() == at_two);
      undisturbed.run(3);
      CHECK(undisturbed.state() == own.state());
    }
}

TEST_CASE_TEMPLATE("a run resumed from its position ends with the same bits", T, float, double) {
  for (const Schedule& schedule : all_schedules(0.3)) {
    CAPTURE(schedule.name);
    Plot p = plot(schedule);
    use_rule(p, "nadam");
    Training<T> whole(p, 1);
    whole.begin();
    std::vector<double> epochs = whole.run(4);
    const auto state = whole.state();
    const gradstack::Position position = whole.trainer.position;
    for (const double epoch : whole.run(4)) epochs.push_back(epoch);

    Training<T> resumed(p, 3);
    resumed.w = state.w;
    resumed.optimizer->state() = state.state;
    resumed.optimizer->scalars() = state.scalars;
    resumed.optimizer->steps = state.steps;
    resumed.begin();
    resumed.trainer.position = position;
    const std::vector<double> rest = resumed.run(4);
    CHECK(resumed.state() == whole.state());
    REQUIRE(epochs.size() == 2);
    CHECK(same_bits(rest, std::vector<double>{epochs[1]}));
    CHECK(resumed.trainer.position.epoch == 2);
    CHECK(resumed.trainer.position.step == 8);
  }
}

TEST_CASE("a loop needs data, and begin() before run()") {
  Plot p = plot(narrow_tiles());
  Training<float> training(p, 1);
  CHECK_THROWS_AS(training.run(1), std::invalid_argument);
  gradstack::Batch empty;
  CHECK_THROWS_AS(training.trainer.begin(training.w.data(), empty, {}, {}), std::invalid_argument);
}

// The orders of epochs on a device, on the emulated one: queued for many epochs with no look of the
// host, so that a wait that is missing gives another order, with copies that run as late as they
// may or as early. And how often a run waits for the device.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "emulated.hpp"
#include "gradstack/device_trainer.hpp"
#include "gradstack/random.hpp"
#include "support/numbers.hpp"
#include "support/training.hpp"

using namespace test;
using gradstack::DeviceArray;
using gradstack::DeviceOrder;
using gradstack::DeviceStep;
using gradstack::device::EmulatedQueue;

namespace {

constexpr Index kSamples = 57;
constexpr std::uint64_t kSeed = 5;

std::vector<float> expected(std::int64_t epoch) {
  std::vector<Index> order(at(kSamples));
  gradstack::permutation(kSeed, static_cast<std::uint64_t>(epoch), kSamples, order.data());
  return {order.begin(), order.end()};
}

std::shared_ptr<EmulatedQueue> queue_with(bool early) {
  const auto queue = std::make_shared<EmulatedQueue>();
  queue->early = early;
  return queue;
}

}  // namespace

TEST_CASE("orders of epochs that are queued one behind the other") {
  for (const bool early : {false, true}) {
    for (const std::vector<int>& epochs :
         {std::vector<int>{0, 1, 2, 3, 4, 5}, {3, 4, 5}, {0, 1, 0, 1, 4, 2, 3}}) {
      CAPTURE(early);
      const auto queue = queue_with(early);
      DeviceOrder order(queue, kSeed, kSamples, true);
      const auto n = static_cast<Index>(epochs.size());
      DeviceArray<float> from(queue, kSamples, "samples"), to(queue, n * kSamples, "samples");
      DeviceArray<DeviceStep> step(queue, 1, "position");
      std::vector<float> samples(at(kSamples));
      for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<float>(i);
      from.from_host(samples.data(), kSamples);
      for (Index i = 0; i < n; ++i) {
        DeviceStep now;
        now.first = order.open(epochs[at(i)]);
        step.from_host(&now, 1);
        gradstack::DeviceGather g;
        g.count = kSamples;
        g.order = order.data();
        g.at = step.data();
        g.cols = 1;
        g.from = from.data();
        g.to = to.data() + i * kSamples;
        queue->gather(g);
        const Index* next = order.of(epochs[at(i)] + 1);  // while the device "works"
        const std::vector<float> drawn(next, next + kSamples);
        CHECK(drawn == expected(epochs[at(i)] + 1));
        if (i + 1 < n && epochs[at(i + 1)] != epochs[at(i)] + 1) order.forget();
      }
      std::vector<float> got(at(n * kSamples));
      to.to_host(got.data(), n * kSamples);
      for (Index i = 0; i < n; ++i) {
        const auto begin = got.begin() + i * kSamples;
        CHECK(std::vector<float>(begin, begin + kSamples) == expected(epochs[at(i)]));
      }
    }
  }
}

TEST_CASE("orders that the host alone reads") {
  const auto queue = queue_with(false);
  DeviceOrder order(queue, kSeed, kSamples, false);
  CHECK(order.data() == nullptr);
  for (const int epoch : {0, 1, 0, 1, 2, 7}) {
    const Index* drawn = order.of(epoch);
    CHECK(std::vector<float>(drawn, drawn + kSamples) == expected(epoch));
  }
}

TEST_CASE("a run waits once per epoch") {
  const auto queue = queue_with(false);
  const auto graph = gradstack::mlp({3, 8, 2}, "relu");
  const auto waits = [&](Index epochs) {
    const auto optimizer = std::make_shared<gradstack::Optimizer<float>>(
        "sgd", std::vector<double>{0, 0, 0, 0}, graph->n_params(), gradstack::OptimizerOptions{});
    gradstack::DeviceTrainer trainer(graph, queue, make_cost<float>("MSELoss"), optimizer, {});
    std::vector<float> w = gradstack::initial_parameters<float>(*graph, 1);
    const Values values = random_values(kSamples * 5, 3);
    const std::vector<float> x(values.begin(), values.end());
    gradstack::Batch data;
    data.count = kSamples;
    data.x = {gradstack::rows_of(x.data(), kSamples, 3)};
    data.y = gradstack::rows_of(x.data() + kSamples * 3, kSamples, 2);
    gradstack::FitOptions options;
    options.batch_size = 10;
    trainer.begin(w.data(), data, {2, false}, options);
    const std::vector<double> lrs(at(6 * epochs), 0.01);
    const Index before = queue->waits();
    CHECK(trainer.run(lrs.data(), 6 * epochs, {}).size() == at(epochs));
    return queue->waits() - before;
  };
  const Index one = waits(1);
  CHECK(waits(4) == one + 3);
}

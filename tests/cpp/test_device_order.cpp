// The orders of epochs on a device, on the emulated one, whose threads come in another order than
// the elements: they are the host's. And how often a run waits for the device.
#include <doctest/doctest.h>

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

constexpr std::uint64_t kSeed = 5;

std::vector<Index> expected(std::int64_t epoch, Index samples) {
  std::vector<Index> order(at(samples));
  gradstack::permutation(kSeed, static_cast<std::uint64_t>(epoch), samples, order.data());
  return order;
}

}  // namespace

TEST_CASE("orders of any number of samples are the host's") {
  const auto queue = std::make_shared<EmulatedQueue>();
  for (const Index samples : {1, 2, 3, 4, 5, 57, 1000, 70001}) {
    CAPTURE(samples);
    DeviceOrder order(queue, kSeed, samples);
    for (const std::int64_t epoch : {0, 1, 2, 2, 7, 0}) {
      CAPTURE(epoch);
      order.open(epoch);
      std::vector<Index> got(at(samples));
      queue->to_host(got.data(), order.data(), got.size() * sizeof(Index));
      CHECK(got == expected(epoch, samples));
    }
  }
}

TEST_CASE("orders of epochs that are queued one behind the other") {
  constexpr Index kSamples = 57;
  const auto queue = std::make_shared<EmulatedQueue>();
  const std::vector<int> epochs{0, 1, 2, 3, 0, 1, 1, 4};
  DeviceOrder order(queue, kSeed, kSamples);
  const auto n = static_cast<Index>(epochs.size());
  DeviceArray<float> from(queue, kSamples, "samples"), to(queue, n * kSamples, "samples");
  DeviceArray<DeviceStep> step(queue, 1, "position");
  std::vector<float> samples(at(kSamples));
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i] = static_cast<float>(i);
  from.from_host(samples.data(), kSamples);
  for (Index i = 0; i < n; ++i) {
    order.open(epochs[at(i)]);
    gradstack::DeviceGather g;
    g.count = kSamples;
    g.order = order.data();
    g.at = step.data();
    g.cols = 1;
    g.from = from.data();
    g.to = to.data() + i * kSamples;
    queue->gather(g);
    if (i == 2) order.forget();
  }
  std::vector<float> got(at(n * kSamples));
  to.to_host(got.data(), n * kSamples);
  for (Index i = 0; i < n; ++i) {
    const std::vector<Index> order_of_epoch = expected(epochs[at(i)], kSamples);
    const auto begin = got.begin() + i * kSamples;
    CHECK(std::vector<Index>(begin, begin + kSamples) == order_of_epoch);
  }
}

TEST_CASE("a run waits once per epoch") {
  constexpr Index kSamples = 57;
  const auto queue = std::make_shared<EmulatedQueue>();
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

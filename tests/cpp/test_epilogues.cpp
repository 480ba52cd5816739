// Functions and their derivatives as part of a device's products, on the emulated one: results of
// kernels of their own up to float32 rounding, and which calls are made.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "emulated.hpp"
#include "gradstack/device_parameters.hpp"
#include "gradstack/device_plan.hpp"
#include "gradstack/fusion.hpp"
#include "support/numbers.hpp"

using namespace test;
using gradstack::DeviceArray;
using gradstack::DevicePlan;
using gradstack::DevicePlanOptions;
using gradstack::Fusion;
using gradstack::Kind;
using gradstack::device::EmulatedQueue;

namespace {

struct Results {
  std::vector<float> y, dx, dw;
  Index functions = 0, derivatives = 0, sums = 0, kernels = 0;  // calls, beside those of trials
};

// Forward and backward of an MLP, `passes` times into the same gradient.
Results run(const std::vector<Index>& widths, const std::string& op, Index count, bool epilogues,
            const std::string& library = "all", int passes = 1, Index repeats = 1) {
  const auto queue = std::make_shared<EmulatedQueue>();
  queue->epilogues = library;
  const auto graph = gradstack::mlp(widths, op);
  const auto w = gradstack::initial_parameters<float>(*graph, 7);
  Results results;
  const auto once = [&] {
    DevicePlanOptions options;
    options.count = count;
    options.gradients = options.want_dx = true;
    options.repeats = repeats;
    options.epilogues = epilogues;
    DevicePlan plan(graph, queue, options);
    gradstack::DeviceParameters parameters(graph, queue);
    const std::lock_guard<std::mutex> lock(queue->mutex());
    gradstack::DeviceRun run = parameters.open(w.data(), {});
    if (repeats == 1) run.dw = parameters.gradient();
    const int input = graph->inputs()[0], output = graph->outputs()[0];
    const auto upload = [&](Index n, unsigned seed, float* to) {
      const Values values = random_values(n, seed);
      const std::vector<float> floats(values.begin(), values.end());
      queue->to_device(to, floats.data(), floats.size() * sizeof(float));
    };
    const auto download = [&](Index n, const float* from) {
      std::vector<float> values(at(n));
      queue->to_host(values.data(), from, values.size() * sizeof(float));
      return values;
    };
    for (int pass = 0; pass < passes; ++pass) {
      upload(count * widths.front(), static_cast<unsigned>(pass), plan.value(input));
      plan.forward(run);
      upload(plan.rows() * widths.back(), static_cast<unsigned>(10 + pass), plan.grad(output));
      run.accumulate = pass > 0;
      plan.backward(run);
    }
    results.y = download(count * widths.back(), plan.value(output));
    results.dx = download(plan.rows() * widths.front(), plan.grad(input));
    if (repeats > 1) return;
    results.dw.resize(w.size());
    parameters.read_gradient(results.dw.data());
  };
  const auto counted = [&](const char* name) { return queue->ran(name); };
  once();  // with the trials
  results = {};
  const Index before[] = {
      counted("a matrix product with a function"), counted("a matrix product with a derivative"),
      counted("a matrix product with a derivative and sums"), counted(op.c_str())};
  once();
  results.functions = counted("a matrix product with a function") - before[0];
  results.derivatives = counted("a matrix product with a derivative") - before[1];
  results.sums = counted("a matrix product with a derivative and sums") - before[2];
  results.kernels = counted(op.c_str()) - before[3];
  return results;
}

void check_close(const std::vector<float>& got, const std::vector<float>& expected) {
  REQUIRE(got.size() == expected.size());
  double most = 0, off = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto a = static_cast<double>(got[i]), b = static_cast<double>(expected[i]);
    most = std::max(most, std::abs(b));
    off = std::max(off, std::abs(a - b));
  }
  CHECK(off <= 1e-6 * (1 + most));
}

void check_same(const Results& a, const Results& b) {
  check_close(a.y, b.y);
  check_close(a.dx, b.dx);
  check_close(a.dw, b.dw);
}

}  // namespace

TEST_CASE("epilogues give what kernels of their own give") {
  for (const Index count : {1, 8, 33}) {
    const std::vector<Index> widths = {5, 16, 130, 8, 3};
    const Results plain = run(widths, "relu", count, false);
    CHECK(plain.functions + plain.derivatives + plain.sums == 0);
    CHECK(plain.kernels == 3);  // backward; forward takes the bias along
    const Results all = run(widths, "relu", count, true);
    check_same(all, plain);
    CHECK(all.functions == 3);
    CHECK(all.sums == 3);
    CHECK(all.derivatives + all.kernels == 0);
    for (const char* library : {"none", "forward", "no sums", "eights", "nan", "kink", "order"}) {
      CAPTURE(library);
      check_same(run(widths, "relu", count, true, library), plain);
    }
  }
}

TEST_CASE("what a library lacks is a kernel of its own") {
  const std::vector<Index> widths = {8, 16, 24, 5};
  const auto calls = [&](const char* library) { return run(widths, "relu", 16, true, library); };
  CHECK(calls("none").functions == 0);
  CHECK(calls("none").kernels == 2);
  CHECK(calls("forward").functions == 2);
  CHECK(calls("forward").kernels == 2);
  CHECK(calls("no sums").derivatives == 2);
  CHECK(calls("no sums").sums == 0);
  CHECK(calls("nan").functions == 0);
  CHECK(calls("nan").sums == 2);  // by bits of our own
  CHECK(calls("kink").functions == 0);
  CHECK(calls("kink").sums == 2);
  CHECK(calls("order").functions == 2);
  CHECK(calls("order").kernels == 2);
  // The product that the last hidden layer's gradient comes from sums over 5 outputs.
  const Results eights = calls("eights");
  CHECK(eights.sums == 1);
  CHECK(eights.kernels == 1);
}

TEST_CASE("a function that keeps its input") {
  const std::vector<Index> widths = {8, 16, 24, 5};
  const Results plain = run(widths, "gelu_tanh", 16, false),
                all = run(widths, "gelu_tanh", 16, true);
  check_same(all, plain);
  CHECK(plain.kernels == 4);
  CHECK(all.kernels == 2);  // forward: s and z are both wanted
  CHECK(all.sums == 2);
  const Results none = run(widths, "tanh", 16, true);
  CHECK(none.functions + none.derivatives + none.sums == 0);
  check_same(none, run(widths, "tanh", 16, false));
}

TEST_CASE("gradients that are added to, and several rows of gradients for a sample") {
  const std::vector<Index> widths = {8, 16, 24, 5};
  const Results plain = run(widths, "relu", 16, false, "all", 3);
  const Results all = run(widths, "relu", 16, true, "all", 3);
  check_same(all, plain);
  CHECK(all.sums == 2);  // sums overwrite: of the first pass alone
  CHECK(all.derivatives == 4);
  const Results rows = run(widths, "relu", 16, true, "all", 1, 3);
  check_same(rows, run(widths, "relu", 16, false, "all", 1, 3));
  CHECK(rows.derivatives + rows.sums == 0);
}

TEST_CASE("who pulls back through a fused pair") {
  const auto graph = gradstack::mlp({4, 5, 6, 2}, "relu");
  const auto id = [&](int linear) {
    for (int i = 0; i < static_cast<int>(graph->stages().size()); ++i)
      if (graph->stage(i).kind == Kind::Linear && linear-- == 0) return i;
    return -1;
  };
  const Fusion fused(*graph, true);
  CHECK(fused.producer(*graph, id(0)) == -1);  // an input
  CHECK(fused.producer(*graph, id(1)) == id(0));
  CHECK(fused.producer(*graph, id(2)) == id(1));
  CHECK(Fusion(*graph, false).producer(*graph, id(1)) == -1);
  const Fusion apart(*graph, true, id(0));
  CHECK(apart.producer(*graph, id(1)) == -1);
  CHECK(apart.producer(*graph, id(2)) == id(1));
}

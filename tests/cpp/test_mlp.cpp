// The ready-made graph and its initial parameters.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "gradstack/mlp.hpp"
#include "support/numbers.hpp"

using namespace test;

TEST_CASE("mlp: blocks and names as in a Sequential") {
  const auto graph = gradstack::mlp({784, 256, 128, 10}, "relu");
  std::vector<std::string> stages, parameters;
  for (const Stage& stage : graph->stages()) stages.push_back(stage.name);
  for (const gradstack::Parameter& p : graph->parameters()) parameters.push_back(p.name);
  CHECK(stages == std::vector<std::string>{"x", "0", "1", "2", "3", "4"});
  CHECK(parameters ==
        std::vector<std::string>{"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"});
  CHECK(graph->parameter(0).shape == Shape{256, 784});
  CHECK(graph->n_params() == 784 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10);
  CHECK(graph->stage(graph->outputs()[0]).kind == Kind::Linear);
  CHECK(graph->stage(graph->outputs()[0]).shape == Shape{10});
  CHECK(graph->stage(2).op == "relu");
  CHECK(gradstack::mlp({3, 2}, "relu")->stages().size() == 2);
  // Functions with parameters get their defaults.
  CHECK(gradstack::mlp({3, 2, 1}, "softplus")->stage(2).params == std::vector<double>{1.0, 20.0});
}

TEST_CASE("mlp: what cannot be built is refused") {
  CHECK_THROWS_WITH_AS(gradstack::mlp({3}, "relu"), doctest::Contains("widths"),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(gradstack::mlp({3, 2}, "tan"), doctest::Contains("'tan'"),
                       std::invalid_argument);
  CHECK_THROWS_AS(gradstack::mlp({3, 0, 2}, "relu"), std::invalid_argument);
  CHECK_THROWS_AS(gradstack::mlp({0, 2}, "relu"), std::invalid_argument);
}

TEST_CASE_TEMPLATE("initial parameters are uniform in +-1/sqrt(in), weights and biases", T, float,
                   double) {
  const auto graph = gradstack::mlp({100, 400, 50}, "tanh");
  const std::vector<T> w = gradstack::initial_parameters<T>(*graph, 7);
  CHECK(static_cast<Index>(w.size()) == graph->n_params());
  CHECK(same_bits(w, gradstack::initial_parameters<T>(*graph, 7)));
  CHECK_FALSE(same_bits(w, gradstack::initial_parameters<T>(*graph, 8)));
  for (const gradstack::Parameter& p : graph->parameters()) {
    const double bound = p.name[0] == '0' ? 0.1 : 0.05;
    double sum = 0, squares = 0, largest = 0;
    for (Index i = p.offset; i < p.offset + p.size; ++i) {
      const double v = static_cast<double>(w[at(i)]) / bound;
      sum += v;
      squares += v * v;
      largest = std::max(largest, std::abs(v));
    }
    const double n = static_cast<double>(p.size);
    CHECK(largest <= 1 + 1e-6);
    CHECK(largest > 1 - 10 / n);
    // The mean of a uniform variable in +-1 has variance 1/3n, that of its square 4/45n.
    CHECK(std::abs(sum / n) < 5 * std::sqrt(1 / (3 * n)));
    CHECK(std::abs(squares / n - 1.0 / 3) < 5 * std::sqrt(4 / (45 * n)));
  }
}

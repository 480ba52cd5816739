// Graphs: resolution, topological order, shapes, and errors that name the block.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <string>

#include "gradstack/graph.hpp"
#include "support/net.hpp"

using namespace test;

namespace {

Stage block(Kind kind, const std::string& name, std::vector<std::string> inputs, Shape shape = {}) {
  Stage stage;
  stage.kind = kind;
  stage.name = name;
  stage.inputs = std::move(inputs);
  stage.shape = std::move(shape);
  return stage;
}

Stage pointwise(const std::string& name, const std::string& input) {
  Stage stage = block(Kind::Pointwise, name, {input});
  stage.op = "tanh";
  return stage;
}

// A graph with an input "x" of this shape and one parameter "w", and what finish() says about one
// more block. "" when it is accepted.
std::string complaint(const Stage& stage, const Shape& x = {6}, const Shape& w = {4, 6}) {
  Graph graph;
  graph.parameter("w", w);
  graph.add(block(Kind::Input, "x", {}, x));
  graph.add(block(Kind::Input, "other", {}, {5}));
  graph.add(block(Kind::Input, "scalar", {}, {}));
  graph.add(stage);
  try {
    graph.finish({stage.name});
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Stage linear_stage(const std::string& weight, const std::string& bias = "") {
  Stage stage = block(Kind::Linear, "fc", {"x"});
  stage.weight = weight;
  stage.bias = bias;
  return stage;
}

}  // namespace

TEST_CASE("a graph built in order keeps its order") {
  Graph graph;
  graph.add(block(Kind::Input, "x", {}, {3}));
  graph.add(pointwise("b", "x"));
  graph.add(pointwise("a", "x"));
  graph.add(block(Kind::Add, "sum", {"a", "b"}));
  graph.finish({"sum"});
  std::vector<std::string> names;
  for (const Stage& stage : graph.stages()) names.push_back(stage.name);
  CHECK(names == std::vector<std::string>{"x", "b", "a", "sum"});
  CHECK(graph.find("a") == 2);
  CHECK(graph.stage(3).in == std::vector<int>{2, 1});
  CHECK(graph.outputs() == std::vector<int>{3});
  CHECK(graph.inputs() == std::vector<int>{0});
  CHECK(graph.finished());
}

TEST_CASE("blocks may be added in any order") {
  // A ladder in which every block needs the two before it, and a long chain.
  Net net;
  std::string a = net.input({7}), b = net.linear(a, 7);
  for (int i = 0; i < 12; ++i) {
    const std::string c = net.binary(i % 2 ? Kind::Mul : Kind::Sub, a, net.pointwise(b, "tanh"));
    a = b;
    b = c;
  }
  for (unsigned seed = 0; seed < 40; ++seed) {
    const auto graph = net.finish({b, a}, seed);
    REQUIRE(graph->stages().size() == net.stages().size());
    for (std::size_t i = 0; i < graph->stages().size(); ++i) {
      const Stage& stage = graph->stages()[i];
      CHECK(graph->find(stage.name) == static_cast<int>(i));
      REQUIRE(stage.in.size() == stage.inputs.size());
      for (std::size_t k = 0; k < stage.in.size(); ++k) {
        CHECK(stage.in[k] < static_cast<int>(i));
        CHECK(graph->stage(stage.in[k]).name == stage.inputs[k]);
      }
      CHECK(stage.shape == net.shape(stage.name));
    }
    CHECK(graph->stage(graph->outputs()[0]).name == b);
    CHECK(graph->stage(graph->outputs()[1]).name == a);
  }
}

TEST_CASE("cycles and dangling inputs name the block") {
  Graph graph;
  graph.add(block(Kind::Input, "x", {}, {3}));
  graph.add(block(Kind::Add, "loop", {"x", "back"}));
  graph.add(pointwise("back", "loop"));
  CHECK_THROWS_WITH_AS(graph.finish({"loop"}), doctest::Contains("[loop]"), std::invalid_argument);
  CHECK_FALSE(graph.finished());

  Graph self;
  self.add(pointwise("ouroboros", "ouroboros"));
  CHECK_THROWS_WITH_AS(self.finish({"ouroboros"}), doctest::Contains("[ouroboros]"),
                       std::invalid_argument);

  const std::string dangling = complaint(pointwise("head", "nowhere"));
  CHECK(contains(dangling, "[head]"));
  CHECK(contains(dangling, "'nowhere'"));
}

TEST_CASE("names are unique and outputs exist") {
  Graph graph;
  graph.add(block(Kind::Input, "x", {}, {3}));
  CHECK_THROWS_WITH_AS(graph.add(block(Kind::Input, "x", {}, {4})), doctest::Contains("[x]"),
                       std::invalid_argument);
  CHECK_THROWS_AS(graph.add(block(Kind::Input, "", {}, {4})), std::invalid_argument);
  graph.parameter("w", {2, 2});
  CHECK_THROWS_WITH_AS(graph.parameter("w", {2}), doctest::Contains("'w'"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(graph.parameter("v", {2, 0}), doctest::Contains("'v'"),
                       std::invalid_argument);
  CHECK_THROWS_AS(graph.finish({}), std::invalid_argument);
  CHECK_THROWS_WITH_AS(graph.finish({"y"}), doctest::Contains("'y'"), std::invalid_argument);
  graph.finish({"x"});
  CHECK_THROWS_AS(graph.finish({"x"}), std::invalid_argument);
  CHECK_THROWS_AS(graph.add(pointwise("late", "x")), std::invalid_argument);
  CHECK_THROWS_AS(graph.parameter("late", {1}), std::invalid_argument);
  CHECK_THROWS_WITH_AS(graph.find("y"), doctest::Contains("'y'"), std::invalid_argument);
}

TEST_CASE("parameters are views into one vector, in the order declared") {
  Graph graph;
  graph.parameter("a", {3, 4});
  graph.parameter("b", {3});
  graph.parameter("c", {});
  graph.parameter("d", {2, 1, 5});
  CHECK(graph.n_params() == 12 + 3 + 1 + 10);
  CHECK(graph.parameter(1).offset == 12);
  CHECK(graph.parameter(2).size == 1);
  CHECK(graph.parameter(3).offset == 16);
}

TEST_CASE("Linear checks its shapes") {
  CHECK(complaint(linear_stage("w")) == "");
  const auto wrong = [](const Stage& stage, const Shape& x, const Shape& w,
                        const std::string& detail) {
    const std::string text = complaint(stage, x, w);
    CAPTURE(text);
    CHECK(contains(text, "[fc]"));
    CHECK(contains(text, detail));
  };
  wrong(linear_stage("w"), {5}, {4, 6}, "x has 5 features per sample, expected 6");
  wrong(linear_stage("w"), {2, 3}, {4, 6}, "(2, 3)");
  wrong(linear_stage("w"), {}, {4, 6}, "()");
  wrong(linear_stage("w"), {6}, {24}, "(24,)");
  wrong(linear_stage("v"), {6}, {4, 6}, "'v'");
  wrong(linear_stage("w", "b"), {6}, {4, 6}, "'b'");
  wrong(linear_stage("w", "w"), {6}, {4, 6}, "bias");
  Stage masked = linear_stage("w");
  masked.mask = std::make_shared<Mask>(23);
  wrong(masked, {6}, {4, 6}, "mask has 23");
  masked.mask = std::make_shared<Mask>(24);
  CHECK(complaint(masked) == "");
}

TEST_CASE("every other shape mismatch names its block") {
  const auto wrong = [](const Stage& stage, const Shape& x = {6}) {
    const std::string text = complaint(stage, x);
    CAPTURE(text);
    CHECK(contains(text, "[z]"));
  };
  for (const Kind kind : {Kind::Add, Kind::Sub, Kind::Mul, Kind::Div}) {
    CHECK(complaint(block(kind, "z", {"x", "x"})) == "");
    wrong(block(kind, "z", {"x", "other"}));
    wrong(block(kind, "z", {"x", "scalar"}));
    wrong(block(kind, "z", {"x"}));
    wrong(block(kind, "z", {"x", "x", "x"}));
  }
  CHECK(complaint(block(Kind::Concat, "z", {"x", "other", "x"})) == "");
  wrong(block(Kind::Concat, "z", {}));
  wrong(block(Kind::Concat, "z", {"x", "other"}), {2, 3});
  for (const Kind kind : {Kind::Softmax, Kind::LogSoftmax}) {
    CHECK(complaint(block(kind, "z", {"x"})) == "");
    wrong(block(kind, "z", {"x"}), {2, 3});
    wrong(block(kind, "z", {"x"}), {});
  }
  for (const auto& [begin, end] :
       std::vector<std::pair<Index, Index>>{{-1, 2}, {2, 7}, {3, 3}, {4, 2}}) {
    Stage slice = block(Kind::Slice, "z", {"x"});
    slice.begin = begin;
    slice.end = end;
    wrong(slice);
  }
  CHECK(complaint(block(Kind::Reshape, "z", {"x"}, {3, 2})) == "");
  CHECK(complaint(block(Kind::Reshape, "z", {"scalar"}, {1, 1})) == "");
  wrong(block(Kind::Reshape, "z", {"x"}, {3, 3}));
  wrong(block(Kind::Reshape, "z", {"x"}, {-2, -3}));
  for (const double rate : {-0.1, 1.0, 1.5, std::nan("")}) {
    Stage dropout = block(Kind::Dropout, "z", {"x"});
    dropout.rate = rate;
    wrong(dropout);
  }
  Stage unknown = pointwise("z", "x");
  unknown.op = "tan";
  wrong(unknown);
  Stage parameters = pointwise("z", "x");
  parameters.params = {1.0};
  wrong(parameters);
  wrong(block(Kind::Opaque, "z", {"x"}, {3}));  // without its function
  wrong(block(Kind::Input, "z", {}, {3, 0}));
  wrong(block(Kind::Input, "z", {"x"}, {3}));
  Stage nearest = block(Kind::Nearest, "z", {"other"});
  nearest.weight = "w";
  wrong(nearest);
  nearest.inputs = {"x"};
  CHECK(complaint(nearest) == "");
}

TEST_CASE("blocks that no output depends on are dropped, after they were checked") {
  Net net;
  const std::string x = net.input({4}), idle = net.input({2});
  const std::string a = net.linear(x, 3), dead = net.linear(a, 5),
                    deader = net.pointwise(dead, "tanh");
  const std::string y = net.binary(Kind::Add, a, net.pointwise(a, "relu"));
  for (unsigned seed = 0; seed < 10; ++seed) {
    const auto graph = net.finish({y, a}, seed);
    CHECK(graph->stages().size() == 5);
    CHECK(graph->inputs().size() == 2);
    CHECK(graph->stage(graph->inputs()[1]).name == idle);
    CHECK(graph->stage(graph->outputs()[0]).name == y);
    CHECK(graph->stage(graph->outputs()[1]).name == a);
    CHECK(graph->n_params() == 4 * 3 + 3 + 3 * 5 + 5);
    CHECK_THROWS_AS(graph->find(dead), std::invalid_argument);
    CHECK_THROWS_AS(graph->find(deader), std::invalid_argument);
    for (std::size_t i = 0; i < graph->stages().size(); ++i) {
      const Stage& stage = graph->stages()[i];
      CHECK(graph->find(stage.name) == static_cast<int>(i));
      for (std::size_t k = 0; k < stage.in.size(); ++k)
        CHECK(graph->stage(stage.in[k]).name == stage.inputs[k]);
    }
  }
  Graph wrong;
  wrong.add(block(Kind::Input, "x", {}, {4}));
  wrong.add(pointwise("y", "x"));
  wrong.add(block(Kind::Reshape, "unused", {"x"}, {5}));
  CHECK_THROWS_WITH_AS(wrong.finish({"y"}), doctest::Contains("[unused]"), std::invalid_argument);
}

TEST_CASE("blocks that share a weight share its mask") {
  const auto finish = [](const Mask& first, const Mask& second) {
    Net net;
    const std::string x = net.input({3}), a = net.linear(x, 3, {.mask = first});
    net.finish({net.linear(a, 3, {.mask = second, .share = a})});
  };
  const Mask diagonal = {1, 0, 0, 0, 1, 0, 0, 0, 1}, ones(9, 1);
  finish(diagonal, diagonal);
  finish({}, ones);
  finish({}, {});
  CHECK_THROWS_WITH_AS(finish(diagonal, {}), doctest::Contains("[linear2]"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(finish({}, diagonal), doctest::Contains("'linear1'"), std::invalid_argument);
  CHECK_THROWS_AS(finish(diagonal, ones), std::invalid_argument);
}

TEST_CASE("kinds have names") {
  for (int i = 0; i <= static_cast<int>(Kind::Opaque); ++i) {
    const auto kind = static_cast<Kind>(i);
    CHECK(gradstack::find_kind(gradstack::kind_name(kind)) == kind);
  }
  CHECK_THROWS_AS(gradstack::find_kind("conv"), std::invalid_argument);
  CHECK(gradstack::to_string(Shape{}) == "()");
  CHECK(gradstack::to_string(Shape{3}) == "(3,)");
  CHECK(gradstack::to_string(Shape{3, 4}) == "(3, 4)");
}

// A short way to write graphs in tests: every call adds one block and returns its name.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gradstack/graph.hpp"

namespace test {

using gradstack::Graph;
using gradstack::Index;
using gradstack::Kind;
using gradstack::Shape;
using gradstack::Stage;

using Mask = std::vector<std::uint8_t>;

inline std::size_t at(Index i) { return static_cast<std::size_t>(i); }

class Net {
 public:
  std::string input(Shape shape) {
    Stage stage;
    stage.shape = shape;
    return add(Kind::Input, std::move(stage), {}, std::move(shape));
  }

  struct LinearOptions {
    bool bias = true;
    Mask mask = {};          // (out, in)
    std::string share = "";  // a Linear whose parameters this one uses
  };

  std::string linear(const std::string& x, Index out, const LinearOptions& options) {
    Stage stage;
    const std::string owner = options.share.empty() ? next_name("linear") : options.share;
    stage.weight = owner + ".weight";
    if (options.bias) stage.bias = owner + ".bias";
    if (options.share.empty()) {
      parameters_.push_back({stage.weight, {out, width(x)}});
      if (options.bias) parameters_.push_back({stage.bias, {out}});
    }
    if (!options.mask.empty()) stage.mask = std::make_shared<Mask>(options.mask);
    return add(Kind::Linear, std::move(stage), {x}, {out});
  }
  std::string linear(const std::string& x, Index out) { return linear(x, out, LinearOptions{}); }

  std::string pointwise(const std::string& x, const std::string& op,
                        std::vector<double> params = {}) {
    Stage stage;
    stage.op = op;
    stage.params = std::move(params);
    return add(Kind::Pointwise, std::move(stage), {x}, shape(x));
  }

  std::string binary(Kind kind, const std::string& a, const std::string& b) {
    return add(kind, {}, {a, b}, shape(a));
  }

  std::string concat(const std::vector<std::string>& parts) {
    Index total = 0;
    for (const std::string& part : parts) total += width(part);
    return add(Kind::Concat, {}, parts, {total});
  }

  std::string slice(const std::string& x, Index begin, Index end) {
    Stage stage;
    stage.begin = begin;
    stage.end = end;
    return add(Kind::Slice, std::move(stage), {x}, {end - begin});
  }

  std::string reshape(const std::string& x, Shape to) {
    Stage stage;
    stage.shape = to;
    return add(Kind::Reshape, std::move(stage), {x}, std::move(to));
  }

  std::string softmax(const std::string& x, bool log = false) {
    return add(log ? Kind::LogSoftmax : Kind::Softmax, {}, {x}, shape(x));
  }

  std::string dropout(const std::string& x, double rate) {
    Stage stage;
    stage.rate = rate;
    return add(Kind::Dropout, std::move(stage), {x}, shape(x));
  }

  std::string nearest(const std::string& x, Index prototypes) {
    Stage stage;
    stage.weight = next_name("nearest") + ".weight";
    parameters_.push_back({stage.weight, {prototypes, width(x)}});
    return add(Kind::Nearest, std::move(stage), {x}, {});
  }

  std::string opaque(const std::string& x, Index out,
                     std::shared_ptr<const gradstack::OpaqueFunction> function) {
    Stage stage;
    stage.shape = {out};
    stage.opaque = std::move(function);
    return add(Kind::Opaque, std::move(stage), {x}, {out});
  }

  // A parameter that no block uses.
  void unused_parameter(const std::string& name, Shape shape) {
    parameters_.push_back({name, std::move(shape)});
  }

  const Shape& shape(const std::string& name) const { return shapes_.at(name); }
  Index width(const std::string& name) const { return gradstack::size_of(shapes_.at(name)); }
  const std::vector<Stage>& stages() const { return stages_; }

  // The graph, its blocks added in the order they were written, or (seed > 0) in a random order.
  // Inputs keep their order: it is that of the arguments.
  std::shared_ptr<const Graph> finish(const std::vector<std::string>& outputs,
                                      unsigned seed = 0) const {
    auto graph = std::make_shared<Graph>();
    for (const auto& [name, shape] : parameters_) graph->parameter(name, shape);
    std::vector<Stage> order = stages_;
    if (seed > 0) {
      std::mt19937 random(seed);
      std::shuffle(order.begin(), order.end(), random);
      std::vector<Stage> inputs;
      for (const Stage& stage : stages_)
        if (stage.kind == Kind::Input) inputs.push_back(stage);
      std::size_t next = 0;
      for (Stage& stage : order)
        if (stage.kind == Kind::Input) stage = inputs[next++];
    }
    for (const Stage& stage : order) graph->add(stage);
    graph->finish(outputs);
    return graph;
  }

 private:
  std::string next_name(const std::string& kind) const {
    return kind + std::to_string(stages_.size());
  }

  std::string add(Kind kind, Stage stage, std::vector<std::string> inputs, Shape shape) {
    stage.kind = kind;
    stage.name = next_name(gradstack::kind_name(kind));
    stage.inputs = std::move(inputs);
    shapes_[stage.name] = std::move(shape);
    stages_.push_back(std::move(stage));
    return stages_.back().name;
  }

  std::vector<Stage> stages_;
  std::vector<std::pair<std::string, Shape>> parameters_;
  std::map<std::string, Shape> shapes_;
};

// A mask that connects about `density` of the pairs, and every output at least once.
inline Mask random_mask(Index out, Index in, double density, unsigned seed) {
  std::mt19937 random(seed);
  std::bernoulli_distribution keep(density);
  Mask mask(at(out * in));
  for (auto& entry : mask) entry = keep(random);
  for (Index i = 0; i < out; ++i) mask[at(i * in + i % in)] = 1;
  return mask;
}

}  // namespace test

#include "gradstack/graph.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>

#include "gradstack/ops.hpp"

namespace gradstack {
namespace {

constexpr std::array<const char*, 16> kKindNames = {
    "input",       "linear",  "sparse_linear", "pointwise", "add",     "sub",
    "mul",         "div",     "concat",        "slice",     "reshape", "softmax",
    "log_softmax", "dropout", "nearest",       "opaque"};

std::size_t arity(Kind kind) {
  switch (kind) {
    case Kind::Input:
      return 0;
    case Kind::Add:
    case Kind::Sub:
    case Kind::Mul:
    case Kind::Div:
      return 2;
    default:
      return 1;
  }
}

[[noreturn]] void fail(const Stage& stage, const std::string& what) {
  throw std::invalid_argument("[" + stage.name + "] " + what);
}

}  // namespace

Index size_of(const Shape& shape) {
  Index n = 1;
  for (Index extent : shape) n *= extent;
  return n;
}

std::string to_string(const Shape& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += std::to_string(shape[i]);
    if (i + 1 < shape.size()) text += ", ";
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

const char* kind_name(Kind kind) { return kKindNames[static_cast<std::size_t>(kind)]; }

Kind find_kind(const std::string& name) {
  for (std::size_t i = 0; i < kKindNames.size(); ++i)
    if (name == kKindNames[i]) return static_cast<Kind>(i);
  throw std::invalid_argument("kind: got '" + name + "', expected one of the kinds of block");
}

int Graph::parameter(const std::string& name, const Shape& shape) {
  if (finished_) throw std::invalid_argument("parameter '" + name + "': the graph is finished");
  for (Index extent : shape)
    if (extent < 1)
      throw std::invalid_argument("parameter '" + name + "': shape " + to_string(shape) +
                                  " has an empty axis");
  const int id = static_cast<int>(parameters_.size());
  if (!parameter_ids_.emplace(name, id).second)
    throw std::invalid_argument("parameter '" + name + "' is declared twice");
  parameters_.push_back({name, shape, n_params_, size_of(shape)});
  n_params_ += parameters_.back().size;
  return id;
}

void Graph::add(Stage stage) {
  if (finished_) fail(stage, "the graph is finished");
  if (stage.name.empty()) throw std::invalid_argument("a stage needs a name");
  const int id = static_cast<int>(stages_.size());
  if (!stage_ids_.emplace(stage.name, id).second) fail(stage, "there are two blocks of this name");
  stages_.push_back(std::move(stage));
}

int Graph::find(const std::string& name) const {
  const auto it = stage_ids_.find(name);
  if (it == stage_ids_.end()) throw std::invalid_argument("no block is named '" + name + "'");
  return it->second;
}

void Graph::finish(const std::vector<std::string>& outputs) {
  if (finished_) throw std::invalid_argument("the graph is finished already");
  if (outputs.empty()) throw std::invalid_argument("outputs: expected at least one block name");
  for (const Stage& stage : stages_)
    for (const std::string& input : stage.inputs)
      if (!stage_ids_.count(input)) fail(stage, "its input '" + input + "' does not exist");
  for (const std::string& name : outputs)
    if (!stage_ids_.count(name))
      throw std::invalid_argument("outputs: no block is named '" + name + "'");
  sort_topologically();
  for (std::size_t i = 0; i < stages_.size(); ++i) resolve(stages_[i], i);
  check_masks();
  for (const std::string& name : outputs) outputs_.push_back(stage_ids_.at(name));
  drop_unused();
  finished_ = true;
}

// Passes over the stages in the order of addition, each placing those that are ready, so that a
// graph built in order keeps its order.
void Graph::sort_topologically() {
  const std::size_t n = stages_.size();
  std::vector<std::size_t> order;
  std::vector<bool> placed(n, false);
  order.reserve(n);
  while (order.size() < n) {
    const std::size_t before = order.size();
    for (std::size_t i = 0; i < n; ++i) {
      if (placed[i]) continue;
      const auto& inputs = stages_[i].inputs;
      const bool ready = std::all_of(inputs.begin(), inputs.end(), [&](const std::string& name) {
        return placed[static_cast<std::size_t>(stage_ids_.at(name))];
      });
      if (!ready) continue;
      placed[i] = true;
      order.push_back(i);
    }
    if (order.size() == before)
      for (std::size_t i = 0; i < n; ++i)
        if (!placed[i]) fail(stages_[i], "is part of, or depends on, a cycle");
  }
  std::vector<Stage> sorted;
  sorted.reserve(n);
  for (std::size_t i : order) sorted.push_back(std::move(stages_[i]));
  stages_ = std::move(sorted);
  for (std::size_t i = 0; i < n; ++i) stage_ids_[stages_[i].name] = static_cast<int>(i);
}

// A connection is there or not: blocks that share a weight agree about it, else which of its
// entries may move would depend on the block that one looks at.
void Graph::check_masks() const {
  const auto all_ones = [](const Stage& stage) {
    return !stage.mask || std::all_of(stage.mask->begin(), stage.mask->end(),
                                      [](std::uint8_t m) { return m != 0; });
  };
  std::vector<const Stage*> first(parameters_.size(), nullptr);
  for (const Stage& stage : stages_) {
    if (stage.weight_id < 0) continue;
    const Stage*& other = first[static_cast<std::size_t>(stage.weight_id)];
    if (!other) other = &stage;
    const bool same = (stage.mask && other->mask && *stage.mask == *other->mask) ||
                      (all_ones(stage) && all_ones(*other));
    if (!same) fail(stage, "shares its weight with '" + other->name + "', but not its mask");
    if (stage.edges && other->edges && !(*stage.edges == *other->edges))
      fail(stage, "shares its weight with '" + other->name + "', but not its edges");
  }
}

// Nobody asked for them, and an overflow in one of them would reach the gradients of the others.
void Graph::drop_unused() {
  std::vector<char> used(stages_.size(), 0);
  for (int id : outputs_) used[static_cast<std::size_t>(id)] = 1;
  for (std::size_t i = stages_.size(); i-- > 0;) {
    if (stages_[i].kind == Kind::Input) used[i] = 1;
    if (!used[i]) continue;
    for (int input : stages_[i].in) used[static_cast<std::size_t>(input)] = 1;
  }
  std::vector<int> new_id(stages_.size(), -1);
  std::vector<Stage> kept;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    if (!used[i]) {
      stage_ids_.erase(stages_[i].name);
      continue;
    }
    new_id[i] = stage_ids_[stages_[i].name] = static_cast<int>(kept.size());
    kept.push_back(std::move(stages_[i]));
    for (int& input : kept.back().in) input = new_id[static_cast<std::size_t>(input)];
  }
  stages_ = std::move(kept);
  for (std::vector<int>* ids : {&inputs_, &outputs_})
    for (int& id : *ids) id = new_id[static_cast<std::size_t>(id)];
}

void Graph::resolve(Stage& stage, std::size_t position) {
  for (const std::string& name : stage.inputs) stage.in.push_back(stage_ids_.at(name));
  const bool any_arity = stage.kind == Kind::Concat;
  if (any_arity ? stage.in.empty() : stage.in.size() != arity(stage.kind))
    fail(stage, std::string(kind_name(stage.kind)) + " takes " +
                    (any_arity ? "at least 1" : std::to_string(arity(stage.kind))) +
                    " input(s), got " + std::to_string(stage.in.size()));
  const auto parameter_id = [&](const std::string& name) {
    const auto it = parameter_ids_.find(name);
    if (it == parameter_ids_.end()) fail(stage, "its parameter '" + name + "' does not exist");
    return it->second;
  };
  if (stage.kind == Kind::Linear || stage.kind == Kind::SparseLinear || stage.kind == Kind::Nearest)
    stage.weight_id = parameter_id(stage.weight);
  if (!stage.bias.empty()) stage.bias_id = parameter_id(stage.bias);
  for (Index extent : stage.shape)  // where it is given: Input, Reshape, Opaque
    if (extent < 1) fail(stage, "shape " + to_string(stage.shape) + " has an empty axis");
  if (stage.kind == Kind::Input) inputs_.push_back(static_cast<int>(position));
  infer_shape(stage);
}

void Graph::infer_linear(Stage& stage, const Shape& x) const {
  const Shape& w = parameter(stage.weight_id).shape;
  if (w.size() != 2) fail(stage, "weight has shape " + to_string(w) + ", expected (out, in)");
  if (x.size() != 1)
    fail(stage, "x has shape " + to_string(x) + " per sample, expected one axis of " +
                    std::to_string(w[1]) + " features (flatten it first)");
  if (x[0] != w[1])
    fail(stage, "x has " + std::to_string(x[0]) + " features per sample, expected " +
                    std::to_string(w[1]));
  if (stage.kind == Kind::Nearest) {
    stage.shape = {};
    return;
  }
  if (stage.bias_id >= 0 && parameter(stage.bias_id).shape != Shape{w[0]})
    fail(stage, "bias has shape " + to_string(parameter(stage.bias_id).shape) + ", expected " +
                    to_string({w[0]}));
  if (stage.mask && static_cast<Index>(stage.mask->size()) != w[0] * w[1])
    fail(stage, "mask has " + std::to_string(stage.mask->size()) + " entries, expected shape " +
                    to_string(w));
  stage.shape = {w[0]};
}

void Graph::infer_sparse(Stage& stage, const Shape& x) const {
  if (!stage.edges) fail(stage, "a sparse linear block needs its edges");
  const Connectivity& edges = *stage.edges;
  if (x != Shape{edges.in()})
    fail(stage, "x has shape " + to_string(x) + " per sample, expected " + to_string({edges.in()}));
  const Shape& w = parameter(stage.weight_id).shape;
  if (w != Shape{edges.size()})
    fail(stage, "weight has shape " + to_string(w) + ", expected one value for each of " +
                    std::to_string(edges.size()) + " edges");
  if (stage.bias_id >= 0 && parameter(stage.bias_id).shape != Shape{edges.out()})
    fail(stage, "bias has shape " + to_string(parameter(stage.bias_id).shape) + ", expected " +
                    to_string({edges.out()}));
  stage.shape = {edges.out()};
}

void Graph::infer_shape(Stage& stage) const {
  const auto input = [&](std::size_t i) -> const Shape& { return this->stage(stage.in[i]).shape; };
  const auto one_axis = [&](const Shape& x) {
    if (x.size() != 1)
      fail(stage, std::string(kind_name(stage.kind)) + " takes one axis of features, got shape " +
                      to_string(x) + " per sample");
  };
  switch (stage.kind) {
    case Kind::Input:
      break;
    case Kind::Opaque:
      if (!stage.opaque) fail(stage, "an opaque block needs its function");
      break;
    case Kind::Linear:
    case Kind::Nearest:
      infer_linear(stage, input(0));
      break;
    case Kind::SparseLinear:
      infer_sparse(stage, input(0));
      break;
    case Kind::Pointwise: {
      stage.op_id = find_op(stage.op.c_str());
      if (stage.op_id < 0) fail(stage, "op: '" + stage.op + "' is not in the op table");
      const int wanted = op_info(stage.op_id).n_params;
      if (static_cast<int>(stage.params.size()) != wanted)
        fail(stage, stage.op + " takes " + std::to_string(wanted) + " parameter(s), got " +
                        std::to_string(stage.params.size()));
      stage.shape = input(0);
      break;
    }
    case Kind::Dropout:
      if (!(stage.rate >= 0.0 && stage.rate < 1.0))
        fail(stage, "p is " + std::to_string(stage.rate) + ", expected 0 <= p < 1");
      stage.shape = input(0);
      break;
    case Kind::Softmax:
    case Kind::LogSoftmax:
      one_axis(input(0));
      stage.shape = input(0);
      break;
    case Kind::Add:
    case Kind::Sub:
    case Kind::Mul:
    case Kind::Div:
      if (input(0) != input(1))
        fail(stage, std::string(kind_name(stage.kind)) + " takes two variables of one shape, got " +
                        to_string(input(0)) + " and " + to_string(input(1)));
      stage.shape = input(0);
      break;
    case Kind::Concat: {
      Index total = 0;
      for (std::size_t i = 0; i < stage.in.size(); ++i) {
        one_axis(input(i));
        total += input(i)[0];
      }
      stage.shape = {total};
      break;
    }
    case Kind::Slice:
      one_axis(input(0));
      if (stage.begin < 0 || stage.end > input(0)[0] || stage.begin >= stage.end)
        fail(stage, "slice [" + std::to_string(stage.begin) + ":" + std::to_string(stage.end) +
                        "] of " + std::to_string(input(0)[0]) + " features is empty or outside");
      stage.shape = {stage.end - stage.begin};
      break;
    case Kind::Reshape:
      if (size_of(stage.shape) != size_of(input(0)))
        fail(stage, "cannot view shape " + to_string(input(0)) + " as " + to_string(stage.shape));
      break;
  }
}

}  // namespace gradstack

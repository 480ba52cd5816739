// The block diagram: stages with per-sample variables (the batch axis is implicit) and shared
// variables, the parameters, which live in one flat vector.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "gradstack/config.hpp"
#include "gradstack/connectivity.hpp"

namespace gradstack {

using Shape = std::vector<Index>;  // of one sample; () is a scalar

Index size_of(const Shape& shape);
std::string to_string(const Shape& shape);

enum class Kind {
  Input,
  Linear,
  SparseLinear,
  Pointwise,
  Add,
  Sub,
  Mul,
  Div,
  Concat,
  Slice,
  Reshape,
  Softmax,
  LogSoftmax,
  Dropout,
  Nearest,
  Opaque,
};

const char* kind_name(Kind kind);
Kind find_kind(const std::string& name);  // throws std::invalid_argument

// A block the core cannot see into (a Python module). Rows are (count, d), row-major, of the
// program's dtype. Calls may throw; the exception reaches the caller of the program unchanged.
class OpaqueFunction {
 public:
  virtual ~OpaqueFunction() = default;
  virtual void forward(Index count, Index d_in, Index d_out, const float* x, float* y) const = 0;
  virtual void forward(Index count, Index d_in, Index d_out, const double* x, double* y) const = 0;
  virtual void vjp(Index count, Index d_in, Index d_out, const float* x, const float* dy,
                   float* dx) const = 0;
  virtual void vjp(Index count, Index d_in, Index d_out, const double* x, const double* dy,
                   double* dx) const = 0;
  virtual void jvp(Index count, Index d_in, Index d_out, const float* x, const float* dx,
                   float* dy) const = 0;
  virtual void jvp(Index count, Index d_in, Index d_out, const double* x, const double* dx,
                   double* dy) const = 0;
};

struct Parameter {
  std::string name;
  Shape shape;
  Index offset = 0;  // in the flat vector
  Index size = 0;
};

// One block. Attributes that do not belong to its kind keep their defaults.
struct Stage {
  Kind kind = Kind::Input;
  std::string name;
  std::vector<std::string> inputs;  // names of the producing stages
  Shape shape;  // of the output; given for Input, Reshape, Opaque, else inferred

  std::string weight, bias;  // blocks with parameters: their names ("" = no bias)
  std::shared_ptr<const std::vector<std::uint8_t>> mask;  // Linear: (out, in), 1 = connected
  std::shared_ptr<const Connectivity> edges;              // SparseLinear
  std::string op;                                         // Pointwise: name in the op table
  std::vector<double> params;                             // Pointwise
  double rate = 0;                                        // Dropout: probability of dropping
  Index begin = 0, end = 0;                               // Slice
  std::shared_ptr<const OpaqueFunction> opaque;           // Opaque

  // Resolved by Graph::finish.
  std::vector<int> in;
  int weight_id = -1, bias_id = -1, op_id = -1;
};

class Graph {
 public:
  // Declares the next parameter of the flat vector.
  int parameter(const std::string& name, const Shape& shape);
  // Adds a stage; stages may come in any order, names are unique.
  void add(Stage stage);
  // Resolves names, sorts topologically (stable), infers and checks shapes, and drops the blocks
  // that no output depends on (inputs stay).
  // Throws std::invalid_argument naming the block: cycles, dangling inputs, mismatching shapes.
  void finish(const std::vector<std::string>& outputs);

  bool finished() const { return finished_; }
  const std::vector<Stage>& stages() const { return stages_; }
  const Stage& stage(int id) const { return stages_[static_cast<std::size_t>(id)]; }
  int find(const std::string& name) const;  // stage id; throws std::invalid_argument
  const std::vector<Parameter>& parameters() const { return parameters_; }
  const Parameter& parameter(int id) const { return parameters_[static_cast<std::size_t>(id)]; }
  const std::vector<int>& inputs() const { return inputs_; }    // stage ids, in order of addition
  const std::vector<int>& outputs() const { return outputs_; }  // stage ids
  Index n_params() const { return n_params_; }

 private:
  void sort_topologically();
  void resolve(Stage& stage, std::size_t position);
  void check_masks() const;
  void drop_unused();
  void infer_shape(Stage& stage) const;
  void infer_linear(Stage& stage, const Shape& x) const;
  void infer_sparse(Stage& stage, const Shape& x) const;

  std::vector<Stage> stages_;
  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, int> stage_ids_, parameter_ids_;
  std::vector<int> inputs_, outputs_;
  Index n_params_ = 0;
  bool finished_ = false;
};

}  // namespace gradstack

// A graph compiled for a batch size on a device: what plan.hpp is for the CPU. All memory is
// allocated here; runs only queue work.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "gradstack/device_mlp.hpp"
#include "gradstack/fusion.hpp"
#include "gradstack/graph.hpp"

namespace gradstack {

// Where the parameters lie on a device: in the order of w, each at a multiple of kAlign values, so
// that matrix products may load them a vector at a time. Padding holds zeros.
class DeviceLayout {
 public:
  explicit DeviceLayout(const Graph& graph);
  Index size() const { return size_; }
  Index offset(int parameter) const { return offsets_[static_cast<std::size_t>(parameter)]; }
  // From and to the flat vector of the host.
  void spread(const Graph& graph, const float* flat, float* padded) const;
  void gather(const Graph& graph, const float* padded, float* flat) const;
  // The same from device memory; `flat` is the host's or the device's.
  void download(DeviceQueue& queue, const Graph& graph, const float* padded, float* flat) const;

 private:
  static constexpr Index kAlign = 64;
  std::vector<Index> offsets_;
  Index size_ = 0;
};

// What GRADSTACK_CUDA_EPILOGUES says: 1, or nothing. Throws std::invalid_argument for other values.
bool epilogues_from_environment();

struct DevicePlanOptions {
  Index count = 1;         // samples
  bool gradients = false;  // allocate for backward
  bool want_dx = false;    // gradients of the inputs
  DevicePrecision precision = DevicePrecision::Float32;
  int want_stage = -1;    // a variable whose gradient is wanted; -1: none
  int output = -1;        // the only output that backward starts from (its number); -1: all
  bool tangents = false;  // allocate for push
  // Rows of gradients and tangents that every sample has: so many directions go through the
  // linearisation at once. With more than one there are none of the parameters.
  Index repeats = 1;
  std::vector<char> frozen;  // per parameter: its gradient is not wanted (empty: none)
  // Graphs that can be run as a fused MLP (device_mlp.hpp), unless tangents, repeats or a stage are
  // wanted; only input and output have values then.
  DeviceHalf fused = DeviceHalf::None;
  // Functions and their derivatives as part of products, where the queue has them; derivatives not
  // with repeats.
  bool epilogues = epilogues_from_environment();
};

// What one run works on; w and dw have the device's layout.
struct DeviceRun {
  const float* w = nullptr;
  DeviceIn copy{};                   // w as the plan stores values; not read where that is float32
  float* dw = nullptr;               // zero, or what a run before has left there; null: not wanted
  bool accumulate = false;           // backward adds to dw
  const float* tangent_w = nullptr;  // perturbation of w for push; null: zero
  bool train = false;                // dropout active
  std::uint64_t seed = 0;
  const DeviceStep* at = nullptr;
  Index first_sample = 0;  // position of the plan's first sample in the batch
};

// Throws std::invalid_argument for blocks that no device runs, those written in Python, and for
// those that have no meaning in the precision.
void check_device_graph(const Graph& graph, DevicePrecision precision = DevicePrecision::Float32);

class DevicePlan {
 public:
  DevicePlan(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
             DevicePlanOptions options);
  DevicePlan(const DevicePlan&) = delete;
  DevicePlan& operator=(const DevicePlan&) = delete;

  void forward(const DeviceRun& run);
  // From the gradients of the outputs to those of everything wanted.
  void backward(const DeviceRun& run);
  // After forward: perturbations from the inputs that are `moved` (per input) to the outputs.
  void push(const DeviceRun& run, const std::vector<char>& moved);

  // After backward without dw: the gradient of every row by itself, (count * repeats, P) with the
  // parameters where the host has them; and, without forming it, its squared norm. `scratch` has
  // room for one value per row.
  void per_sample_gradients(float* rows);
  void per_sample_squared_norms(float* norms, float* scratch);

  const DevicePlanOptions& options() const { return options_; }
  Index count() const { return options_.count; }
  Index rows() const { return options_.count * options_.repeats; }  // of gradients and tangents
  const Graph& graph() const { return *graph_; }
  const DeviceLayout& layout() const { return layout_; }
  // The output of a stage, (count, d), as float32; a view (reshape) is the variable that it views.
  // Where values are stored in half only inputs and outputs have one.
  float* value(int stage) const {
    const Variable& v = variable(stage);
    return reduced() ? v.outer_value.data() : v.value.values().as<float>();
  }
  float* grad(int stage) const {
    const int base = fusion_.base[index(stage)];
    return reduced() ? variables_[index(base)].outer_grad.data() : grad_of(base).as<float>();
  }
  // To be called when value(input) of the inputs was written; or write to `input` itself.
  void take_inputs();
  DeviceOut input(int stage) const { return stored(stage); }
  float* tangent(int stage) const {
    const Variable& v = variables_[index(fusion_.base[index(stage)])];
    return (v.grad_of < 0 ? v : variables_[index(v.grad_of)]).tangent.data();
  }
  // After backward: whether the output depends on the variable; after push: whether it moved.
  bool reached(int stage) const { return written_[index(fusion_.base[index(stage)])] != 0; }
  bool moves(int stage) const { return moves_[index(fusion_.base[index(stage)])] != 0; }
  Index width(int stage) const { return variables_[index(stage)].d; }
  // Vector quantisation (see plan.hpp): the prototypes chosen and their gradient, or null.
  float* chosen() const { return chosen_.data(); }
  float* chosen_grad() const { return chosen_grad_.data(); }

 private:
  struct Variable {
    Index d = 0;
    DeviceBuffer value, grad;
    DeviceArray<float> tangent;
    DeviceArray<float> outer_value, outer_grad;  // of inputs and outputs stored in half
    int value_of = -1;                           // another variable whose memory this one shares
    int grad_of = -1;                            // the same for gradient and tangent
  };
  static std::size_t index(int id) { return static_cast<std::size_t>(id); }
  const Variable& variable(int stage) const {
    const Variable& v = variables_[index(fusion_.base[index(stage)])];
    return v.value_of < 0 ? v : variables_[index(v.value_of)];
  }
  bool reduced() const { return storage_ != DeviceType::Float32; }
  // What kernels read and write.
  DeviceOut stored(int stage) const {
    const Variable& v = variable(stage);
    const DeviceOut values = v.value.values();
    return values ? values : DeviceOut(v.outer_value.data());
  }
  DeviceOut grad_of(int base) const {
    const Variable& v = variables_[index(base)];
    return (v.grad_of < 0 ? v : variables_[index(v.grad_of)]).grad.values();
  }
  bool wants(int parameter) const;
  bool is_output(int base) const;
  void find_wanted();
  void allocate();
  void allocate_repeats();
  void allocate_mlp();
  DeviceMlp mlp_of(const DeviceRun& run) const;
  void upload_structure();
  void forward_stage(int id, const DeviceRun& run);
  void backward_stage(int id, const DeviceRun& run);
  void backward_linear(int id, const DeviceRun& run);
  void backward_sparse(int id, const DeviceRun& run);
  void backward_binary(int id);
  void backward_columns(int id);
  void through_fused(int id, DeviceOut d);
  void find_slopes();
  DeviceGemm dx_product(int id, const DeviceRun& run) const;
  DeviceSlope slope(int id) const;
  bool leave_slope(int id, const DeviceRun& run);
  bool multiply_with_slope(int id, DeviceGemm dx, const DeviceRun& run);
  void dropout(int id, const DeviceRun& run, Index n, DeviceIn from, DeviceOut to, bool accumulate);
  bool push_stage(int id, const DeviceRun& run);
  void push_linear(int id, const DeviceRun& run);
  void push_sparse(int id, const DeviceRun& run);
  void push_columns(int id);
  // The value of a stage with a row for every row of gradients, in one of two places.
  DeviceIn repeated(int stage, std::size_t place);
  DeviceOuter outer(int id) const;
  bool learns(int id) const;
  void add_products(int u, int v, float factor, float* sums, float* scratch);
  // The gradient of input k of a stage, and whether another block has written it already.
  DeviceOut input_grad(int id, std::size_t k, bool* accumulate);
  float* parameter_grad(int parameter, const DeviceRun& run, bool* accumulate);
  DeviceIn parameter(int id, DeviceType type, const DeviceRun& run) const;
  DeviceIn weight(int id, const DeviceRun& run) const;
  DeviceGemm product() const;
  void zero(DeviceOut to, Index n);

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  DevicePlanOptions options_;
  DeviceType storage_;
  DeviceLayout layout_;
  Fusion fusion_;
  std::vector<char> wants_grad_;
  std::vector<Variable> variables_;
  DeviceArray<float> chosen_, chosen_grad_;
  std::optional<MlpChain> mlp_;  // the graph, where it runs fused
  DeviceArray<std::uint16_t> kept_;
  DeviceArray<float> slots_;

  // Masks and masked weights per Linear, edges per SparseLinear.
  struct Edges {
    DeviceArray<Index> out_begin, in_begin;
    DeviceArray<std::int32_t> out_unit, out_edge, in_unit, in_edge, ends;
  };
  std::vector<DeviceArray<float>> masks_, masked_tangent_;
  std::vector<DeviceBuffer> stored_masks_, masked_;
  std::vector<std::unique_ptr<Edges>> edges_;
  DeviceArray<float> repeated_[2];

  // Of a Linear with a pointwise block fused into it, whose one consumer is a Linear: the gradient
  // that comes from there may be multiplied with h' by the product that makes it.
  struct Slope {
    int above = -1;  // the consumer
    DeviceArray<std::uint8_t> bits;
    bool left = false;    // by forward: what the product goes by
    bool passed = false;  // by backward: the gradient is dC/ds
    bool summed = false;  // by backward: so is the one of the bias
  };
  std::vector<Slope> slopes_;

  // What backward has written already, what push has moved.
  std::vector<char> written_, parameter_written_, moves_;
};

}  // namespace gradstack

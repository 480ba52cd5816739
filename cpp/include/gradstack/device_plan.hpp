// A graph compiled for a batch size on a device: what plan.hpp is for the CPU. All memory is
// allocated here; runs only queue work. float32 only.
#pragma once

#include <memory>
#include <vector>

#include "gradstack/device.hpp"
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

struct DevicePlanOptions {
  Index count = 1;           // samples
  bool gradients = false;    // allocate for backward
  bool want_dx = false;      // gradients of the inputs
  std::vector<char> frozen;  // per parameter: its gradient is not wanted (empty: none)
};

// What one run works on; w and dw have the device's layout.
struct DeviceRun {
  const float* w = nullptr;
  float* dw = nullptr;  // zeroed by backward; null: not wanted
  bool train = false;   // dropout active
  std::uint64_t seed = 0;
  const DeviceStep* at = nullptr;
  Index first_sample = 0;  // position of the plan's first sample in the batch
};

// Throws std::invalid_argument for blocks that no device runs: those written in Python.
void check_device_graph(const Graph& graph);

class DevicePlan {
 public:
  DevicePlan(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
             DevicePlanOptions options);
  DevicePlan(const DevicePlan&) = delete;
  DevicePlan& operator=(const DevicePlan&) = delete;

  void forward(const DeviceRun& run);
  // From the gradients of the outputs to those of everything wanted.
  void backward(const DeviceRun& run);

  Index count() const { return options_.count; }
  const Graph& graph() const { return *graph_; }
  const DeviceLayout& layout() const { return layout_; }
  // The output of a stage, (count, d); a view (reshape) is the variable that it views.
  float* value(int stage) const { return variable(stage).value.data(); }
  float* grad(int stage) const { return grad_of(base_[index(stage)]); }
  Index width(int stage) const { return variables_[index(stage)].d; }
  // Vector quantisation (see plan.hpp): the prototypes chosen and their gradient, or null.
  float* chosen() const { return chosen_.data(); }
  float* chosen_grad() const { return chosen_grad_.data(); }

 private:
  struct Variable {
    Index d = 0;
    DeviceArray<float> value, grad;
    int value_of = -1;  // another variable whose memory this one shares
    int grad_of = -1;
  };
  static std::size_t index(int id) { return static_cast<std::size_t>(id); }
  const Variable& variable(int stage) const {
    const Variable& v = variables_[index(base_[index(stage)])];
    return v.value_of < 0 ? v : variables_[index(v.value_of)];
  }
  float* grad_of(int base) const {
    const Variable& v = variables_[index(base)];
    return (v.grad_of < 0 ? v : variables_[index(v.grad_of)]).grad.data();
  }
  bool wants(int parameter) const;
  void find_uses();
  void find_wanted();
  void allocate();
  void upload_structure();
  void forward_stage(int id, const DeviceRun& run);
  void backward_stage(int id, const DeviceRun& run);
  void backward_linear(int id, const DeviceRun& run);
  void backward_sparse(int id, const DeviceRun& run);
  void backward_binary(int id);
  void backward_columns(int id);
  void dropout(int id, const DeviceRun& run, const float* from, float* to, bool accumulate);
  // The gradient of input k of a stage, and whether another block has written it already.
  float* input_grad(int id, std::size_t k, bool* accumulate);
  float* parameter_grad(int parameter, const DeviceRun& run, bool* accumulate);
  const float* weight(int id, const DeviceRun& run) const;

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  DevicePlanOptions options_;
  DeviceLayout layout_;
  std::vector<int> base_;   // per stage: itself, or the stage it is a view of
  std::vector<int> uses_;   // per base: consumers, an output counting as one
  std::vector<int> fused_;  // per Linear: the pointwise stage fused into it, or -1
  std::vector<char> fused_away_;
  std::vector<char> wants_grad_;
  std::vector<Variable> variables_;
  DeviceArray<float> chosen_, chosen_grad_;

  // Masks and masked weights per Linear, edges per SparseLinear.
  struct Edges {
    DeviceArray<Index> out_begin, in_begin;
    DeviceArray<std::int32_t> out_unit, out_edge, in_unit, in_edge, ends;
  };
  std::vector<DeviceArray<float>> masks_, masked_;
  std::vector<std::unique_ptr<Edges>> edges_;

  // While backward runs: what has been written already.
  std::vector<char> written_, parameter_written_;
};

}  // namespace gradstack

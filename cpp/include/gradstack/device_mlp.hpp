// The fully fused MLP of a device: a chain of Linear blocks, each with at most one pointwise
// function behind it, whose layers run in one kernel on tensor cores, tile of samples by tile of
// samples. Products have halves (bf16 or fp16) as factors and are summed in float32; parameters,
// input, output and gradients are float32 in memory.
//
// Shapes decide everything here: which chains run, how work is divided, how large buffers are. The
// device does not, so that its results have the same bits on every one.
#pragma once

#include <algorithm>
#include <optional>

#include "gradstack/device.hpp"
#include "gradstack/graph.hpp"
#include "gradstack/ops.hpp"

namespace gradstack {

// Factors of matrix products; None: float32.
enum class DeviceHalf { None, Bf16, Fp16 };

inline constexpr int kMlpLayers = 16;    // at most
inline constexpr Index kMlpWidth = 128;  // widest layer; the input may be wider
inline constexpr int kMlpTile = 128;     // samples
// Blocks of threads at most: two on each of an H100's 132 processors.
inline constexpr Index kMlpBlocks = 264;
inline constexpr Index kMlpSlots = Index{1} << 26;  // values, unless one slot has more

struct DeviceMlpLayer {
  Index in = 0, out = 0;
  DeviceOp op;
  const float *w = nullptr, *bias = nullptr;  // (out, in) and (out); no bias: null
  float *dw = nullptr, *db = nullptr;         // null: not wanted
  // Halves for backward, (count, mlp_pad(out)): z, or s where h' is not had from z. The last layer
  // has some only in the latter case (mlp_keeps). Null: nothing is kept.
  std::uint16_t* kept = nullptr;
};

// Layers have the widths 1..kMlpWidth; layer l + 1 has layer l's outputs as its inputs.
struct DeviceMlp {
  DeviceHalf half = DeviceHalf::Bf16;
  Index count = 0;
  int layers = 0;
  DeviceMlpLayer layer[kMlpLayers];
  const float* x = nullptr;
  float* ybar = nullptr;
  // Backward alone.
  const float* dybar = nullptr;
  bool accumulate = false;  // dw and db are added to, not overwritten
  float* dx = nullptr;      // overwritten; null: not wanted
  float* slots = nullptr;   // mlp_slots(m) values: every block adds to a slot of its own
};

// Features as tensor cores want them.
GS_HD constexpr Index mlp_pad(Index width) { return (width + 15) / 16 * 16; }
// Whether backward reads s, not z, of a layer with this op.
inline bool mlp_keeps_input(const DeviceOp& op) {
  return op.id >= 0 && visit_op(op.id, op.p, [](auto h) { return !decltype(h)::has_d1_from_z; });
}
// Whether layer l keeps something: the last layer's z is ybar itself.
inline bool mlp_keeps(const DeviceMlp& m, int l) {
  return l + 1 < m.layers || mlp_keeps_input(m.layer[l].op);
}
// Of one block: per layer units of 16 outputs by 32 inputs, then the bias.
GS_HD constexpr Index mlp_slot(const DeviceMlpLayer& layer) {
  return mlp_pad(layer.out) / 16 * ((mlp_pad(layer.in) + 31) / 32) * 512 + mlp_pad(layer.out);
}
inline Index mlp_slot(const DeviceMlp& m) {
  Index size = 0;
  for (int l = 0; l < m.layers; ++l) size += mlp_slot(m.layer[l]);
  return size;
}
// Blocks of the two kernels.
inline Index mlp_forward_blocks(const DeviceMlp& m) {
  return std::min((m.count + kMlpTile - 1) / kMlpTile, kMlpBlocks);
}
inline Index mlp_backward_blocks(const DeviceMlp& m) {
  return std::min(mlp_forward_blocks(m), std::max(Index{1}, kMlpSlots / mlp_slot(m)));
}
inline Index mlp_slots(const DeviceMlp& m) { return mlp_slot(m) * mlp_backward_blocks(m); }

// The chain that a graph is, without pointers; `weight` and `bias` are parameters of the graph, -1:
// no bias.
struct MlpChain {
  DeviceMlp mlp;
  int weight[kMlpLayers] = {}, bias[kMlpLayers] = {};
};
// Nothing unless the graph is one input, Linear blocks without masks whose parameters are their
// own, hidden layers 16 to 128 wide, at most 128 outputs, and nothing else but views.
std::optional<MlpChain> mlp_chain(const Graph& graph);
inline bool mlp_eligible(const Graph& graph) { return mlp_chain(graph).has_value(); }

// What GRADSTACK_CUDA_FUSED says: bf16, fp16, or nothing. Throws std::invalid_argument for other
// values.
DeviceHalf fused_from_environment();

}  // namespace gradstack

// Derivatives of fused functions as part of the products that pull gradients back. The queue is
// asked for every product; where it says no, the function's derivative is a call of its own, as
// ever.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "gradstack/device_plan.hpp"
#include "gradstack/ops.hpp"
#include "stage_calls.hpp"

namespace gradstack {

bool epilogues_from_environment() {
  const char* value = std::getenv("GRADSTACK_CUDA_EPILOGUES");
  const std::string said = value ? value : "";
  if (!said.empty() && said != "0" && said != "1")
    throw std::invalid_argument("GRADSTACK_CUDA_EPILOGUES is '" + said + "', expected 0 or 1");
  return said == "1";
}

void DevicePlan::find_slopes() {
  slopes_.resize(graph_->stages().size());
  if (mlp_ || !options_.epilogues || !options_.gradients || options_.repeats > 1) return;
  for (int id = 0; id < static_cast<int>(graph_->stages().size()); ++id) {
    if (graph_->stage(id).kind != Kind::Linear) continue;
    const int below = fusion_.producer(*graph_, id);
    if (below < 0 || !grad_of(below)) continue;
    const Epilogue epilogue =
        op_info(graph_->stage(fusion_.pointwise[index(below)]).op_id).epilogue;
    if (epilogue == Epilogue::None) continue;
    Slope& slope = slopes_[index(below)];
    slope.above = id;
    if (epilogue == Epilogue::ReLU)
      slope.bits = DeviceArray<std::uint8_t>(queue_, options_.count * bytes_of_bits(width(below)),
                                             "signs of activations");
  }
}

// Of the function fused into a Linear, from what forward has left of it.
DeviceSlope DevicePlan::slope(int id) const {
  DeviceSlope slope;
  slope.op = op_of(graph_->stage(fusion_.pointwise[index(id)]));
  slope.bits = slopes_[index(id)].bits.data();
  if (!slope.bits) slope.s = stored(id);
  return slope;
}

// Whether backward will multiply with h' in the product, and forward has to leave bits for it.
bool DevicePlan::leave_slope(int id, const DeviceRun& run) {
  Slope& own = slopes_[index(id)];
  own.left = false;
  if (own.above < 0) return false;
  DeviceGemm dx = dx_product(own.above, run);
  dx.slope = slope(id);
  own.left = queue_->fuses(dx);
  return own.left && own.bits.data();
}

// dx times h' of the function that makes x, in one product; false: nothing was done.
bool DevicePlan::multiply_with_slope(int id, DeviceGemm dx, const DeviceRun& run) {
  const int below = fusion_.producer(*graph_, id);
  if (below < 0 || !slopes_[index(below)].left || dx.accumulate) return false;
  Slope& slope_below = slopes_[index(below)];
  dx.slope = slope(below);
  if (!queue_->fuses(dx)) return false;
  const int bias = graph_->stage(below).bias_id;
  if (run.dw && wants(bias) && !parameter_written_[index(bias)]) {
    dx.slope.sums = run.dw + layout_.offset(bias);
    slope_below.summed = queue_->fuses(dx);
    if (slope_below.summed)
      parameter_written_[index(bias)] = 1;
    else
      dx.slope.sums = nullptr;
  }
  queue_->gemm(dx);
  slope_below.passed = true;
  return true;
}

}  // namespace gradstack

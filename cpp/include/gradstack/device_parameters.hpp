// The parameters of a call on a device, from and to the flat vectors of the host.
#pragma once

#include <memory>
#include <vector>

#include "gradstack/device_plan.hpp"
#include "gradstack/program.hpp"

namespace gradstack {

// The queue's mutex is held by whoever calls a member; memory is allocated on first use.
class DeviceParameters {
 public:
  DeviceParameters(const std::shared_ptr<const Graph>& graph, std::shared_ptr<DeviceQueue> queue,
                   DevicePrecision precision = DevicePrecision::Float32);

  // Copies w; the run works on the copy.
  DeviceRun open(const float* w, const CallOptions& options, double loss_scale = 1);
  DeviceStep* at() const { return at_.data(); }
  // A perturbation of w for push.
  const float* direction(const float* dw);
  // Where backward writes, and what it wrote; dw may be device memory.
  float* gradient();
  void read_gradient(float* dw);

 private:
  void upload(const float* flat, DeviceArray<float>& to, const char* what);

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  DevicePrecision precision_;
  DeviceLayout layout_;
  std::vector<float> padded_;
  DeviceBuffer copy_;  // of w, as the precision stores it
  DeviceArray<float> w_, dw_, direction_;
  DeviceArray<DeviceStep> at_;
};

// Memory for n parameters as a precision stores them; none where that is float32.
DeviceBuffer reduced_copy(const std::shared_ptr<DeviceQueue>& queue, Index n,
                          DevicePrecision precision);

}  // namespace gradstack

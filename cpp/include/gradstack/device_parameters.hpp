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
  DeviceParameters(const std::shared_ptr<const Graph>& graph, std::shared_ptr<DeviceQueue> queue);

  // Copies w; the run works on the copy.
  DeviceRun open(const float* w, const CallOptions& options);
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
  DeviceLayout layout_;
  std::vector<float> padded_;
  DeviceArray<float> w_, dw_, direction_;
  DeviceArray<DeviceStep> at_;
};

}  // namespace gradstack

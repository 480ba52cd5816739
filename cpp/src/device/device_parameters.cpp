#include "gradstack/device_parameters.hpp"

namespace gradstack {

DeviceParameters::DeviceParameters(const std::shared_ptr<const Graph>& graph,
                                   std::shared_ptr<DeviceQueue> queue)
    : graph_(graph),
      queue_(std::move(queue)),
      layout_(*graph_),
      padded_(static_cast<std::size_t>(layout_.size())) {}

void DeviceParameters::upload(const float* flat, DeviceArray<float>& to, const char* what) {
  if (!to.data()) to = DeviceArray<float>(queue_, layout_.size(), what);
  layout_.spread(*graph_, flat, padded_.data());
  to.from_host(padded_.data(), layout_.size());
}

DeviceRun DeviceParameters::open(const float* w, const CallOptions& options) {
  upload(w, w_, "parameters");
  if (!at_.data()) at_ = DeviceArray<DeviceStep>(queue_, 1, "state of a run");
  DeviceStep at;
  at.step = options.step;
  at_.from_host(&at, 1);
  DeviceRun run;
  run.w = w_.data();
  run.train = options.train;
  run.seed = options.seed;
  run.at = at_.data();
  return run;
}

const float* DeviceParameters::direction(const float* dw) {
  upload(dw, direction_, "a direction of the parameters");
  return direction_.data();
}

float* DeviceParameters::gradient() {
  if (!dw_.data()) dw_ = DeviceArray<float>(queue_, layout_.size(), "gradient");
  return dw_.data();
}

void DeviceParameters::read_gradient(float* dw) {
  layout_.download(*queue_, *graph_, dw_.data(), dw);
}

}  // namespace gradstack

#include "gradstack/device_parameters.hpp"

namespace gradstack {

DeviceBuffer reduced_copy(const std::shared_ptr<DeviceQueue>& queue, Index n,
                          DevicePrecision precision) {
  const DeviceType type = storage_of(precision);
  return type == DeviceType::Float32 ? DeviceBuffer() : DeviceBuffer(queue, n, type, "parameters");
}

DeviceParameters::DeviceParameters(const std::shared_ptr<const Graph>& graph,
                                   std::shared_ptr<DeviceQueue> queue, DevicePrecision precision)
    : graph_(graph),
      queue_(std::move(queue)),
      precision_(precision),
      layout_(*graph_),
      padded_(static_cast<std::size_t>(layout_.size())) {}

void DeviceParameters::upload(const float* flat, DeviceArray<float>& to, const char* what) {
  if (!to.data()) to = DeviceArray<float>(queue_, layout_.size(), what);
  layout_.spread(*graph_, flat, padded_.data());
  to.from_host(padded_.data(), layout_.size());
}

DeviceRun DeviceParameters::open(const float* w, const CallOptions& options, double loss_scale) {
  if (!w_.data()) copy_ = reduced_copy(queue_, layout_.size(), precision_);
  upload(w, w_, "parameters");
  if (copy_.values()) queue_->convert(layout_.size(), w_.data(), copy_.values());
  if (!at_.data()) at_ = DeviceArray<DeviceStep>(queue_, 1, "state of a run");
  DeviceStep at;
  at.step = options.step;
  at.loss.scale = loss_scale;
  at_.from_host(&at, 1);
  DeviceRun run;
  run.w = w_.data();
  run.copy = copy_.values();
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

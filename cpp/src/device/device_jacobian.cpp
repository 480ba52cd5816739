#include <algorithm>

#include "gradstack/device_calculus.hpp"
#include "parts.hpp"
#include "recent.hpp"
#include "stage_calls.hpp"

namespace gradstack {

DeviceJacobian::DeviceJacobian(std::shared_ptr<const Graph> graph,
                               std::shared_ptr<DeviceQueue> queue, int wrt, std::size_t output)
    : graph_(std::move(graph)),
      queue_(std::move(queue)),
      wrt_(wrt),
      number_(static_cast<int>(output)),
      output_(graph_->outputs()[output]),
      in_(wrt < 0 ? graph_->n_params() : size_of(graph_->stage(wrt).shape)),
      out_(size_of(graph_->stage(output_).shape)),
      // A direction costs about as much forward as backward: take the fewer.
      forward_mode_(wrt >= 0 && graph_->stage(wrt).kind == Kind::Input && in_ < out_),
      parameters_(graph_, queue_) {
  check_device_graph(*graph_);
}

// Whole samples as long as one fits, else some directions of one sample.
DeviceJacobian::Part DeviceJacobian::part(Index count) const {
  const Index directions = forward_mode_ ? in_ : out_;
  const Index made = wrt_ < 0 ? in_ : forward_mode_ ? out_ : 0;  // of the result, beside gradients
  const Index fit = rows_that_fit(*queue_, 2 * features(*graph_) + made);
  if (fit < directions) return {1, fit};
  return {std::min(count, fit / directions), directions};
}

DevicePlan& DeviceJacobian::plan_for(Part part) {
  return recent(
      plans_,
      [&](const DevicePlan& plan) {
        return plan.count() == part.samples && plan.options().repeats == part.directions;
      },
      [&] {
        DevicePlanOptions options;
        options.count = part.samples;
        options.repeats = part.directions;
        options.gradients = !forward_mode_;
        options.tangents = forward_mode_;
        options.want_stage = wrt_;
        options.output = number_;
        options.frozen.assign(graph_->parameters().size(), wrt_ >= 0);
        return std::make_unique<DevicePlan>(graph_, queue_, std::move(options));
      });
}

void DeviceJacobian::evaluate(const float* w, const std::vector<RowSource>& x, Index count,
                              float* jacobian, int) {
  if (count == 0 || in_ == 0) return;
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const DeviceRun run = parameters_.open(w, {});
  Batch batch;
  batch.x = x;
  batch.count = count;
  const Part most = part(count);
  for (Index first = 0; first < count; first += most.samples) {
    const Part now{std::min(most.samples, count - first), most.directions};
    DevicePlan& plan = plan_for(now);
    for (std::size_t i = 0; i < x.size(); ++i)
      upload_rows(*queue_, batch, x[i], first, now.samples, plan.value(graph_->inputs()[i]));
    plan.forward(run);
    float* to = jacobian + first * out_ * in_;
    if (forward_mode_)
      forward(plan, run, to);
    else
      reverse(plan, run, to);
  }
}

// Unit vectors from e_first on, for as many directions; none beyond the last.
void DeviceJacobian::seed(Index first, Index directions) {
  const Index d = forward_mode_ ? in_ : out_;
  std::vector<float> units(static_cast<std::size_t>(directions * d), 0.0F);
  for (Index i = 0; i < std::min(directions, d - first); ++i)
    units[static_cast<std::size_t>(i * d + first + i)] = 1;
  if (seeds_.size() < directions * d)
    seeds_ = DeviceArray<float>(queue_, directions * d, "directions");
  seeds_.from_host(units.data(), directions * d);
}

void DeviceJacobian::reverse(DevicePlan& plan, DeviceRun run, float* to) {
  const Index n = plan.count(), directions = plan.options().repeats, size = directions * out_;
  if (wrt_ < 0 && result_.size() < n * directions * in_) {
    result_ = {};  // first, so that its memory can be used again
    result_ = DeviceArray<float>(queue_, n * directions * in_, "the Jacobian");
  }
  for (Index first = 0; first < out_; first += directions) {
    seed(first, directions);
    queue_->columns({n, size, seeds_.data(), 0, plan.grad(output_), size});
    plan.backward(run);
    const Index made = n * std::min(directions, out_ - first) * in_;
    float* part = to + first * in_;
    if (wrt_ < 0) {
      plan.per_sample_gradients(result_.data());
      queue_->to_host(part, result_.data(), bytes_of(made));
    } else if (plan.reached(wrt_)) {
      queue_->to_host(part, plan.grad(wrt_), bytes_of(made));
    } else {
      std::fill_n(part, made, 0.0F);
    }
  }
}

void DeviceJacobian::forward(DevicePlan& plan, const DeviceRun& run, float* to) {
  const Index n = plan.count(), directions = plan.options().repeats, size = directions * in_;
  if (result_.size() < n * out_ * in_) {
    result_ = {};
    result_ = DeviceArray<float>(queue_, n * out_ * in_, "the Jacobian");
  }
  std::vector<char> moved;
  for (int input : graph_->inputs()) moved.push_back(input == wrt_);
  for (Index first = 0; first < in_; first += directions) {
    seed(first, directions);
    queue_->columns({n, size, seeds_.data(), 0, plan.tangent(wrt_), size});
    plan.push(run, moved);
    if (!plan.moves(output_)) {
      std::fill_n(to, n * out_ * in_, 0.0F);
      return;
    }
    queue_->transpose({.count = n,
                       .rows = std::min(directions, in_ - first),
                       .cols = out_,
                       .from = plan.tangent(output_),
                       .to = result_.data() + first,
                       .ld_to = in_});
  }
  queue_->to_host(to, result_.data(), bytes_of(n * out_ * in_));
}

}  // namespace gradstack

#include "gradstack/device_trainer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <string>

#include "gradstack/random.hpp"
#include "gradstack/registry.hpp"

namespace gradstack {
namespace {

constexpr Index kPollSteps = 32;
constexpr std::size_t kKeptSteps = 4;
constexpr double kMargin = 1.0 / 16;     // of the device's memory, left free
constexpr double kChunkBytes = 1 << 26;  // of a data set that does not fit

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

std::string what_failed(double loss) {
  return std::isfinite(loss) ? "the gradient overflows fp16 at every loss scale"
                             : "the loss is " + std::to_string(loss);
}

}  // namespace

DeviceTrainer::DeviceTrainer(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                             std::shared_ptr<const Cost<float>> cost,
                             std::shared_ptr<Optimizer<float>> optimizer, std::vector<char> frozen,
                             DevicePrecision precision)
    : graph_(std::move(graph)),
      queue_(std::move(queue)),
      cost_(std::move(cost)),
      optimizer_(std::move(optimizer)),
      frozen_(std::move(frozen)),
      precision_(precision),
      layout_(*graph_),
      padded_(at(layout_.size())) {
  check_device_graph(*graph_, precision_);
  if (scales_losses()) {
    loss_scale_.adapts = 1;
    set_loss_scale(kFirstLossScale, 0);
  }
  frozen_.resize(graph_->parameters().size(), 0);
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const Index n = layout_.size();
  w_ = DeviceArray<float>(queue_, n, "parameters");
  dw_ = DeviceArray<float>(queue_, n, "gradient");
  copy_ = reduced_copy(queue_, n, precision_);
  for (int i = 0; i < optimizer_->n_state(); ++i)
    if (rule_uses_state(optimizer_->rule(), optimizer_->hyper().data(), i))
      state_.emplace_back(queue_, n, "state of the optimiser");
    else
      state_.emplace_back();
  what_ = DeviceArray<std::uint8_t>(queue_, n, "parameters");
  constants_ = DeviceArray<DeviceConstants>(queue_, kMostSteps, "state of a run");
  report_ = DeviceArray<Report>(queue_, 1, "state of a run");
  at_ = &report_.data()->at;
  results_ = report_.data()->results;

  // What moves is the same on every device: the host's updater says it.
  std::vector<std::uint8_t> flat(at(graph_->n_params())), what(at(n));
  Updater<float>(*graph_, active_kernels<float>(), *optimizer_, frozen_).entries(flat.data());
  for (std::size_t i = 0; i < graph_->parameters().size(); ++i) {
    const Parameter& p = graph_->parameters()[i];
    std::copy_n(flat.data() + p.offset, p.size, what.data() + layout_.offset(static_cast<int>(i)));
  }
  what_.from_host(what.data(), n);
}

void DeviceTrainer::upload(const float* w) {
  layout_.spread(*graph_, w, padded_.data());
  w_.from_host(padded_.data(), layout_.size());
  if (copy_.values()) queue_->convert(layout_.size(), w_.data(), copy_.values());
  for (std::size_t i = 0; i < state_.size(); ++i) {
    if (!state_[i].data()) continue;
    layout_.spread(*graph_, optimizer_->state(static_cast<int>(i)), padded_.data());
    state_[i].from_host(padded_.data(), layout_.size());
  }
}

void DeviceTrainer::download(float* w) {
  w_.to_host(padded_.data(), layout_.size());
  layout_.gather(*graph_, padded_.data(), w);
  for (std::size_t i = 0; i < state_.size(); ++i) {
    if (!state_[i].data()) continue;
    state_[i].to_host(padded_.data(), layout_.size());
    layout_.gather(*graph_, padded_.data(), optimizer_->state(static_cast<int>(i)));
  }
}

// The optimiser goes through all n steps on the host; `rewind` takes back those not made.
void DeviceTrainer::upload_constants(const double* lrs, Index n) {
  std::vector<DeviceConstants> constants(at(n));
  scalars_.clear();
  steps_before_ = optimizer_->steps;
  for (Index i = 0; i < n; ++i) {
    scalars_.push_back(optimizer_->scalars());
    open_step(*optimizer_, lrs[i], constants[at(i)].with_decay, constants[at(i)].without_decay);
  }
  scalars_.push_back(optimizer_->scalars());
  constants_.from_host(constants.data(), n);
}

void DeviceTrainer::rewind(Index steps) {
  optimizer_->scalars() = scalars_[at(steps)];
  optimizer_->steps = steps_before_ + steps;
}

void DeviceTrainer::set_loss_scale(double scale, std::int64_t good_steps) {
  if (!(scale >= kLeastLossScale && scale <= kMostLossScale) || good_steps < 0 ||
      good_steps >= kLossScaleSteps)
    throw std::invalid_argument("loss scale: out of range");
  loss_scale_.scale = scale;
  loss_scale_.inverse = static_cast<float>(1 / scale);
  loss_scale_.good = good_steps;
}

// Where the device is after what was queued, and the results of up to that many steps; waits for
// it.
DeviceStep DeviceTrainer::look(Index steps) {
  queue_->to_host(seen_.get(), report_.data(),
                  offsetof(Report, results) + at(2 * steps) * sizeof(double));
  loss_scale_ = seen_->at.loss;
  loss_scale_.overflow = 0;
  return seen_->at;
}

DeviceTrainer::Step& DeviceTrainer::step_for(Index count, bool resident, TargetSpec target,
                                             bool weighted, bool train, std::uint64_t seed,
                                             bool allow_non_finite) {
  const auto found = std::find_if(steps_.begin(), steps_.end(), [&](const Step& s) {
    return s.count == count && s.resident == resident && s.run.train == train &&
           s.run.seed == seed && s.allow_non_finite == allow_non_finite &&
           s.objective->fits(cost_.get(), target, weighted);
  });
  if (found != steps_.end()) {
    steps_.splice(steps_.begin(), steps_, found);
    return steps_.front();
  }
  if (steps_.size() == kKeptSteps) steps_.pop_back();
  Step step;
  step.count = count;
  step.resident = resident;
  step.run.w = w_.data();
  step.run.copy = copy_.values();
  step.run.dw = dw_.data();
  step.run.train = train;
  step.run.seed = seed;
  step.run.at = at_;
  step.allow_non_finite = allow_non_finite;
  step.objective =
      std::make_unique<DeviceObjective>(graph_, queue_, cost_, target, weighted,
                                        DevicePlanOptions{.count = count,
                                                          .gradients = true,
                                                          .precision = precision_,
                                                          .frozen = frozen_,
                                                          .fused = fused_from_environment()});
  steps_.push_front(std::move(step));
  return steps_.front();
}

void DeviceTrainer::queue_step(Step& step) {
  if (step.resident)
    step.objective->gather(stream_ ? stream_->ring() : *data_, order_ ? order_->data() : nullptr,
                           at_);
  step.objective->evaluate(step.run, at_, results_, true, step.allow_non_finite);
  step.objective->backward(step.run);
  DeviceUpdate u;
  u.rule = optimizer_->rule();
  u.n_state = optimizer_->n_state();
  u.n = layout_.size();
  u.w = w_.data();
  u.g = dw_.data();
  for (std::size_t i = 0; i < state_.size(); ++i) u.state[i] = state_[i].data();
  u.what = what_.data();
  u.constants = constants_.data();
  u.at = at_;
  u.clip_value = static_cast<float>(optimizer_->options().clip_value);
  u.clip_norm = optimizer_->options().clip_norm;
  u.copy = copy_.values();
  if (scales_losses()) queue_->find_overflow(at_, u.n, u.g, u.what);
  queue_->update(u);
  queue_->close_step(at_, step.count, step.allow_non_finite);
}

// The first step of a shape is made call by call: libraries load their kernels on first use, which
// must not happen while recording.
void DeviceTrainer::make(Step& step) {
  if (step.recording) return queue_->replay(*step.recording);
  if (!step.warm || !queue_->records()) {
    queue_step(step);
    step.warm = true;
    return;
  }
  queue_->record();
  try {
    queue_step(step);
    step.recording = queue_->recorded();
  } catch (...) {
    queue_->abandon_recording();
    throw;
  }
  queue_->replay(*step.recording);
}

double DeviceTrainer::step(float* w, const Batch& batch, TargetSpec target, double lr, int,
                           bool train, std::uint64_t seed) {
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  Step& step =
      step_for(batch.count, false, target, batch.weight.data != nullptr, train, seed, false);
  step.objective->load(batch, 0);
  upload(w);
  DeviceStep now;
  try {
    upload_constants(&lr, 1);
    now.step = optimizer_->steps - 1;
    now.loss = loss_scale_;
    queue_->to_device(at_, &now, sizeof(now));
    make(step);
    now = look(1);
    if (now.updates > 0)
      download(w);
    else
      rewind(0);
  } catch (...) {
    rewind(0);
    throw;
  }
  if (now.failed)
    throw NonFiniteLoss(what_failed(seen_->results[0]) + " at step " +
                        std::to_string(optimizer_->steps) + "; no update was made");
  last_loss = seen_->results[0];
  return last_loss;
}

void DeviceTrainer::begin(float* w, const Batch& data, TargetSpec target,
                          const FitOptions& options) {
  if (data.count < 1) throw std::invalid_argument("X: expected at least one sample");
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  host_w_ = nullptr;
  steps_.clear();
  data_.reset();  // first, so that its memory can be used again
  stream_.reset();
  order_.reset();
  Batch rows = data;
  rows.index = nullptr;
  rows.first = 0;
  options_ = options;
  if (options_.batch_size <= 0 || options_.batch_size > data.count)
    options_.batch_size = data.count;
  target_ = target;
  count_ = data.count;
  weighted_ = data.weight.data != nullptr;
  position = Position{};
  options_.shuffle = options_.shuffle && options_.batch_size < data.count;
  if (const std::size_t chunk = chunk_bytes(rows)) {
    stream_ = std::make_unique<DeviceStream>(queue_, std::move(rows), target, options_, chunk);
  } else {
    data_ = std::make_unique<DeviceData>(queue_, rows, target, options.check_finite);
    if (options_.shuffle) order_ = std::make_unique<DeviceOrder>(queue_, options_.seed, count_);
  }
  host_w_ = w;
}

Index DeviceTrainer::steps_per_epoch() const {
  return count_ > 0 ? (count_ + options_.batch_size - 1) / options_.batch_size : 0;
}

// Bytes of a chunk, if the data set has to come in chunks; 0: it stays on the device.
std::size_t DeviceTrainer::chunk_bytes(const Batch& data) const {
  if (on_device(*queue_, data)) return 0;
  if (const char* forced = std::getenv("GRADSTACK_STREAM_BYTES"))
    return std::max(std::strtoull(forced, nullptr, 10), 1ULL);
  const auto count = static_cast<double>(data.count);
  const DeviceMemory memory = queue_->memory();
  // Values and gradients of two sizes of batch, and a margin for what libraries ask for.
  Index features = 0;
  for (const Stage& stage : graph_->stages()) features += size_of(stage.shape);
  const double batch = static_cast<double>(options_.batch_size);
  const double left = static_cast<double>(memory.free) -
                      kMargin * static_cast<double>(memory.total) -
                      4.0 * sizeof(float) * batch * static_cast<double>(features);
  const double order = options_.shuffle ? 3.0 * sizeof(Index) : 0.0;
  if (count * (static_cast<double>(bytes_per_sample(data, target_)) + order) <= left) return 0;
  return static_cast<std::size_t>(std::clamp(left / 4, 1.0, kChunkBytes));
}

// Up to n steps of the current epoch, which `more` follow in this run; the constants of the first
// are those of index 0.
DeviceTrainer::Made DeviceTrainer::make_steps(Index n, Index more,
                                              const std::function<bool()>& interrupted) {
  Made made;
  auto polled = std::chrono::steady_clock::now();
  const auto stopped = [&] {
    const auto time = std::chrono::steady_clock::now();
    if (!made.stopped && time - polled >= std::chrono::milliseconds(50)) {
      polled = time;
      made.stopped = interrupted && interrupted();
    }
    return made.stopped;
  };
  DeviceStep now;
  now.step = position.step;
  now.first = position.step_in_epoch * options_.batch_size;
  now.loss = loss_scale_;
  if (stream_) {
    now.first = stream_->ring_row(position.epoch, position.step_in_epoch);
    now.wrap = stream_->ring_rows();
  } else if (order_) {
    order_->open(position.epoch);
  }
  queue_->to_device(at_, &now, sizeof(now));
  for (Index queued = 0; queued < n && !made.stopped; ++queued) {
    const Index step = position.step_in_epoch + queued;
    if (stream_) {
      const DeviceStream::Prepared prepared =
          stream_->prepare(position.epoch, step, n - 1 - queued + more, stopped);
      made.bad_row = prepared.bad_row;
      if (made.bad_row >= 0 || prepared.stopped) break;
    }
    const Index first = step * options_.batch_size;
    make(step_for(std::min(options_.batch_size, count_ - first), true, target_, weighted_, true,
                  options_.seed, options_.allow_non_finite));
    if (queued % kPollSteps == 0) stopped();
  }
  now = look(n);
  made.steps = now.index;
  made.updates = now.updates;
  made.failed = now.failed != 0;
  if (made.failed) made.bad_row = -1;  // which comes later
  if (!made.stopped) made.stopped = interrupted && interrupted();
  return made;
}

void DeviceTrainer::account(const double* results, Index n, std::vector<double>& finished) {
  for (Index i = 0; i < n; ++i) {
    last_loss = results[2 * i];
    position.close_step(last_loss, results[2 * i + 1], cost_->reduction(), steps_per_epoch(),
                        finished);
  }
}

std::vector<double> DeviceTrainer::run(const double* lrs, Index n,
                                       const std::function<bool()>& interrupted) {
  if (!host_w_) throw std::invalid_argument("run: begin() comes first");
  const std::lock_guard<std::mutex> lock(queue_->mutex());
  const Position position_before = position;
  const double loss_before = last_loss;
  const std::int64_t t_before = optimizer_->steps;
  const std::vector<double> scalars_before = optimizer_->scalars();
  const DeviceLossScale loss_scale_before = loss_scale_;
  std::vector<double> finished;
  updates_.clear();
  Index updates = 0;
  Made made;
  double failed_loss = 0;
  try {
    upload(host_w_);
    const auto given_up = [&] { return made.failed || made.stopped || made.bad_row >= 0; };
    for (Index done = 0; done < n && !given_up(); done += made.steps) {
      const Index left = std::min(n - done, steps_per_epoch() - position.step_in_epoch);
      const Index wanted = std::min(left, kMostSteps);
      upload_constants(lrs + updates, wanted);  // a skipped step leaves its learning rate
      made = make_steps(wanted, n - done - wanted, interrupted);
      rewind(made.updates);
      updates += made.updates;
      account(seen_->results, made.steps, finished);
      updates_.resize(finished.size(), updates);
      if (made.failed) failed_loss = seen_->results[2 * made.steps];
    }
    download(host_w_);
  } catch (...) {
    // The host's weights and state are those before the run: so is the position.
    position = position_before;
    last_loss = loss_before;
    loss_scale_ = loss_scale_before;
    optimizer_->steps = t_before;
    optimizer_->scalars() = scalars_before;
    if (order_) order_->forget();
    if (stream_) stream_->forget();
    throw;
  }
  if (made.bad_row >= 0)
    throw std::invalid_argument("X or y: row " + std::to_string(made.bad_row) +
                                " holds NaN or infinity, expected finite values");
  if (made.failed)
    throw NonFiniteLoss(what_failed(failed_loss) + " at epoch " + std::to_string(position.epoch) +
                        ", step " + std::to_string(position.step_in_epoch) + " (step " +
                        std::to_string(position.step) +
                        " in all); the weights are those before that step");
  if (made.stopped) throw Interrupted();
  return finished;
}

}  // namespace gradstack

// Training that stays on a device: the data set is resident, or comes in chunks when it does not
// fit; a step is recorded once and replayed, the host looks once per epoch. The counterpart of
// trainer.hpp, with the same samples in the same order, the same dropout masks and the same errors.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "gradstack/device_order.hpp"
#include "gradstack/device_program.hpp"
#include "gradstack/trainer.hpp"
#include "gradstack/updater.hpp"

namespace gradstack {

class DeviceTrainer {
 public:
  DeviceTrainer(std::shared_ptr<const Graph> graph, std::shared_ptr<DeviceQueue> queue,
                std::shared_ptr<const Cost<float>> cost,
                std::shared_ptr<Optimizer<float>> optimizer, std::vector<char> frozen,
                DevicePrecision precision = DevicePrecision::Float32);

  // As the members of Trainer; w and the optimiser's state are copied in and out by every call.
  double step(float* w, const Batch& batch, TargetSpec target, double lr, int threads, bool train,
              std::uint64_t seed);
  void begin(float* w, const Batch& data, TargetSpec target, const FitOptions& options);
  std::vector<double> run(const double* lrs, Index n, const std::function<bool()>& interrupted);

  Position position;
  double last_loss = 0;
  Index steps_per_epoch() const;
  const Graph& graph() const { return *graph_; }

  // Only fp16 scales its losses. Every trainer starts at kFirstLossScale unless it is told where
  // another one was.
  bool scales_losses() const { return precision_ == DevicePrecision::FP16; }
  double loss_scale() const { return loss_scale_.scale; }
  std::int64_t good_steps() const { return loss_scale_.good; }
  void set_loss_scale(double scale, std::int64_t good_steps);
  // Steps of the last run that were not skipped until the end of each epoch it finished.
  const std::vector<Index>& updates() const { return updates_; }

 private:
  // A step of one shape; recorded when it is made for the second time.
  struct Step {
    Index count = 0;
    bool resident = false;
    DeviceRun run;
    bool allow_non_finite = false;
    std::unique_ptr<DeviceObjective> objective;
    bool warm = false;
    std::unique_ptr<DeviceRecording> recording;
  };
  struct Made {
    Index steps = 0;    // complete
    Index updates = 0;  // of them not skipped
    bool failed = false, stopped = false;
    Index bad_row = -1;  // a row of the next step that is not finite
  };
  Step& step_for(Index count, bool resident, TargetSpec target, bool weighted, bool train,
                 std::uint64_t seed, bool allow_non_finite);
  void queue_step(Step& step);
  void make(Step& step);
  void upload(const float* w);
  void download(float* w);
  void upload_constants(const double* lrs, Index n);
  void rewind(Index steps);
  DeviceStep look(Index steps);
  std::size_t chunk_bytes(const Batch& data) const;
  Made make_steps(Index n, Index more, const std::function<bool()>& interrupted);
  void account(const double* results, Index n, std::vector<double>& finished);

  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<DeviceQueue> queue_;
  std::shared_ptr<const Cost<float>> cost_;
  std::shared_ptr<Optimizer<float>> optimizer_;
  std::vector<char> frozen_;
  DevicePrecision precision_;
  DeviceLossScale loss_scale_;
  std::vector<Index> updates_;
  DeviceLayout layout_;
  std::vector<float> padded_;
  DeviceArray<float> w_, dw_;
  DeviceBuffer copy_;  // of w, as the precision stores it
  std::vector<DeviceArray<float>> state_;
  DeviceArray<std::uint8_t> what_;
  DeviceArray<DeviceConstants> constants_;
  // What the host looks at after the steps of an epoch, in one copy.
  static constexpr Index kMostSteps = 4096;  // between two looks
  struct Report {
    DeviceStep at;
    double results[2 * kMostSteps];
  };
  DeviceArray<Report> report_;
  DeviceStep* at_ = nullptr;  // in it
  double* results_ = nullptr;
  std::unique_ptr<Report> seen_ = std::make_unique<Report>();
  std::vector<std::vector<double>> scalars_;  // of the optimiser, before every step of a run
  std::int64_t steps_before_ = 0;

  std::list<Step> steps_;
  // The epoch loop.
  float* host_w_ = nullptr;
  Index count_ = 0;  // samples
  bool weighted_ = false;
  std::unique_ptr<DeviceData> data_;      // all samples, or:
  std::unique_ptr<DeviceStream> stream_;  // some at a time
  TargetSpec target_;
  FitOptions options_;
  std::unique_ptr<DeviceOrder> order_;  // null: samples are taken as they lie
};

}  // namespace gradstack

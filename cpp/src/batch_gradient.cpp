#include <algorithm>
#include <cmath>
#include <cstring>

#include "at.hpp"
#include "gradstack/objective.hpp"

namespace gradstack {
namespace {

constexpr Index kSlots = 16;                 // most gradient slots of the chunk schedule
constexpr Index kChunkParameters = 1 << 16;  // above, slots would not stay in cache
constexpr Index kChunkSamples = 64;
constexpr Index kSlotShare = 128;  // parameters per sample: above, adding up slots would be felt
constexpr Index kRange = 4096;     // parameters reduced per item of work
constexpr double kPlanBytes = 1 << 28;  // activations of one plan: larger batches are cut
constexpr double kFusedFlops = 1e10;    // longer steps keep the update apart: see run_tiles

// The user's code: it sees all samples at once, and may throw.
bool has_opaque(const Graph& graph) {
  return std::any_of(graph.stages().begin(), graph.stages().end(),
                     [](const Stage& s) { return s.kind == Kind::Opaque; });
}

// A slot costs as much as about two samples, and more where other cores read it: there are no more
// of them than threads that the work is worth.
Index slots_for(double flops) {
  Index slots = 1;
  while (slots < kSlots && useful_threads(flops) >= 2.0 * static_cast<double>(slots)) slots *= 2;
  return slots;
}

// Where the samples of slot i begin.
Index slot_begin(Index i, Index slots, Index chunk, Index batch) {
  const Index chunks = (batch + chunk - 1) / chunk;
  return std::min(i * chunks / slots * chunk, batch);
}

// The larger chunk makes better use of what it reads of the weights, if the slots come out even.
Index chunk_for(Index batch, Index slots) {
  const auto largest = [&](Index chunk) {
    Index most = 0;
    for (Index i = 0; i < slots; ++i)
      most = std::max(most,
                      slot_begin(i + 1, slots, chunk, batch) - slot_begin(i, slots, chunk, batch));
    return most;
  };
  return 10 * largest(kChunkSamples) > 11 * largest(kLanes) ? kLanes : kChunkSamples;
}

}  // namespace

template <class T>
BatchGradient<T>::BatchGradient(std::shared_ptr<const Graph> graph, const Kernels<T>& kernels,
                                std::shared_ptr<const Cost<T>> cost, TargetSpec target, Index batch,
                                int workers, std::vector<char> frozen)
    : graph_(std::move(graph)),
      kernels_(kernels),
      cost_(std::move(cost)),
      chunk_(batch),
      chunked_(false),
      workers_(workers) {
  Index features = 0;
  for (const Stage& stage : graph_->stages()) features += size_of(stage.shape);
  if (!has_opaque(*graph_) && cost_->by_block()) {
    chunked_ =
        batch >= 2 * kLanes && graph_->n_params() <= std::min(kChunkParameters, kSlotShare * batch);
    const double bytes = 3.0 * static_cast<double>(features) * sizeof(T);
    if (chunked_) {
      const Index slots = slots_for(flops(batch));
      chunk_ = chunk_for(batch, slots);
      slots_.assign(at(std::min(slots, (batch + chunk_ - 1) / chunk_)),
                    std::vector<T>(at(graph_->n_params())));
    } else if (bytes * static_cast<double>(batch) > kPlanBytes) {
      chunk_ = std::min(
          batch, std::max(Index{512}, static_cast<Index>(kPlanBytes / bytes) / kLanes * kLanes));
    }
  }
  PlanOptions options;
  options.batch = chunk_;
  options.frozen = std::move(frozen);
  for (int i = 0; i < (chunked_ ? team() : 1); ++i)
    objectives_.push_back(std::make_unique<Objective<T>>(graph_, kernels_, options, cost_, target));
  slot_loss_.resize(slots_.size());
  slot_bad_row_.resize(slots_.size());
}

template <class T> int BatchGradient<T>::team() const {
  return chunked_ ? std::min(workers_, static_cast<int>(slots_.size())) : workers_;
}

template <class T> double BatchGradient<T>::flops(Index batch) const {
  return 6.0 * static_cast<double>(graph_->n_params()) * static_cast<double>(batch);
}

template <class T>
bool BatchGradient<T>::give_up(const Result& result, bool stopped, bool allow_non_finite) const {
  return stopped || result.bad_row >= 0 || (!allow_non_finite && !std::isfinite(result.loss));
}

// All workers agree on whether the team was stopped: the leader looks, the others read after it.
template <class T> bool BatchGradient<T>::stopped(const Run<T>& run, const Worker& worker) {
  if (!run.error) return false;
  worker.sync();
  if (worker.leader()) stopped_ = run.error->stopped();
  worker.sync();
  return stopped_;
}

// A batch of total weight 0 has neither loss nor gradient.
template <class T> double BatchGradient<T>::unit(double weight) const {
  if (cost_->reduction() == Reduction::Sum) return cost_->sum_factor(objectives_[0]->compared().d);
  return weight == 0 ? 0 : 1 / weight;
}

// Updating a layer as soon as its gradient is known saves a pass over the parameters, but cannot be
// undone: only where nothing can stop the step after its first update, and the step is short.
template <class T> bool BatchGradient<T>::updates_at_once(const Run<T>& run, Index count) const {
  return run.updater && run.updater->fusable() && count <= chunk_ && !has_opaque(*graph_) &&
         !objectives_[0]->plan().shares_parameters() && flops(count) < kFusedFlops;
}

template <class T> bool BatchGradient<T>::begins_next(const Run<T>& run) const {
  return !chunked_ && updates_at_once(run, 1) && objectives_[0]->plan().begins_next();
}

template <class T>
typename BatchGradient<T>::Result BatchGradient<T>::run(const Run<T>& run, const Batch& batch,
                                                        const Worker& worker, bool check_finite,
                                                        bool allow_non_finite) {
  const double weight = total_weight(*cost_, batch);
  return chunked_ ? run_chunks(run, batch, worker, weight, check_finite, allow_non_finite)
                  : run_tiles(run, batch, worker, weight, check_finite, allow_non_finite);
}

template <class T>
typename BatchGradient<T>::Result BatchGradient<T>::run_tiles(const Run<T>& run, const Batch& batch,
                                                              const Worker& worker, double weight,
                                                              bool check_finite,
                                                              bool allow_non_finite) {
  Objective<T>& objective = *objectives_[0];
  const double scale = unit(weight);
  // Read now: after the last barrier of this step the leader selects the next batch.
  const Index count = batch.count;
  const bool fused = updates_at_once(run, count);
  Result result;
  result.weight = weight;
  Run<T> part = run;
  part.updater = fused ? run.updater : nullptr;
  for (Index first = 0; first < count; first += chunk_) {
    if (worker.leader()) objective.select(batch, first, std::min(chunk_, count - first), scale);
    worker.sync();
    part.first_sample = run.first_sample + first;
    part.accumulate = run.accumulate || first > 0;
    objective.load(batch, worker, check_finite);
    objective.evaluate(part, worker);
    result.loss += objective.weighted_loss() * scale;
    result.bad_row = std::max(result.bad_row, objective.bad_row());
    if (give_up(result, stopped(run, worker), allow_non_finite)) return result;
    objective.backward(part, fused ? worker.unstoppable() : worker);
  }
  if (run.updater && !fused) {
    if (give_up(result, stopped(run, worker), allow_non_finite)) return result;
    run.updater->apply_all(worker.unstoppable(), run.dw);
  }
  result.updated = run.updater != nullptr;
  return result;
}

template <class T>
typename BatchGradient<T>::Result BatchGradient<T>::run_chunks(const Run<T>& run,
                                                               const Batch& batch,
                                                               const Worker& worker, double weight,
                                                               bool check_finite,
                                                               bool allow_non_finite) {
  const double scale = unit(weight);
  const Index chunks = (batch.count + chunk_ - 1) / chunk_;
  const Index slots = std::min(static_cast<Index>(slots_.size()), chunks);
  Objective<T>& objective = *objectives_[at(worker.id)];
  const Worker alone = worker.alone();
  worker.for_each(slots, [&](Index slot) {
    const Index begin = slot_begin(slot, slots, chunk_, batch.count);
    const Index end = slot_begin(slot + 1, slots, chunk_, batch.count);
    Run<T> part = run;
    part.updater = nullptr;
    part.dw = slots == 1 ? run.dw : slots_[at(slot)].data();
    slot_loss_[at(slot)] = 0;
    slot_bad_row_[at(slot)] = -1;
    for (Index first = begin; first < end; first += chunk_) {
      objective.select(batch, first, std::min(chunk_, end - first), scale);
      part.first_sample = run.first_sample + first;
      part.accumulate = first > begin || (slots == 1 && run.accumulate);
      objective.load(batch, alone, check_finite);
      objective.evaluate(part, alone);
      slot_loss_[at(slot)] += objective.weighted_loss() * scale;
      slot_bad_row_[at(slot)] = std::max(slot_bad_row_[at(slot)], objective.bad_row());
      objective.backward(part, alone);
    }
  });
  worker.sync();
  Result result;
  result.weight = weight;
  for (Index slot = 0; slot < slots; ++slot) {
    result.loss += slot_loss_[at(slot)];
    result.bad_row = std::max(result.bad_row, slot_bad_row_[at(slot)]);
  }
  if (give_up(result, stopped(run, worker), allow_non_finite)) return result;
  const Worker finisher = worker.unstoppable();
  if (run.updater && run.updater->fusable()) {
    finisher.for_each(run.updater->pieces(), [&](Index piece) {
      Index begin, n;
      run.updater->piece_range(piece, &begin, &n);
      reduce_slots(run.dw, begin, n, slots, run.accumulate);
      run.updater->apply_piece(piece, run.dw);
    });
    finisher.sync();
  } else {
    const Index n = graph_->n_params();
    finisher.for_each((n + kRange - 1) / kRange, [&](Index i) {
      reduce_slots(run.dw, i * kRange, std::min(kRange, n - i * kRange), slots, run.accumulate);
    });
    finisher.sync();
    if (run.updater) run.updater->apply_all(finisher, run.dw);
  }
  result.updated = run.updater != nullptr;
  return result;
}

template <class T>
void BatchGradient<T>::reduce_slots(T* dw, Index begin, Index n, Index slots,
                                    bool accumulate) const {
  if (slots == 1) return;  // it is there
  Index slot = 0;
  if (!accumulate) std::memcpy(dw + begin, slots_[at(slot++)].data() + begin, at(n) * sizeof(T));
  for (; slot < slots; ++slot)
    kernels_.add(n, dw + begin, slots_[at(slot)].data() + begin, dw + begin);
}

template class BatchGradient<float>;
template class BatchGradient<double>;

}  // namespace gradstack

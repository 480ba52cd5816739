#include <algorithm>
#include <atomic>
#include <cmath>

#include "at.hpp"
#include "gradstack/device_data.hpp"
#include "gradstack/parallel.hpp"
#include "gradstack/random.hpp"

namespace gradstack {
namespace {

constexpr Index kPiece = Index{1} << 20;      // bytes of a copy at least, unless it ends a chunk
constexpr Index kMostPiece = Index{1} << 23;  // bytes gathered between two looks for Ctrl-C
constexpr double kFlopsPerByte = 1;           // what gathering costs, for the choice of threads

// Steps of a chunk: as many as fit, at least one, none beyond an epoch.
Index steps_of_chunk(std::size_t chunk_bytes, std::size_t row_bytes, Index batch, Index count) {
  const auto rows = static_cast<Index>(chunk_bytes / std::max(row_bytes, std::size_t{1}));
  return std::clamp(rows / batch, Index{1}, (count + batch - 1) / batch);
}

}  // namespace

DeviceStream::DeviceStream(std::shared_ptr<DeviceQueue> queue, Batch data, TargetSpec target,
                           const FitOptions& options, std::size_t chunk_bytes)
    : queue_(std::move(queue)),
      data_(std::move(data)),
      options_(options),
      steps_(steps_of_chunk(chunk_bytes, bytes_per_sample(data_, target), options.batch_size,
                            data_.count)),
      chunks_((data_.count + chunk_rows() - 1) / chunk_rows()),
      ring_(queue_, data_, target, 2 * chunk_rows(), "two chunks of the data set") {
  std::size_t staged = 0;
  const auto add = [&](const RowSource& source, bool label, bool check, void* device) {
    Column column;
    column.source = source;
    column.label = label;
    column.check = check && options_.check_finite;
    column.cols = source.cols;
    column.bytes = label ? sizeof(std::int64_t) : at(source.cols) * sizeof(float);
    column.device = static_cast<char*>(device);
    column.staged = staged;
    staged += column.bytes * at(chunk_rows());
    row_bytes_ += column.bytes;
    columns_.push_back(column);
  };
  // Labels first: they are the ones that want an aligned place.
  if (target.labels) add(data_.y, true, false, ring_.labels.data());
  for (std::size_t i = 0; i < data_.x.size(); ++i) add(data_.x[i], false, true, ring_.x[i].data());
  if (ring_.y.data()) add(data_.y, false, true, ring_.y.data());
  if (ring_.weight.data()) add(data_.weight, false, false, ring_.weight.data());
  for (Half& half : halves_) {
    half.copied = queue_->fence();
    half.used = queue_->fence();
    half.staging = std::make_unique<LockedMemory>(queue_, std::max(staged, std::size_t{1}),
                                                  "a chunk of the data set");
  }
}

void DeviceStream::forget() {
  for (Half& half : halves_) half.epoch = half.chunk = -1;
}

Index DeviceStream::rows_of(Index chunk) const {
  return std::min(chunk_rows(), data_.count - chunk * chunk_rows());
}

// Chunks alternate, across epochs too.
DeviceStream::Half& DeviceStream::half(std::int64_t epoch, Index chunk) {
  return halves_[(epoch * chunks_ + chunk) % 2];
}

Index DeviceStream::ring_row(std::int64_t epoch, Index step) const {
  const Index chunk = step / steps_;
  return (epoch * chunks_ + chunk) % 2 * chunk_rows() +
         (step - chunk * steps_) * options_.batch_size;
}

// The half that a chunk lies in, taken from the chunk before it when it has another one.
DeviceStream::Half& DeviceStream::open(std::int64_t epoch, Index chunk) {
  Half& to = half(epoch, chunk);
  if (to.epoch == epoch && to.chunk == chunk) return to;
  queue_->wait_for(*to.copied);  // the last copies have read what the host is about to write
  // Kernels queued so far may read this half: copies come after them.
  queue_->mark(*to.used, DeviceLine::Kernels);
  queue_->hold(DeviceLine::Copies, *to.used);
  to.epoch = epoch;
  to.chunk = chunk;
  to.gathered = to.sent = 0;
  to.bad_at = to.bad_row = -1;
  to.awaited = false;
  return to;
}

const Index* DeviceStream::order(std::int64_t epoch) {
  if (!options_.shuffle) return nullptr;
  Order& o = orders_[epoch % 2];
  if (o.epoch != epoch) {
    o.samples.resize(at(data_.count));
    permutation(options_.seed, static_cast<std::uint64_t>(epoch), data_.count, o.samples.data());
    o.epoch = epoch;
  }
  return o.samples.data();
}

// Converts samples up to row `rows` of the chunk.
void DeviceStream::gather(Half& to, Index rows) {
  const Index* order = this->order(to.epoch);
  const Index begin = to.gathered, n = rows - begin, first = to.chunk * chunk_rows();
  const double flops = kFlopsPerByte * static_cast<double>(n) * static_cast<double>(row_bytes_);
  std::atomic<Index> bad{n};
  run_team(threads_for(flops, options_.threads), [&](const Worker& worker) {
    const DefaultFloats floats;  // tiny values arrive as they do when all data are copied at once
    worker.for_each(n, [&](Index i) {
      const Index row = order ? order[first + begin + i] : first + begin + i;
      for (const Column& column : columns_) {
        char* place = to.staging->data() + column.staged + column.bytes * at(begin + i);
        if (column.label) {
          *static_cast<std::int64_t*>(static_cast<void*>(place)) = label_at(column.source, row);
          continue;
        }
        auto* values = static_cast<float*>(static_cast<void*>(place));
        gather_row(column.source, row, values);
        if (!column.check ||
            std::all_of(values, values + column.cols, [](float x) { return std::isfinite(x); }))
          continue;
        Index least = bad.load();
        while (i < least && !bad.compare_exchange_weak(least, i)) {
        }
      }
    });
  });
  if (const Index i = bad.load(); i < n && to.bad_at < 0) {
    to.bad_at = begin + i;
    to.bad_row = order ? order[first + to.bad_at] : first + to.bad_at;
  }
  to.gathered = rows;
}

// Copies what was gathered.
void DeviceStream::send(Half& to) {
  const Index n = to.gathered - to.sent;
  if (n == 0) return;
  const Index place = (&to == &halves_[1] ? chunk_rows() : 0) + to.sent;
  for (const Column& column : columns_)
    if (column.bytes > 0)
      queue_->copy_beside(column.device + column.bytes * at(place),
                          to.staging->data() + column.staged + column.bytes * at(to.sent),
                          column.bytes * at(n));
  to.sent = to.gathered;
  queue_->mark(*to.copied, DeviceLine::Copies);
}

DeviceStream::Prepared DeviceStream::prepare(std::int64_t epoch, Index step, Index more,
                                             const std::function<bool()>& stopped) {
  const Index row_bytes = static_cast<Index>(std::max(row_bytes_, std::size_t{1}));
  const Index most = std::max(Index{1}, kMostPiece / row_bytes);
  const Index chunk = step / steps_, in_chunk = step - chunk * steps_;
  Prepared prepared;
  Half& now = open(epoch, chunk);
  while (now.gathered < rows_of(chunk)) {
    gather(now, std::min(now.gathered + most, rows_of(chunk)));
    send(now);
    if (stopped()) {
      prepared.stopped = true;
      return prepared;
    }
  }
  if (!now.awaited) queue_->hold(DeviceLine::Kernels, *now.copied);
  now.awaited = true;
  const Index batch = options_.batch_size;
  if (now.bad_at >= in_chunk * batch && now.bad_at < (in_chunk + 1) * batch) {
    prepared.bad_row = now.bad_row;
    return prepared;
  }
  const Index steps = (rows_of(chunk) + batch - 1) / batch;
  if (in_chunk + 1 + more <= steps) return prepared;
  const bool last = chunk + 1 == chunks_;
  const std::int64_t next_epoch = last ? epoch + 1 : epoch;
  const Index next_chunk = last ? 0 : chunk + 1;
  Half& next = open(next_epoch, next_chunk);
  const Index rows = rows_of(next_chunk);
  // In step with the kernels, which have their next work before the host gathers for long.
  const Index wanted = (rows * (in_chunk + 1) + steps - 1) / steps;
  if (wanted < rows && (wanted - next.gathered) * row_bytes < kPiece) return prepared;
  if (wanted > next.gathered) gather(next, wanted);
  send(next);
  return prepared;
}

}  // namespace gradstack

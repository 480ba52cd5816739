// Data sets on a device: as a whole, or in chunks that are copied while the device trains on the
// chunk before. In either case a batch is gathered from rows in device memory.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "gradstack/device.hpp"
#include "gradstack/trainer.hpp"

namespace gradstack {

// Samples in device memory.
struct DeviceData {
  // Room for `rows` samples like those of `data`.
  DeviceData(const std::shared_ptr<DeviceQueue>& queue, const Batch& data, TargetSpec target,
             Index rows, const char* what);
  // A whole data set; what is in device memory already stays where it is, and must outlive this.
  DeviceData(const std::shared_ptr<DeviceQueue>& queue, const Batch& data, TargetSpec target,
             bool check_finite);
  std::vector<DeviceArray<float>> x;
  std::vector<Index> cols;
  DeviceArray<float> y, weight;
  DeviceArray<std::int64_t> labels;
};

// Whether some of the caller's data are in device memory: rows of float32 without gaps.
bool on_device(const DeviceQueue& queue, const Batch& data);

// Bytes of one sample in DeviceData.
std::size_t bytes_per_sample(const Batch& data, TargetSpec target);

// Rows [first, first + count) of the caller's data as float32 at `to`; through `batch.index` when
// it has one.
void upload_rows(DeviceQueue& queue, const Batch& batch, const RowSource& source, Index first,
                 Index count, float* to);

// The epochs of a data set in chunks of whole batches. Chunks alternate between the two halves of a
// ring: while the kernels work on one, the host gathers the samples of the next into page-locked
// memory, a piece per step, and copies run beside the kernels. Samples come in the order of the
// whole data set, so that bits are those of one that is on the device as a whole.
class DeviceStream {
 public:
  DeviceStream(std::shared_ptr<DeviceQueue> queue, Batch data, TargetSpec target,
               const FitOptions& options, std::size_t chunk_bytes);

  struct Prepared {
    bool stopped = false;
    Index bad_row = -1;  // a row of the step's batch that is not finite: not to be trained on
  };
  // Before a step is queued: its samples are on their way, and the kernels wait for them. `more`
  // steps follow in this run; if they reach the next chunk, some of it is gathered as well.
  Prepared prepare(std::int64_t epoch, Index step, Index more,
                   const std::function<bool()>& stopped);
  // What was gathered is not to be used (an error in the middle of something).
  void forget();

  const DeviceData& ring() const { return ring_; }
  Index ring_rows() const { return 2 * chunk_rows(); }
  // Where in the ring the batch of a step begins.
  Index ring_row(std::int64_t epoch, Index step) const;

 private:
  // Rows of one array of the data set: where they come from and go to.
  struct Column {
    RowSource source;
    bool label = false, check = false;
    Index cols = 0;
    std::size_t bytes = 0;  // of a row
    char* device = nullptr;
    std::size_t staged = 0;  // offset in page-locked memory
  };
  struct Half {
    std::int64_t epoch = -1;
    Index chunk = -1;
    Index gathered = 0, sent = 0;  // rows
    Index bad_at = -1, bad_row = -1;
    bool awaited = false;                       // by the kernels
    std::unique_ptr<DeviceFence> copied, used;  // by the copies, by the kernels
    std::unique_ptr<LockedMemory> staging;
  };

  // The samples of an epoch in the order of visits, of which two in a row are kept.
  struct Order {
    std::int64_t epoch = -1;
    std::vector<Index> samples;
  };

  Index chunk_rows() const { return steps_ * options_.batch_size; }
  Index rows_of(Index chunk) const;
  Half& half(std::int64_t epoch, Index chunk);
  Half& open(std::int64_t epoch, Index chunk);
  const Index* order(std::int64_t epoch);
  void gather(Half& to, Index rows);
  void send(Half& to);

  std::shared_ptr<DeviceQueue> queue_;
  Batch data_;
  FitOptions options_;
  Index steps_, chunks_;  // of a chunk, of an epoch
  DeviceData ring_;
  std::vector<Column> columns_;
  std::size_t row_bytes_ = 0;
  Half halves_[2];
  Order orders_[2];
};

}  // namespace gradstack

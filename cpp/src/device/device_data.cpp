#include "gradstack/device_data.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "at.hpp"
#include "stage_calls.hpp"

namespace gradstack {
namespace {

constexpr Index kUpload = 1 << 22;  // values converted at a time

}  // namespace

void upload_rows(DeviceQueue& queue, const Batch& batch, const RowSource& source, Index first,
                 Index count, float* to) {
  const Index cols = source.cols;
  if (cols == 0) return;
  const bool packed = is_native<float>(source) && !batch.index &&
                      source.row_stride == cols * static_cast<Index>(sizeof(float));
  if (packed) {
    queue.to_device(to, source.data + batch.row(first) * source.row_stride, bytes_of(count * cols));
    return;
  }
  const Index step = std::max(Index{1}, kUpload / cols);
  std::vector<float> rows(at(std::min(step, count) * cols));
  for (Index begin = 0; begin < count; begin += step) {
    const Index n = std::min(step, count - begin);
    for (Index i = 0; i < n; ++i)
      gather_row(source, batch.row(first + begin + i), rows.data() + i * cols);
    queue.to_device(to + begin * cols, rows.data(), bytes_of(n * cols));
  }
}

DeviceData::DeviceData(const std::shared_ptr<DeviceQueue>& queue, const Batch& data,
                       TargetSpec target, Index rows, const char* what) {
  for (const RowSource& source : data.x) {
    cols.push_back(source.cols);
    x.emplace_back(queue, rows * source.cols, what);
  }
  if (target.labels) labels = DeviceArray<std::int64_t>(queue, rows, what);
  if (!target.labels && target.dy > 0) y = DeviceArray<float>(queue, rows * target.dy, what);
  if (data.weight.data) weight = DeviceArray<float>(queue, rows, what);
}

DeviceData::DeviceData(const std::shared_ptr<DeviceQueue>& queue, const Batch& data,
                       TargetSpec target, bool check_finite) {
  const Index n = data.count;
  const auto take = [&](const RowSource& source, bool check) -> DeviceArray<float> {
    if (queue->on_device(source.data)) {
      auto* rows = static_cast<float*>(static_cast<void*>(const_cast<char*>(source.data)));
      return {rows, n * source.cols};
    }
    const Index row = check && check_finite ? first_non_finite<float>(source, 0, n) : -1;
    if (row >= 0)
      throw std::invalid_argument("X or y: row " + std::to_string(row) +
                                  " holds NaN or infinity, expected finite values");
    DeviceArray<float> rows(queue, n * source.cols, "the data set");
    upload_rows(*queue, data, source, 0, n, rows.data());
    return rows;
  };
  for (const RowSource& source : data.x) {
    cols.push_back(source.cols);
    x.push_back(take(source, true));
  }
  if (target.labels) {
    std::vector<std::int64_t> values(at(n));
    for (Index i = 0; i < n; ++i) values[at(i)] = label_at(data.y, i);
    labels = DeviceArray<std::int64_t>(queue, n, "the labels");
    labels.from_host(values.data(), n);
  } else if (target.dy > 0) {
    y = take(data.y, true);
  }
  if (data.weight.data) weight = take(data.weight, false);
}

bool on_device(const DeviceQueue& queue, const Batch& data) {
  const auto there = [&](const RowSource& source) { return queue.on_device(source.data); };
  return std::any_of(data.x.begin(), data.x.end(), there) || there(data.y) || there(data.weight);
}

std::size_t bytes_per_sample(const Batch& data, TargetSpec target) {
  Index floats = target.labels ? 2 : target.dy;
  for (const RowSource& source : data.x) floats += source.cols;
  return bytes_of(floats + (data.weight.data ? 1 : 0));
}

}  // namespace gradstack

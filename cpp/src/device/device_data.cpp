#include "gradstack/device_data.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "gradstack/parallel.hpp"

namespace gradstack {
namespace {

constexpr Index kUpload = 1 << 22;  // values converted at a time

std::size_t at(Index i) { return static_cast<std::size_t>(i); }
std::size_t bytes_of(Index n) { return at(n) * sizeof(float); }

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
                       TargetSpec target, bool check_finite)
    : DeviceData(queue, data, target, data.count, "the data set") {
  const auto upload = [&](const RowSource& source, bool check, float* to) {
    if (const Index row =
            check && check_finite ? first_non_finite<float>(source, 0, data.count) : -1;
        row >= 0)
      throw std::invalid_argument("X or y: row " + std::to_string(row) +
                                  " holds NaN or infinity, expected finite values");
    upload_rows(*queue, data, source, 0, data.count, to);
  };
  for (std::size_t i = 0; i < x.size(); ++i) upload(data.x[i], true, x[i].data());
  if (target.labels) {
    std::vector<std::int64_t> values(at(data.count));
    for (Index i = 0; i < data.count; ++i) values[at(i)] = label_at(data.y, i);
    labels.from_host(values.data(), data.count);
  } else if (target.dy > 0) {
    upload(data.y, true, y.data());
  }
  if (data.weight.data) upload(data.weight, false, weight.data());
}

std::size_t bytes_per_sample(const Batch& data, TargetSpec target) {
  Index floats = target.labels ? 2 : target.dy;
  for (const RowSource& source : data.x) floats += source.cols;
  return bytes_of(floats + (data.weight.data ? 1 : 0));
}

}  // namespace gradstack

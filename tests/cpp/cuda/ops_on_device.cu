// The op table on the device: every function and its three derivatives, compiled by nvcc for both
// dtypes, and on a machine with a GPU compared with the same functors on the host.
// Exit code 77: compiled, but there is no GPU to run it on.
#include <cmath>
#include <cstdio>
#include <vector>

#include "gradstack/ops.hpp"

namespace {

constexpr int kPoints = 256;
constexpr int kOrders = 4;

struct Params {
  double value[gradstack::kMaxOpParams];
};

Params defaults(int id) {
  Params p{};
  for (int i = 0; i < gradstack::op_info(id).n_params; ++i)
    p.value[i] = gradstack::op_info(id).params[i].value;
  return p;
}

template <class Op, class T> GS_HD T value(const Op& op, int order, T s) {
  switch (order) {
    case 0:
      return op.h(s);
    case 1:
      return op.d1(s);
    case 2:
      return op.d2(s);
    default:
      return op.d3(s);
  }
}

template <class Op, class T> __global__ void evaluate(Params p, const T* s, T* out) {
  const Op op(p.value);
  const int i = static_cast<int>(threadIdx.x);
  for (int order = 0; order < kOrders; ++order) {
    out[order * kPoints + i] = value(op, order, s[i]);
  }
}

// Units in the last place that device and host libraries may differ by, over the condition of the
// formulas: third derivatives are differences of products.
template <class T> constexpr double kTolerance = sizeof(T) == 4 ? 2e-5 : 1e-12;

template <class Op, class T> int compare(int id, const T* points, T* device_points, T* results) {
  const Params p = defaults(id);
  evaluate<Op, T><<<1, kPoints>>>(p, device_points, results);
  std::vector<T> out(kOrders * kPoints);
  if (cudaMemcpy(out.data(), results, out.size() * sizeof(T), cudaMemcpyDeviceToHost) !=
      cudaSuccess) {
    std::printf("%s: %s\n", Op::info.name, cudaGetErrorString(cudaGetLastError()));
    return 1;
  }
  const Op op(p.value);
  int wrong = 0;
  for (int order = 0; order < kOrders; ++order) {
    for (int i = 0; i < kPoints; ++i) {
      const double host = value(op, order, points[i]);
      const double device = out[static_cast<std::size_t>(order * kPoints + i)];
      if (!(std::fabs(host - device) <= kTolerance<T> * (1 + std::fabs(host)))) {
        std::printf("%s order %d at %g: host %.9g, device %.9g\n", Op::info.name, order,
                    static_cast<double>(points[i]), host, device);
        ++wrong;
      }
    }
  }
  return wrong;
}

template <class T, class... Ops> int compare_all(gradstack::OpList<Ops...>) {
  std::vector<T> points(kPoints);
  for (int i = 0; i < kPoints; ++i) {
    points[static_cast<std::size_t>(i)] = static_cast<T>((i + 0.5) / kPoints * 16 - 8);
  }
  T *device_points = nullptr, *results = nullptr;
  if (cudaMalloc(&device_points, kPoints * sizeof(T)) != cudaSuccess ||
      cudaMalloc(&results, kOrders * kPoints * sizeof(T)) != cudaSuccess ||
      cudaMemcpy(device_points, points.data(), kPoints * sizeof(T), cudaMemcpyHostToDevice) !=
          cudaSuccess) {
    std::printf("%s\n", cudaGetErrorString(cudaGetLastError()));
    return 1;
  }
  int id = 0, wrong = 0;
  ((wrong += compare<Ops, T>(id++, points.data(), device_points, results)), ...);
  cudaFree(device_points);
  cudaFree(results);
  return wrong;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU here\n");
    return 77;
  }
  const int wrong = compare_all<float>(gradstack::PointwiseOps{}) +
                    compare_all<double>(gradstack::PointwiseOps{});
  std::printf("%d ops, %d differences\n", gradstack::kNumOps, wrong);
  return wrong == 0 ? 0 : 1;
}

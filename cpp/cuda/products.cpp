#include "products.hpp"

#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <vector>

#include "gradstack/ops.hpp"

namespace gradstack::device {
namespace {

Epilogue epilogue_of(const DeviceOp& op) {
  return op.id < 0 ? Epilogue::None : op_info(op.id).epilogue;
}

// Equal, or for functions that are not piecewise linear within a few units of C's roundoff.
bool agree(const std::vector<float>& got, const std::vector<float>& expected, double tolerance) {
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto a = static_cast<double>(got[i]), b = static_cast<double>(expected[i]);
    if (std::isnan(a) && std::isnan(b)) continue;
    if (a != b && !(std::abs(a - b) <= tolerance * (1 + std::abs(b)))) return false;
  }
  return true;
}

double tolerance_of(Epilogue epilogue, DeviceType type) {
  if (epilogue == Epilogue::ReLU) return 0;
  const int bits = type == DeviceType::Float32 ? 24 : type == DeviceType::BFloat16 ? 8 : 11;
  return std::ldexp(4, -bits);
}

}  // namespace

void ProductQueue::gemm(const DeviceGemm& g) {
  if (g.slope.op.id >= 0) {
    if (!product(g, g.slope.sums ? Call::SlopeSums : Call::Slope, true))
      throw DeviceError("a matrix product with a derivative that the library does not have");
    return;
  }
  if (fuses_op(g) && product(g, Call::Op, true)) return;
  if (g.bias && g.op.id < 0 && product(g, Call::Bias, true)) return;
  if (g.a_sums && product(g, Call::ASums, true)) return;
  if (!product(g, Call::Product, true))
    throw DeviceError("the library has no algorithm for a matrix product");
  if (g.bias || g.op.id >= 0) bias_forward(g.op, g.m, g.n, g.bias, g.c, g.bits);
  if (g.a_sums) column_sums(g.k, g.m, g.a, g.a_sums, false);
}

bool ProductQueue::fuses(const DeviceGemm& g) {
  if (g.slope.op.id < 0) return fuses_op(g);
  // Sums of halves would be halves.
  if (g.slope.sums && g.c.type != DeviceType::Float32) return false;
  if (epilogue_of(g.slope.op) == Epilogue::None) return false;
  if (!product(g, g.slope.sums ? Call::SlopeSums : Call::Slope, false)) return false;
  const Agreement& known = agreement(g.slope.op, g);
  return g.slope.sums ? known.sums : known.slope;
}

bool ProductQueue::fuses_op(const DeviceGemm& g) {
  if (!g.fuse || epilogue_of(g.op) == Epilogue::None || !product(g, Call::Op, false)) return false;
  const Agreement& known = agreement(g.op, g);
  return known.op && (!g.bits || known.bits);
}

namespace {

constexpr Index kRows = 64, kCols = 128, kInner = 32;
constexpr const char* kTrial = "a trial of matrix products";

// Device memory of a trial, filled by f(row, column).
class TrialMatrix {
 public:
  TrialMatrix(const std::shared_ptr<DeviceQueue>& queue, Index rows, Index cols, DeviceType type)
      : queue_(queue), n_(rows * cols), cols_(cols), buffer_(queue, n_, type, kTrial) {}
  template <class F> const TrialMatrix& fill(const F& f) const {
    std::vector<float> values;
    for (Index i = 0; i < n_; ++i) values.push_back(static_cast<float>(f(i / cols_, i % cols_)));
    DeviceArray<float> floats(queue_, n_, kTrial);
    floats.from_host(values.data(), n_);
    queue_->convert(n_, floats.data(), out());
    return *this;
  }
  DeviceOut out() const { return buffer_.values(); }
  std::vector<float> values() const {
    const DeviceArray<float> floats(queue_, n_, kTrial);
    queue_->convert(n_, out(), floats.data());
    std::vector<float> values(static_cast<std::size_t>(n_));
    floats.to_host(values.data(), n_);
    return values;
  }

 private:
  std::shared_ptr<DeviceQueue> queue_;
  Index n_, cols_;
  DeviceBuffer buffer_;
};

}  // namespace

const ProductQueue::Agreement& ProductQueue::agreement(const DeviceOp& op, const DeviceGemm& g) {
  const Key key{epilogue_of(op), g.a.type, g.c.type, g.tf32};
  const auto known = agreements_.find(key);
  if (known != agreements_.end()) return known->second;
  return agreements_.emplace(key, try_out(op, g)).first->second;
}

// Products whose results are known but for what follows them, by the library and by our kernels:
// s = x + bias of every kind of number, 0 also by cancellation; a gradient of small integers.
ProductQueue::Agreement ProductQueue::try_out(const DeviceOp& op, const DeviceGemm& like) {
  const Epilogue epilogue = epilogue_of(op);
  const double tolerance = tolerance_of(epilogue, like.c.type);
  const std::shared_ptr<DeviceQueue> here(this, [](DeviceQueue*) {});
  const auto matrix = [&](Index rows, Index cols, DeviceType type) {
    return TrialMatrix(here, rows, cols, type);
  };
  constexpr double kInf = std::numeric_limits<double>::infinity();
  constexpr double kValues[] = {0,  -0.0, 1,   -1,   0.5,     -0.5, 2,     -3,
                                24, -24,  1e4, -1e4, 0x1p-10, kInf, -kInf, NAN};
  constexpr double kBiases[] = {0, 1, -1, 0.5};
  constexpr Index kFinite = 13;
  const TrialMatrix x = matrix(kRows, kInner, like.a.type), w = matrix(kCols, kInner, like.a.type);
  const TrialMatrix bias = matrix(1, kCols, like.c.type), s = matrix(kRows, kCols, like.c.type);
  const TrialMatrix z = matrix(kRows, kCols, like.c.type);
  w.fill([](Index, Index col) { return col == 0; });
  bias.fill([&](Index, Index col) { return kBiases[col % 4]; });
  const auto set_x = [&](Index kinds) {
    x.fill([&](Index row, Index col) { return col == 0 ? kValues[row % kinds] : 0.0; });
  };
  const DeviceArray<std::uint8_t> bits(here, kRows * bytes_of_bits(kCols), kTrial);
  const auto taken_bits = [&] {
    std::vector<std::uint8_t> values(static_cast<std::size_t>(bits.size()));
    bits.to_host(values.data(), bits.size());
    zero(bits.data(), values.size());
    return values;
  };
  Agreement found;

  DeviceGemm forward;
  forward.m = kRows;
  forward.n = kCols;
  forward.k = kInner;
  forward.a = x.out();
  forward.b = w.out();
  forward.tb = true;
  forward.c = z.out();
  forward.tf32 = like.tf32;
  forward.bias = bias.out();
  forward.op = op;
  const bool has_bits = epilogue == Epilogue::ReLU;
  set_x(std::size(kValues));
  if (has_bits) forward.bits = bits.data();
  gemm(forward);
  const std::vector<float> expected = z.values();
  const std::vector<std::uint8_t> expected_bits = taken_bits();
  zero(z.out().data, kRows * kCols * bytes_of(z.out().type));
  if (has_bits && product(forward, Call::Op, true))
    found.bits = agree(z.values(), expected, tolerance) && taken_bits() == expected_bits;
  forward.bits = nullptr;
  found.op = product(forward, Call::Op, true) && agree(z.values(), expected, tolerance);

  set_x(kFinite);
  if (has_bits) forward.bits = bits.data();
  gemm(forward);
  forward.bits = nullptr;
  forward.op = {};
  forward.c = s.out();
  gemm(forward);
  const TrialMatrix ds = matrix(kRows, kInner, like.a.type);
  const TrialMatrix above = matrix(kInner, kCols, like.a.type);
  ds.fill([](Index row, Index col) { return col == 0 ? 1 + row % 3 : 0; });
  above.fill([](Index row, Index col) { return row == 0 ? 1 + col % 2 : 0; });
  DeviceGemm back = forward;
  back.a = ds.out();
  back.b = above.out();
  back.tb = false;
  back.bias = {};
  back.c = z.out();
  gemm(back);
  backward(op, kRows * kCols, s.out(), {}, z.out(), z.out(), false);
  const std::vector<float> expected_dz = z.values();
  back.slope.op = op;
  if (has_bits)
    back.slope.bits = bits.data();
  else
    back.slope.s = s.out();
  found.slope = product(back, Call::Slope, true) && agree(z.values(), expected_dz, tolerance);
  if (like.c.type != DeviceType::Float32) return found;
  const TrialMatrix sums = matrix(1, kCols, DeviceType::Float32);
  std::vector<float> expected_sums(kCols);
  for (std::size_t i = 0; i < expected_dz.size(); ++i) expected_sums[i % kCols] += expected_dz[i];
  back.slope.sums = sums.out().as<float>();
  found.sums = product(back, Call::SlopeSums, true) && agree(z.values(), expected_dz, tolerance) &&
               agree(sums.values(), expected_sums, kRows * tolerance);
  return found;
}

}  // namespace gradstack::device

// The fused MLP of a device, on the emulated one: fragments against plain loops, whole nets against
// two references in double precision. One rounds to halves where the kernels do: what is left is
// float32 rounding, and now and then a half that falls to the other side. One does not round at
// all: results differ by a few units of the halves' roundoff.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emulated.hpp"
#include "fused_mlp.hpp"
#include "gradstack/mlp.hpp"
#include "gradstack/ops.hpp"
#include "support/numbers.hpp"

using namespace test;
using namespace gradstack::device;
using gradstack::DeviceHalf;
using gradstack::DeviceMlp;
using gradstack::DeviceOp;

namespace {

int precision(DeviceHalf half) { return half == DeviceHalf::Bf16 ? 8 : 11; }
double roundoff(DeviceHalf half) { return std::ldexp(1.0, -precision(half)); }

// x with `bits` significant bits; 0: as it is.
double rounded(double x, int bits) {
  if (bits == 0 || x == 0 || !std::isfinite(x)) return x;
  int exponent = 0;
  const double mantissa = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, bits)), exponent - bits);
}

struct Case {
  std::vector<Index> widths;
  std::vector<std::string> ops;  // per layer, "": none
  Index count = 1;
  DeviceHalf half = DeviceHalf::Bf16;
  bool bias = true, dx = true;
  double dy = 1, offset = 0;  // size of dybar; added to the biases

  int layers() const { return static_cast<int>(widths.size()) - 1; }
  DeviceOp op(int l) const {
    DeviceOp op;
    if (ops[at(l)].empty()) return op;
    op.id = gradstack::find_op(ops[at(l)].c_str());
    REQUIRE(op.id >= 0);
    for (int i = 0; i < gradstack::op_info(op.id).n_params; ++i)
      op.p[i] = gradstack::op_info(op.id).params[i].value;
    return op;
  }
};

struct Data {
  explicit Data(const Case& net) {
    const auto& n = net.widths;
    x = random_values(net.count * n.front(), 1);
    dybar = random_values(net.count * n.back(), 2, -net.dy, net.dy);
    for (int l = 0; l < net.layers(); ++l) {
      const auto seed = static_cast<unsigned>(10 + 2 * l);
      const double bound = 1.5 / std::sqrt(static_cast<double>(n[at(l)]));
      w.push_back(random_values(n[at(l)] * n[at(l + 1)], seed, -bound, bound));
      b.push_back(random_values(n[at(l + 1)], seed + 1, net.offset - 0.3, net.offset + 0.3));
    }
  }
  Values x, dybar;
  std::vector<Values> w, b;
};

struct Results {
  std::vector<std::string> names;
  std::vector<Values> values;
  void add(const std::string& name, Values v) {
    names.push_back(name);
    values.push_back(std::move(v));
  }
};

template <class F> double with_op(const DeviceOp& op, double otherwise, F&& f) {
  return op.id < 0 ? otherwise : gradstack::visit_op(op.id, op.p, f);
}

Results reference(const Case& net, const Data& data, int bits) {
  const auto round = [&](Values v) {
    for (double& x : v) x = rounded(x, bits);
    return v;
  };
  const int layers = net.layers();
  const Index n = net.count;
  std::vector<Values> z{round(data.x)}, s, w;
  for (int l = 0; l < layers; ++l) {
    const Index in = net.widths[at(l)], out = net.widths[at(l + 1)];
    const DeviceOp op = net.op(l);
    w.push_back(round(data.w[at(l)]));
    Values sums(at(n * out)), values(at(n * out));
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < out; ++j) {
        double sum = net.bias ? data.b[at(l)][at(j)] : 0;
        for (Index k = 0; k < in; ++k) sum += w[at(l)][at(j * in + k)] * z[at(l)][at(i * in + k)];
        if (gradstack::mlp_keeps_input(op)) sum = rounded(sum, bits);
        sums[at(i * out + j)] = sum;
        values[at(i * out + j)] = with_op(op, sum, [&](auto h) { return h.h(sum); });
      }
    s.push_back(sums);
    z.push_back(l + 1 < layers ? round(values) : values);
  }
  Results r;
  r.add("ybar", z.back());
  Values g = data.dybar;
  for (int l = layers; l-- > 0;) {
    const Index in = net.widths[at(l)], out = net.widths[at(l + 1)];
    const DeviceOp op = net.op(l);
    for (std::size_t i = 0; i < g.size(); ++i)
      g[i] *= with_op(op, 1.0, [&](auto h) {
        if constexpr (decltype(h)::has_d1_from_z)
          return h.d1_from_z(z[at(l + 1)][i]);
        else
          return h.d1(s[at(l)][i]);
      });
    g = round(g);
    Values dw(at(out * in)), db(at(out)), dz(at(n * in));
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < out; ++j) {
        const double ds = g[at(i * out + j)];
        db[at(j)] += ds;
        for (Index k = 0; k < in; ++k) {
          dw[at(j * in + k)] += ds * z[at(l)][at(i * in + k)];
          dz[at(i * in + k)] += ds * w[at(l)][at(j * in + k)];
        }
      }
    r.add("dw" + std::to_string(l), dw);
    if (net.bias) r.add("db" + std::to_string(l), db);
    g = dz;
  }
  if (net.dx) r.add("dx", g);
  return r;
}

// Memory of the emulated device, with NaN in it.
template <class T> class Buffer {
 public:
  Buffer(EmulatedQueue& queue, Index n) : queue_(queue), size_(n) {
    data_ = static_cast<T*>(queue.allocate(at(n) * sizeof(T) + 16, "a test"));
    std::memset(data_, 0xff, at(n) * sizeof(T));
  }
  Buffer(EmulatedQueue& queue, const Values& values)
      : Buffer(queue, static_cast<Index>(values.size())) {
    for (std::size_t i = 0; i < values.size(); ++i) data_[i] = static_cast<T>(values[i]);
  }
  Buffer(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept
      : queue_(other.queue_), size_(other.size_), data_(std::exchange(other.data_, nullptr)) {}
  ~Buffer() { queue_.release(data_); }
  T* data() const { return data_; }
  Values values() const { return Values(data_, data_ + size_); }

 private:
  EmulatedQueue& queue_;
  Index size_;
  T* data_;
};

Results run(const Case& net, const Data& data, bool threads = false) {
  EmulatedQueue queue;
  if (threads) queue.run_warps_in_threads();
  DeviceMlp m;
  m.half = net.half;
  m.count = net.count;
  m.layers = net.layers();
  const Buffer<float> x(queue, data.x), dybar(queue, data.dybar);
  const Buffer<float> ybar(queue, net.count * net.widths.back());
  const Buffer<float> dx(queue, net.count * net.widths.front());
  std::vector<Buffer<float>> arrays;
  std::vector<Buffer<std::uint16_t>> kept;
  const auto array = [&](const auto& what) {
    arrays.emplace_back(queue, what);
    return arrays.back().data();
  };
  for (int l = 0; l < m.layers; ++l) {
    auto& layer = m.layer[l];
    layer.in = net.widths[at(l)];
    layer.out = net.widths[at(l + 1)];
    layer.op = net.op(l);
    layer.w = array(data.w[at(l)]);
    layer.dw = array(layer.in * layer.out);
    if (!net.bias) continue;
    layer.bias = array(data.b[at(l)]);
    layer.db = array(layer.out);
  }
  m.x = x.data();
  m.ybar = ybar.data();
  queue.mlp_forward(m);
  queue.synchronize();
  const Values inference = ybar.values();
  for (int l = 0; l < m.layers; ++l) {
    if (!mlp_keeps(m, l)) continue;
    kept.emplace_back(queue, net.count * gradstack::mlp_pad(m.layer[l].out));
    m.layer[l].kept = kept.back().data();
  }
  queue.mlp_forward(m);
  queue.synchronize();
  Results r;
  r.add("ybar", ybar.values());
  CHECK(same_bits(inference, r.values[0]));  // keeping changes nothing
  const Buffer<float> slots(queue, gradstack::mlp_slots(m));
  m.dybar = dybar.data();
  m.slots = slots.data();
  if (net.dx) m.dx = dx.data();
  queue.mlp_backward(m);
  queue.synchronize();
  const auto values_of = [&](const float* p, Index n) { return Values(p, p + n); };
  for (int l = m.layers; l-- > 0;) {
    const auto& layer = m.layer[l];
    r.add("dw" + std::to_string(l), values_of(layer.dw, layer.in * layer.out));
    if (net.bias) r.add("db" + std::to_string(l), values_of(layer.db, layer.out));
  }
  if (net.dx) r.add("dx", dx.values());
  return r;
}

// |got - want| relative to |want|, in the Euclidean norm.
double distance(const Values& got, const Values& want) {
  REQUIRE(got.size() == want.size());
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(error) / std::max(std::sqrt(norm), std::numeric_limits<double>::min());
}

bool kinked(const Case& net) {
  const std::set<std::string> jump = {"relu",  "leaky_relu",  "selu",     "hardtanh",
                                      "relu6", "hardsigmoid", "hardswish"};
  return std::any_of(net.ops.begin(), net.ops.end(),
                     [&](const std::string& op) { return jump.count(op) > 0; });
}

void check(const Case& net) {
  std::string text;
  for (std::size_t l = 0; l < net.widths.size(); ++l)
    text += (l ? " " + net.ops[l - 1] + " " : "") + std::to_string(net.widths[l]);
  INFO(text, ", batch ", net.count, net.half == DeviceHalf::Bf16 ? ", bf16" : ", fp16");
  const Data data(net);
  const Results got = run(net, data);
  const Results near = reference(net, data, precision(net.half));
  const Results exact = reference(net, data, 0);
  REQUIRE(got.names == near.names);
  for (std::size_t i = 0; i < got.names.size(); ++i) {
    INFO(got.names[i]);
    const double to_near = distance(got.values[i], near.values[i]);
    const double to_exact = distance(got.values[i], exact.values[i]);
    // Few halves fall to the other side, and they do by one unit.
    CHECK(to_near <= 0.5 * roundoff(net.half));
    // Each of the up to 2 L roundings in a row adds about one roundoff; at a kink a rounding may
    // decide which side's slope it is.
    if (!kinked(net) || i == 0) CHECK(to_exact <= 2 * net.layers() * roundoff(net.half));
  }
}

Case chain(std::vector<Index> widths, const std::string& op, Index count, DeviceHalf half,
           bool last = false) {
  Case net;
  net.widths = std::move(widths);
  net.ops.assign(net.widths.size() - 1, op);
  if (!last) net.ops.back().clear();
  net.count = count;
  net.half = half;
  return net;
}

constexpr DeviceHalf kBoth[] = {DeviceHalf::Bf16, DeviceHalf::Fp16};

// Sums of Tile::multiply, read back through each_eight, against a triple loop.
template <class Half, bool kTransposed, int kWidth> void products(int steps, int pairs) {
  using T = Tile<kWidth>;
  CAPTURE(kWidth);
  CAPTURE(steps);
  CAPTURE(pairs);
  const int depth = 16 * steps, width = 16 * pairs;
  std::mt19937 random(static_cast<unsigned>(100 * steps + pairs));
  std::uniform_int_distribution<int> small(-8, 8);  // sums of products are exact
  std::vector<std::uint16_t> memory(at(T::kHalves + T::kWeights), 0xffff);
  const auto fill = [&](int first, int rows, int cols) {
    std::vector<int> values(at(rows * cols));
    for (int i = 0; i < rows * cols; ++i) {
      values[at(i)] = small(random);
      const std::uint32_t p = Half::pack(static_cast<float>(values[at(i)]), 0.0F);
      memory[at(first + place<kWidth>(i / cols, i % cols))] = static_cast<std::uint16_t>(p);
    }
    return values;
  };
  const auto z = fill(0, gradstack::kMlpTile, depth);
  const auto w = kTransposed ? fill(T::kHalves, depth, width) : fill(T::kHalves, width, depth);
  const SharedHalves tile(memory.data()), weights = tile + T::kHalves;
  std::vector<int> seen(at(gradstack::kMlpTile * width), 0);
  for (int warp = 0; warp < kWarps; ++warp) {
    typename T::Sums sums;
    T::clear(sums);
    T::template multiply<Half, kTransposed>(sums, tile, warp, weights, steps, pairs);
    T::each_eight(sums, width, warp, [&](float(&v)[4], int row, int col) {
      for (int i = 0; i < 4; ++i) {
        const int r = row + T::row_of(i), c = col + T::col_of(i);
        int want = 0;
        for (int k = 0; k < depth; ++k)
          want += z[at(r * depth + k)] * w[at(kTransposed ? k * width + c : c * depth + k)];
        REQUIRE(v[i] == static_cast<float>(want));
        ++seen[at(r * width + c)];
      }
    });
  }
  CHECK(std::count(seen.begin(), seen.end(), 1) == gradstack::kMlpTile * width);
}

}  // namespace

TEST_CASE("fused mlp: halves are rounded to nearest, ties to even") {
  std::mt19937 random(7);
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    const float x = as_float(i % 2 ? bits : (bits & 0x8fffffffU) + 0x30000000U);  // half in range
    const double wanted = static_cast<double>(x);
    if (std::isnan(x)) {
      REQUIRE(std::isnan(Bf16::low(Bf16::pack(x, 0))));
      REQUIRE(std::isnan(Fp16::high(Fp16::pack(0, x))));
      continue;
    }
    if (std::abs(wanted) > 1e-37 && std::abs(wanted) < 3.3e38)
      REQUIRE(static_cast<double>(Bf16::high(Bf16::pack(0, x))) == rounded(wanted, 8));
    const double grid = std::ldexp(1.0, -24);  // of fp16's subnormal numbers
    double half = std::abs(wanted) < std::ldexp(1.0, -14) ? grid * std::nearbyint(wanted / grid)
                                                          : rounded(wanted, 11);
    if (std::abs(half) > 65504) half = std::copysign(HUGE_VAL, half);
    REQUIRE(static_cast<double>(Fp16::low(Fp16::pack(x, 0))) == half);
  }
}

TEST_CASE_TEMPLATE("fused mlp: places in shared memory", Width, std::integral_constant<int, 64>,
                   std::integral_constant<int, 128>) {
  constexpr int kWidth = Width::value;
  std::set<int> places;
  for (int row = 0; row < 128; ++row)
    for (int col = 0; col < kWidth; ++col) places.insert(place<kWidth>(row, col));
  CHECK(places.size() == at(128 * kWidth));
  CHECK(*places.rbegin() == 128 * kWidth - 1);
  // Eight neighbouring rows that ldmatrix loads together touch all 32 banks of four bytes.
  for (int row = 0; row < 128; row += 8)
    for (int col = 0; col < kWidth; col += 8) {
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(place<kWidth>(row + i, col) / 8 % 8);
      REQUIRE(banks.size() == 8);
      REQUIRE(place<kWidth>(row, col) % 8 == 0);
    }
}

TEST_CASE("fused mlp: products of tiles") {
  for (int steps = 1; steps <= 4; ++steps)
    for (int pairs = 1; pairs <= 4; ++pairs) {
      products<Bf16, false, 64>(steps, pairs);
      products<Fp16, true, 64>(steps, pairs);
    }
  for (const int pairs : {1, 5, 8}) {
    products<Fp16, false, 128>(8, pairs);
    products<Bf16, true, 128>(3, pairs);
  }
}

TEST_CASE("fused mlp: the scale of narrow gradients is a power of two in range") {
  for (const double x : {1e-45, 1e-38, 1e-20, 3e-7, 1.0, 17.0, 65504.0, 1e30, 3e38}) {
    const float largest = static_cast<float>(x);
    const double scale = static_cast<double>(mlp_scale(as_bits(largest)));
    int exponent = 0;
    CHECK(std::frexp(scale, &exponent) == 0.5);
    CHECK(1 / scale >= static_cast<double>(std::numeric_limits<float>::min()));
    CHECK(scale * static_cast<double>(largest) < 32);
    if (x > 1e-36) CHECK(scale * static_cast<double>(largest) >= 16);
  }
  CHECK(mlp_scale(0) == 1);
  CHECK(mlp_scale(as_bits(HUGE_VALF)) == 1);
}

TEST_CASE("fused mlp: widths, inputs, outputs, batches and depths") {
  const std::vector<std::vector<Index>> widths = {{1, 16, 1},
                                                  {3, 17, 3},
                                                  {16, 24, 16, 10},
                                                  {64, 64, 64, 64, 64},
                                                  {100, 32, 48, 10},
                                                  {784, 64, 32, 10},
                                                  {784, 128, 128},
                                                  {3, 96, 17, 128},
                                                  {64, 128, 128, 64},
                                                  {17, 48, 96, 33, 1},
                                                  {2, 16, 24, 32, 20, 16, 3},
                                                  {129, 65, 2},
                                                  {64, 10},
                                                  {65, 100, 128}};
  const Index counts[] = {1, 2, 127, 128, 129, 300};
  int i = 0;
  for (const auto& each : widths)
    for (const DeviceHalf half : kBoth) {
      Case net = chain(each, i % 3 ? "relu" : "tanh", counts[i % 6], half);
      net.dx = i % 4 != 1;
      net.bias = i % 5 != 2;
      check(net);
      ++i;
    }
  check(chain({100, 64, 64, 10}, "relu", 1000, DeviceHalf::Bf16));
  check(chain({64, 16, 16}, "silu", 128 * 265 + 1, DeviceHalf::Fp16));  // blocks take turns
}

TEST_CASE("fused mlp: every op, hidden and last") {
  for (int id = 0; id < gradstack::kNumOps; ++id) {
    const std::string name = gradstack::op_info(id).name;
    for (const bool last : {false, true}) {
      Case net =
          chain({7, 20, 18, 5}, name, 40, id % 2 ? DeviceHalf::Bf16 : DeviceHalf::Fp16, last);
      if (name == "reciprocal") net.offset = 4;  // away from its pole
      check(net);
    }
  }
}

TEST_CASE("fused mlp: fp16 keeps gradients of large batches") {
  for (const double size : {1e-12, 1e-7, 1e6}) {
    Case net = chain({20, 32, 32, 4}, "tanh", 200, DeviceHalf::Fp16);
    net.dy = size;
    check(net);
  }
}

TEST_CASE("fused mlp: bits repeat, and what is not wanted is not needed") {
  const Case net = chain({20, 40, 40, 4}, "gelu", 700, DeviceHalf::Bf16);
  const Data data(net);
  const Results first = run(net, data), second = run(net, data);
  for (std::size_t i = 0; i < first.values.size(); ++i)
    CHECK(same_bits(first.values[i], second.values[i]));
  Case less = net;
  less.dx = false;
  const Results without = run(less, data);
  for (std::size_t i = 0; i < without.values.size(); ++i)
    CHECK(same_bits(first.values[i], without.values[i]));
}

TEST_CASE("fused mlp: warps at their own pace") {
  // Weights that stay and that are loaded again; inputs in pieces; more tiles than blocks have.
  for (const Case& net : {chain({20, 40, 40, 4}, "relu", 300, DeviceHalf::Fp16),
                          chain({150, 128, 100, 128}, "gelu", 200, DeviceHalf::Bf16),
                          chain({70, 64, 64, 64, 64, 64}, "tanh", 130, DeviceHalf::Fp16, true),
                          chain({4, 16, 2}, "sine", 128 * 266, DeviceHalf::Bf16)}) {
    const Data data(net);
    const Results turns = run(net, data), threads = run(net, data, true);
    for (std::size_t i = 0; i < turns.values.size(); ++i)
      CHECK(same_bits(turns.values[i], threads.values[i]));
  }
}

TEST_CASE("fused mlp: which graphs are chains") {
  using gradstack::mlp_eligible;
  CHECK(mlp_eligible(*gradstack::mlp({784, 128, 64, 10}, "gelu")));
  CHECK(mlp_eligible(*gradstack::mlp({3, 16, 1}, "sine")));
  CHECK(mlp_eligible(*gradstack::mlp({5000, 128}, "relu")));
  CHECK_FALSE(mlp_eligible(*gradstack::mlp({3, 129, 1}, "relu")));
  CHECK_FALSE(mlp_eligible(*gradstack::mlp({3, 15, 1}, "relu")));
  CHECK_FALSE(mlp_eligible(*gradstack::mlp({3, 64, 129}, "relu")));
  CHECK_FALSE(mlp_eligible(*gradstack::mlp(std::vector<Index>(18, 16), "relu")));
  const auto chain = gradstack::mlp_chain(*gradstack::mlp({4, 20, 3}, "elu"));
  REQUIRE(chain);
  CHECK(chain->mlp.layers == 2);
  CHECK(chain->mlp.layer[0].op.id == gradstack::find_op("elu"));
  CHECK(chain->mlp.layer[0].op.p[0] == 1.0);
  CHECK(chain->mlp.layer[1].op.id == -1);
  CHECK(chain->weight[1] == 2);
  CHECK(chain->bias[1] == 3);
}

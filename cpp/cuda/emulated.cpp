// kernels.hpp on the host, and the library of products.
#include "emulated.hpp"

#include <cmath>

#include "cuda_device.hpp"
#include "kernel_queue.hpp"

namespace gradstack::device {

template class KernelQueue<HostLaunch>;

bool EmulatedQueue::product(const DeviceGemm& g, Call call, bool run) {
  if (!has(g, call)) return false;
  if (!run) return true;
  visit_type(g.a.type, [&]<class T>() {
    visit_type(g.c.type, [&]<class C>() {
      launch_.call([this, g, call] { multiply<T, C>(g, call); }, name_of(call));
    });
  });
  if (call == Call::ASums) column_sums(g.k, g.m, g.a, g.a_sums, false);
  if (call == Call::SlopeSums) column_sums(g.m, g.n, g.c, g.slope.sums, false);
  return true;
}

bool EmulatedQueue::has(const DeviceGemm& g, Call call) const {
  const bool derivative = call == Call::Slope || call == Call::SlopeSums;
  if (epilogues == "none") return call == Call::Product;
  if (epilogues == "forward") return !derivative;
  if (epilogues == "no sums" && call == Call::SlopeSums) return false;
  if (epilogues == "eights" && (derivative || call == Call::Op))
    return g.m % 8 == 0 && g.n % 8 == 0 && g.k % 8 == 0;
  return true;
}

const char* EmulatedQueue::name_of(Call call) {
  if (call == Call::Op) return "a matrix product with a function";
  if (call == Call::Slope) return "a matrix product with a derivative";
  if (call == Call::SlopeSums) return "a matrix product with a derivative and sums";
  return "a matrix product";
}

template <class T, class C> void EmulatedQueue::multiply(const DeviceGemm& g, Call call) const {
  const auto operand = [&](const T* from, Index n) {
    std::vector<double> values(static_cast<std::size_t>(n));
    for (double& value : values) {
      const float x = load(*from++);
      value = static_cast<double>(g.tf32 ? rounded_to_tf32(x) : x);
    }
    return values;
  };
  const std::vector<double> first = operand(g.a.as<T>(), g.m * g.k);
  const std::vector<double> second = operand(g.b.as<T>(), g.k * g.n);
  const double *a = first.data(), *b = second.data();
  const bool biased = g.bias && (call == Call::Bias || call == Call::Op);
  if (call == Call::Op && g.bits)
    std::memset(g.bits, 0, static_cast<std::size_t>(g.m * bytes_of_bits(g.n)));
  for (Index i = 0; i < g.m; ++i)
    for (Index j = 0; j < g.n; ++j) {
      double sum = biased ? static_cast<double>(load(g.bias.as<C>()[j])) : 0.0;
      for (Index k = 0; k < g.k; ++k)
        sum += a[g.ta ? k * g.m + i : i * g.k + k] * b[g.tb ? j * g.k + k : k * g.n + j];
      auto value = static_cast<float>(sum);
      if (call == Call::Op) value = function<C>(g, i, j, value);
      if (call == Call::Slope || call == Call::SlopeSums) value *= slope<C>(g, i, j);
      put(g.c.as<C>() + i * g.n + j, value, g.accumulate);
    }
}

template <class C>
float EmulatedQueue::function(const DeviceGemm& g, Index row, Index col, float s) const {
  return visit_op(g.op.id, g.op.p, [&](auto h) {
    const bool kink = epilogues == "kink" && s == 0;
    if (g.bits && (kink || h.d1(s) != 0))
      g.bits[row * bytes_of_bits(g.n) + col / 8] |= static_cast<std::uint8_t>(1U << (col % 8));
    return epilogues == "nan" && std::isnan(s) ? 0.0F : h.h(s);
  });
}

template <class C> float EmulatedQueue::slope(const DeviceGemm& g, Index row, Index col) const {
  if (g.slope.s)
    return visit_op(g.slope.op.id, g.slope.op.p,
                    [&](auto h) { return h.d1(load(g.slope.s.as<C>()[row * g.n + col])); });
  const Index bit = epilogues == "order" ? 7 - col % 8 : col % 8;
  const unsigned byte = g.slope.bits[row * bytes_of_bits(g.n) + col / 8];
  return static_cast<float>(byte >> bit & 1U);
}

Devices devices() { return {1, 1, ""}; }

// What tests ask for: GRADSTACK_EMULATED_MEMORY, bytes of memory (parts
// are a sixteenth); GRADSTACK_EMULATED_PART, bytes of a part; GRADSTACK_EMULATED_COPIES=early,
// see emulated.hpp; GRADSTACK_EMULATED_FAIL=kernel:n, which fails when it runs for the n-th time.
// GRADSTACK_EMULATED_EPILOGUES, what may follow a product: all (the default); none; forward, no
// derivatives; no sums beside derivatives; eights, only for sizes that are multiples of 8; and with
// errors that must be found: nan, a ReLU that makes it 0; kink, whose bits say 1 at 0; order, of
// the bits in a byte.
std::shared_ptr<DeviceQueue> open_device(int) {
  auto queue = std::make_shared<EmulatedQueue>();
  if (const char* limit = std::getenv("GRADSTACK_EMULATED_MEMORY")) {
    queue->limit = std::strtoull(limit, nullptr, 10);
    queue->part_bytes = queue->limit / 16;
  }
  if (const char* part = std::getenv("GRADSTACK_EMULATED_PART"))
    queue->part_bytes = std::strtoull(part, nullptr, 10);
  if (const char* copies = std::getenv("GRADSTACK_EMULATED_COPIES"))
    queue->early = std::string(copies) == "early";
  if (const char* epilogues = std::getenv("GRADSTACK_EMULATED_EPILOGUES"))
    queue->epilogues = epilogues;
  if (const char* set = std::getenv("GRADSTACK_EMULATED_FAIL")) {
    const std::string text = set;
    const std::size_t colon = text.find(':');
    queue->fail(text.substr(0, colon), std::stoll(text.substr(colon + 1)));
  }
  return queue;
}

}  // namespace gradstack::device

// Worst errors of the vector functions, in units of the last place, for every instruction set that
// this machine has: over all 2^32 floats, and over many doubles. The oracle is the C library in the
// next wider precision.
//
//   math_accuracy [--only NAME] [--stride N] [--doubles N] [--threads N]
//
// prints one line per function, type and instruction set, separated by tabs: name, type,
// instruction set, points, ulps, where. `--stride N` looks at every Nth float only.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "cpu/features.hpp"
#include "functions.hpp"
#include "support/ulps.hpp"

using gradstack::Index;
using gradstack::MathFunction;

namespace {

constexpr Index kBlock = 4096;

struct Options {
  std::string only;
  std::uint64_t stride = 1;
  std::uint64_t doubles = std::uint64_t{1} << 26;
  unsigned threads = std::max(1u, std::thread::hardware_concurrency());
};

struct Truth {
  const char* name;
  double range;  // doubles are drawn evenly from [-range, range] too
  double (*f32)(double);
  long double (*f64)(long double);
};

template <class R> R true_sigmoid(R x) { return R(1) / (R(1) + std::exp(-x)); }
template <class R> R true_softplus(R x) {
  return std::fmax(x, R(0)) + std::log1p(std::exp(-std::fabs(x)));
}

#define GS_TRUTH(name, range)                                                                    \
  {                                                                                              \
#name, range, [](double x) { return std::name(x); },                                         \
                                                      [](long double x) { return std::name(x); } \
  }
const Truth kTruths[] = {GS_TRUTH(exp, 750),
                         GS_TRUTH(expm1, 40),
                         GS_TRUTH(log, 3),
                         GS_TRUTH(log1p, 2),
                         GS_TRUTH(tanh, 22),
                         {"sigmoid", 750, true_sigmoid<double>, true_sigmoid<long double>},
                         {"softplus", 750, true_softplus<double>, true_softplus<long double>},
                         GS_TRUTH(erf, 7),
                         GS_TRUTH(erfc, 28),
                         GS_TRUTH(sin, 2e6),
                         GS_TRUTH(cos, 2e6)};

struct Worst {
  double ulps = 0.0, where = 0.0;
  void take(const Worst& other) {
    // Of equal errors the one nearer to the lowest argument, whichever thread saw it.
    if (other.ulps > ulps || (other.ulps == ulps && other.where < where)) *this = other;
  }
};

// A number for every index, without order: SplitMix64.
std::uint64_t mixed(std::uint64_t i) {
  std::uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

float point(std::uint64_t i, const Options& options, double, float) {
  const auto low = static_cast<std::uint32_t>(i * options.stride);
  float x;
  std::memcpy(&x, &low, sizeof x);
  return x;
}

// By thirds: any bits at all, moderate exponents, evenly from the function's range.
double point(std::uint64_t i, const Options&, double range, double) {
  const std::uint64_t random = mixed(i);
  double x;
  std::memcpy(&x, &random, sizeof x);
  if (i % 3 == 0) return x;
  const double unit = static_cast<double>(random >> 11) * 0x1p-53;
  if (i % 3 == 2) return range * (2.0 * unit - 1.0);
  const int exponent = static_cast<int>(mixed(random) % 70) - 60;
  return std::copysign(std::ldexp(1.0 + unit, exponent), x);
}

template <class T> auto call(const Truth& truth, T x) {
  if constexpr (std::is_same_v<T, float>)
    return truth.f32(static_cast<double>(x));
  else
    return truth.f64(static_cast<long double>(x));
}
void call(const MathFunction& f, const float* x, float* y, Index n) { f.f32(x, y, n); }
void call(const MathFunction& f, const double* x, double* y, Index n) { f.f64(x, y, n); }

// The worst error of each of `functions`, which are one function in several instruction sets.
template <class T>
std::vector<Worst> measure(const Truth& truth, const std::vector<MathFunction>& functions,
                           std::uint64_t points, const Options& options) {
  using Wide = decltype(call(truth, T()));
  std::vector<std::vector<Worst>> found(options.threads, std::vector<Worst>(functions.size()));
  std::atomic<std::uint64_t> next{0};
  auto work = [&](std::vector<Worst>& worst) {
    alignas(64) T x[kBlock], y[kBlock];
    std::vector<Wide> want(kBlock);
    for (;;) {
      const std::uint64_t from = next.fetch_add(kBlock);
      if (from >= points) return;
      // Beyond the last point the last block repeats it.
      for (Index i = 0; i < kBlock; ++i) {
        const std::uint64_t at = std::min(from + static_cast<std::uint64_t>(i), points - 1);
        x[i] = point(at, options, truth.range, T());
        want[static_cast<std::size_t>(i)] = call(truth, x[i]);
      }
      for (std::size_t f = 0; f < functions.size(); ++f) {
        call(functions[f], x, y, kBlock);
        for (Index i = 0; i < kBlock; ++i)
          worst[f].take(
              {ulps<T, Wide>(y[i], want[static_cast<std::size_t>(i)]), static_cast<double>(x[i])});
      }
    }
  };
  std::vector<std::thread> threads;
  for (std::vector<Worst>& worst : found) threads.emplace_back([&] { work(worst); });
  for (std::thread& thread : threads) thread.join();
  for (std::size_t t = 1; t < found.size(); ++t)
    for (std::size_t f = 0; f < functions.size(); ++f) found[0][f].take(found[t][f]);
  return found[0];
}

struct Unit {
  const char* name;
  const MathFunction* functions;
};

template <class T>
void report(const Truth& truth, const std::vector<Unit>& units, std::uint64_t points,
            const Options& options) {
  std::vector<MathFunction> functions;
  for (const Unit& unit : units)
    for (const MathFunction* f = unit.functions; f->name; ++f)
      if (std::strcmp(f->name, truth.name) == 0) functions.push_back(*f);
  const std::vector<Worst> worst = measure<T>(truth, functions, points, options);
  for (std::size_t u = 0; u < units.size(); ++u)
    std::printf("%s\t%s\t%s\t%llu\t%.4f\t%.9g\n", truth.name,
                std::is_same_v<T, float> ? "float32" : "float64", units[u].name,
                static_cast<unsigned long long>(points), worst[u].ulps, worst[u].where);
  std::fflush(stdout);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--only") {
      options.only = argv[i + 1];
      continue;
    }
    const unsigned long long value = std::strtoull(argv[i + 1], nullptr, 10);
    if (value > 0 && name == "--stride")
      options.stride = value;
    else if (value > 0 && name == "--doubles")
      options.doubles = value;
    else if (value > 0 && name == "--threads")
      options.threads = static_cast<unsigned>(value);
    else
      argc = 0;
  }
  if (argc % 2 == 0) {
    std::fprintf(stderr, "usage: %s [--only NAME] [--stride N] [--doubles N] [--threads N]\n",
                 argv[0]);
    std::exit(2);
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  std::vector<Unit> units;
  for (const Unit& unit :
       {Unit{"v2", gradstack::v2_math_functions()}, Unit{"v3", gradstack::v3_math_functions()},
        Unit{"v4", gradstack::v4_math_functions()}, Unit{"neon", gradstack::neon_math_functions()}})
    if (unit.functions && gradstack::cpu_supports(unit.name)) units.push_back(unit);
  const std::uint64_t floats = ((std::uint64_t{1} << 32) + options.stride - 1) / options.stride;
  for (const Truth& truth : kTruths) {
    if (!options.only.empty() && options.only != truth.name) continue;
    report<float>(truth, units, floats, options);
    report<double>(truth, units, options.doubles, options);
  }
  return 0;
}

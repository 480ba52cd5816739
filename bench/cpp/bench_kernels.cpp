// Speed of every kernel on every instruction set of this machine, as a share of the FMA peak where
// arithmetic is the limit and in bytes per second where memory is.
//
//   bench_kernels --benchmark_filter='gemm/.*/f32/v3'
//
// Each benchmark first compares its result with the reference backend and fails if they differ.
// Shared machines change speed from second to second: use --benchmark_repetitions and read the
// minimum.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "fma_peak.hpp"
#include "gradstack/ops.hpp"
#include "gradstack/random.hpp"
#include "gradstack/registry.hpp"
#include "gradstack/updates.hpp"

namespace {

using gradstack::Gemm;
using gradstack::Index;
using gradstack::Kernels;
using gradstack::kLanes;

template <class T> std::vector<T> random_values(Index n, unsigned seed = 1) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<T> uniform(T(-1), T(1));
  std::vector<T> values(static_cast<std::size_t>(n));
  for (T& x : values) x = uniform(generator);
  return values;
}

template <class T> bool close(const std::vector<T>& a, const std::vector<T>& b, double factor) {
  const double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(static_cast<double>(a[i] - b[i])) <= factor * eps)) return false;
  }
  return true;
}

template <class T> const char* dtype();
template <> const char* dtype<float>() { return "f32"; }
template <> const char* dtype<double>() { return "f64"; }

void report_flops(benchmark::State& state, double flops, double peak) {
  const double total = flops * static_cast<double>(state.iterations());
  state.counters["flops"] = benchmark::Counter(total, benchmark::Counter::kIsRate);
  if (peak > 0) {
    state.counters["%peak"] = benchmark::Counter(100 * total / peak, benchmark::Counter::kIsRate);
  }
}

template <class T, class F>
void add_benchmark(const std::string& what, const Kernels<T>& kernels, F&& run) {
  const std::string name = what + "/" + dtype<T>() + "/" + kernels.name;
  benchmark::RegisterBenchmark(name.c_str(), run);
}

struct Product {
  std::string name;
  Index m, n, k, segments, blocks;
  bool transposed;
  Index pad;
};

// The three products of a layer out x in: whole, and the bands of 24 rows that threads work on.
std::vector<Product> products() {
  std::vector<Product> all;
  for (const Index k : {2, 4, 8}) {  // thin ones: of few inputs, or few outputs on the way back
    const std::string size = "64x" + std::to_string(k);
    all.push_back({"forward/" + size, 64, kLanes, k, 1, 1, false, 0});
    all.push_back({"dz/" + size, 64, kLanes, k, 1, 1, true, 0});
  }
  for (const Index d : {64, 784}) {  // of eight samples
    const std::string size = "64x" + std::to_string(d) + ",8";
    all.push_back({"forward/" + size, 64, 8, d, 1, 1, false, 0});
    all.push_back({"dz/" + size, 64, 8, d, 1, 1, true, 0});
  }
  for (const Index d : {64, 256, 784, 1024}) {
    for (const Index pad : {0, 16}) {
      for (const Index rows : {Index(24), d}) {
        const std::string size = std::to_string(rows) + "x" + std::to_string(d) +
                                 (pad > 0 ? "+" + std::to_string(pad) : "");
        all.push_back({"forward/" + size, rows, kLanes, d, 1, 1, false, pad});
        all.push_back({"dz/" + size, rows, kLanes, d, 1, 1, true, pad});
        all.push_back({"dw/" + size, rows, d, kLanes, 4, 1, false, pad});
        all.push_back({"dw_tiled/" + size, rows, kLanes, kLanes, 4, d / kLanes, false, pad});
      }
    }
  }
  return all;
}

template <class T> void add_products(const Kernels<T>& kernels, double peak) {
  for (const Product& p : products()) {
    add_benchmark("gemm/" + p.name, kernels, [=, &kernels](benchmark::State& state) {
      const bool dw = p.name.rfind("dw", 0) == 0;
      const Index width = p.blocks * p.n;  // columns of C
      Gemm<T> g{.m = p.m, .n = p.n, .k = p.k, .segments = p.segments};
      g.a_row = p.transposed ? 1 : p.k + (dw ? 0 : p.pad);
      g.a_col = p.transposed ? p.k + p.pad : 1;
      g.a_seg = p.m * p.k;
      g.ldb = p.n + (dw && p.blocks == 1 ? p.pad : 0);
      g.b_block = p.k * p.n;
      g.b_seg = p.blocks * p.k * g.ldb;
      g.ldc = width + (dw ? p.pad : 0);
      g.blocks = p.blocks;
      g.c_block = p.n;
      const auto a = random_values<T>(std::max(p.m, p.k) * (std::max(p.m, p.k) + p.pad) * 4);
      const auto b = random_values<T>(g.b_seg * p.segments);
      std::vector<T> c(static_cast<std::size_t>(p.m * g.ldc)), want = c;
      g.a = a.data();
      g.b = b.data();
      g.c = want.data();
      gradstack::reference_kernels(T()).gemm(g);
      g.c = c.data();
      kernels.gemm(g);
      if (!close(c, want, 2.0 * static_cast<double>(p.k * p.segments))) {
        state.SkipWithError("wrong result");
      }
      for (auto _ : state) kernels.gemm(g);
      report_flops(state, 2.0 * static_cast<double>(p.m * width * p.k * p.segments), peak);
    });
  }
}

template <class T> void add_single_sample(const Kernels<T>& kernels) {
  const std::vector<std::pair<Index, Index>> layers = {
      {64, 4},  {64, 64},   {2, 64},    {60, 600}, {40, 60},
      {10, 40}, {256, 784}, {128, 256}, {10, 128}, {1024, 1024}};
  for (const auto& [out, in] : layers) {
    const Index m = out, k = in;
    const std::string size = std::to_string(m) + "x" + std::to_string(k);
    const auto bytes = static_cast<std::int64_t>(m * k) * static_cast<std::int64_t>(sizeof(T));
    for (const Index samples : {1, 2, 4}) {
      const std::string batch = samples == 1 ? "" : "/" + std::to_string(samples) + " samples";
      add_benchmark("gemv/" + size + batch, kernels, [=, &kernels](benchmark::State& state) {
        const auto a = random_values<T>(m * k), x = random_values<T>(samples * k),
                   bias = random_values<T>(m);
        std::vector<T> y(static_cast<std::size_t>(samples * m));
        // So many long sums: in float the reference would be further off than the kernel.
        const std::vector<double> a2(a.begin(), a.end()), x2(x.begin(), x.end()),
            bias2(bias.begin(), bias.end());
        std::vector<double> exact(y.size());
        gradstack::reference_kernels(double()).gemv_few(samples, m, k, a2.data(), k, x2.data(), k,
                                                        bias2.data(), exact.data(), m);
        const std::vector<T> want(exact.begin(), exact.end());
        const auto run = [&] {
          if (samples == 1)
            kernels.gemv(m, k, a.data(), k, x.data(), bias.data(), y.data());
          else
            kernels.gemv_few(samples, m, k, a.data(), k, x.data(), k, bias.data(), y.data(), m);
        };
        run();
        if (!close(y, want, 2.0 * static_cast<double>(k))) state.SkipWithError("wrong result");
        for (auto _ : state) {
          run();
          benchmark::ClobberMemory();
        }
        state.SetBytesProcessed(bytes * static_cast<std::int64_t>(state.iterations()));
      });
    }
    add_benchmark("gemv_t/" + size, kernels, [=, &kernels](benchmark::State& state) {
      const auto a = random_values<T>(m * k), y = random_values<T>(m);
      std::vector<T> x(static_cast<std::size_t>(k)), want = x;
      gradstack::reference_kernels(T()).gemv_t(m, k, a.data(), k, y.data(), want.data(), false);
      kernels.gemv_t(m, k, a.data(), k, y.data(), x.data(), false);
      if (!close(x, want, 2.0 * static_cast<double>(m))) state.SkipWithError("wrong result");
      for (auto _ : state) {
        kernels.gemv_t(m, k, a.data(), k, y.data(), x.data(), false);
        benchmark::ClobberMemory();
      }
      state.SetBytesProcessed(bytes * static_cast<std::int64_t>(state.iterations()));
    });
    add_benchmark("ger/" + size, kernels, [=, &kernels](benchmark::State& state) {
      const auto x = random_values<T>(k), y = random_values<T>(m);
      std::vector<T> a(static_cast<std::size_t>(m * k)), want = a;
      gradstack::reference_kernels(T()).ger(m, k, y.data(), x.data(), want.data(), k, false);
      kernels.ger(m, k, y.data(), x.data(), a.data(), k, false);
      if (a != want) state.SkipWithError("wrong result");
      for (auto _ : state) {
        kernels.ger(m, k, y.data(), x.data(), a.data(), k, false);
        benchmark::ClobberMemory();
      }
      state.SetBytesProcessed(bytes * static_cast<std::int64_t>(state.iterations()));
    });
  }
}

template <class T> void add_layout(const Kernels<T>& kernels) {
  for (const Index d : {10, 64, 784, 1024}) {
    const std::string size = std::to_string(d);
    const auto bytes =
        static_cast<std::int64_t>(2 * d * kLanes) * static_cast<std::int64_t>(sizeof(T));
    add_benchmark("rows_to_block/" + size, kernels, [=, &kernels](benchmark::State& state) {
      const auto rows = random_values<T>(d * kLanes);
      std::vector<T> block(rows.size()), want = block;
      gradstack::reference_kernels(T()).rows_to_block(kLanes, d, kLanes, rows.data(), d,
                                                      want.data());
      kernels.rows_to_block(kLanes, d, kLanes, rows.data(), d, block.data());
      if (block != want) state.SkipWithError("wrong result");
      for (auto _ : state) {
        kernels.rows_to_block(kLanes, d, kLanes, rows.data(), d, block.data());
        benchmark::ClobberMemory();
      }
      state.SetBytesProcessed(bytes * static_cast<std::int64_t>(state.iterations()));
    });
    add_benchmark("gather_rows/" + size, kernels, [=, &kernels](benchmark::State& state) {
      const auto values = random_values<T>(d * kLanes);
      const Index panels = (d + gradstack::kPanel - 1) / gradstack::kPanel;
      std::vector<T> tiles(static_cast<std::size_t>(panels * gradstack::kPanel * kLanes));
      std::vector<T> block(values.size()), want_tiles = tiles, want = block;
      const T* rows[kLanes];
      for (Index i = 0; i < kLanes; ++i) rows[i] = values.data() + (7 * i % kLanes) * d;
      gradstack::reference_kernels(T()).gather_rows(kLanes, d, kLanes, rows, want.data(),
                                                    want_tiles.data());
      const auto gather = [&] {
        kernels.gather_rows(kLanes, d, kLanes, rows, block.data(), tiles.data());
      };
      gather();
      if (block != want || tiles != want_tiles) state.SkipWithError("wrong result");
      for (auto _ : state) {
        gather();
        benchmark::ClobberMemory();
      }
      state.SetBytesProcessed(3 * bytes / 2 * static_cast<std::int64_t>(state.iterations()));
    });
    add_benchmark("block_to_rows/" + size, kernels, [=, &kernels](benchmark::State& state) {
      const auto block = random_values<T>(d * kLanes);
      std::vector<T> rows(block.size()), want = rows;
      gradstack::reference_kernels(T()).block_to_rows(kLanes, d, kLanes, block.data(), want.data(),
                                                      d, false);
      kernels.block_to_rows(kLanes, d, kLanes, block.data(), rows.data(), d, false);
      if (rows != want) state.SkipWithError("wrong result");
      for (auto _ : state) {
        kernels.block_to_rows(kLanes, d, kLanes, block.data(), rows.data(), d, false);
        benchmark::ClobberMemory();
      }
      state.SetBytesProcessed(bytes * static_cast<std::int64_t>(state.iterations()));
    });
    add_benchmark("sum_lanes/" + size, kernels, [=, &kernels](benchmark::State& state) {
      const auto x = random_values<T>(d * kLanes);
      std::vector<T> sums(static_cast<std::size_t>(d)), want = sums;
      gradstack::reference_kernels(T()).sum_lanes(d, kLanes, 1, 0, x.data(), want.data(), false);
      kernels.sum_lanes(d, kLanes, 1, 0, x.data(), sums.data(), false);
      if (!close(sums, want, 2.0 * kLanes)) state.SkipWithError("wrong result");
      for (auto _ : state) {
        kernels.sum_lanes(d, kLanes, 1, 0, x.data(), sums.data(), false);
        benchmark::ClobberMemory();
      }
      state.SetBytesProcessed(bytes / 2 * static_cast<std::int64_t>(state.iterations()));
    });
    for (const bool log : {false, true}) {
      add_benchmark(
          (log ? "log_softmax/" : "softmax/") + size, kernels,
          [=, &kernels](benchmark::State& state) {
            const auto s = random_values<T>(d * kLanes);
            std::vector<T> z(s.size()), want = z;
            gradstack::reference_kernels(T()).softmax(d, kLanes, s.data(), want.data(), log);
            kernels.softmax(d, kLanes, s.data(), z.data(), log);
            if (!close(z, want, 2.0 * static_cast<double>(d + 20))) {
              state.SkipWithError("wrong result");
            }
            for (auto _ : state) {
              kernels.softmax(d, kLanes, s.data(), z.data(), log);
              benchmark::ClobberMemory();
            }
            state.SetItemsProcessed(d * kLanes * static_cast<std::int64_t>(state.iterations()));
          });
    }
    add_benchmark("dropout/" + size, kernels, [=, &kernels](benchmark::State& state) {
      const auto s = random_values<T>(d * kLanes);
      std::vector<std::uint64_t> key;
      for (std::uint64_t l = 0; l < kLanes; ++l) key.push_back(gradstack::sample_key(1, 2, 3, l));
      std::vector<T> z(s.size()), want = z;
      gradstack::reference_kernels(T()).dropout(d, kLanes, key.data(), 1U << 31, T(2), s.data(),
                                                want.data(), false);
      kernels.dropout(d, kLanes, key.data(), 1U << 31, T(2), s.data(), z.data(), false);
      if (z != want) state.SkipWithError("wrong result");
      for (auto _ : state) {
        kernels.dropout(d, kLanes, key.data(), 1U << 31, T(2), s.data(), z.data(), false);
        benchmark::ClobberMemory();
      }
      state.SetItemsProcessed(d * kLanes * static_cast<std::int64_t>(state.iterations()));
    });
  }
}

template <class T> void add_tables(const Kernels<T>& kernels) {
  constexpr Index n = 2048;  // in L1 with room to spare
  for (int id = 0; id < gradstack::kNumOps; ++id) {
    const auto& info = gradstack::op_info(id);
    for (const bool backward : {false, true}) {
      add_benchmark(std::string(info.name) + (backward ? "/backward" : "/forward"), kernels,
                    [=, &kernels](benchmark::State& state) {
                      double p[gradstack::kMaxOpParams] = {};
                      for (int i = 0; i < info.n_params; ++i) p[i] = info.params[i].value;
                      const auto s = random_values<T>(n), dz = random_values<T>(n, 2);
                      std::vector<T> z(s.size());
                      const auto& kernel = kernels.pointwise[id];
                      kernel.forward(n, p, s.data(), z.data());
                      for (auto _ : state) {
                        if (backward) {
                          kernel.backward(n, p, s.data(), kernel.has_d1_from_z ? z.data() : nullptr,
                                          dz.data(), z.data());
                        } else {
                          kernel.forward(n, p, s.data(), z.data());
                        }
                        benchmark::ClobberMemory();
                      }
                      state.SetItemsProcessed(n * static_cast<std::int64_t>(state.iterations()));
                    });
    }
  }
  for (int id = 0; id < gradstack::kNumRules; ++id) {
    const auto& info = gradstack::rule_info(id);
    add_benchmark(
        std::string("update/") + info.name, kernels, [=, &kernels](benchmark::State& state) {
          double hyper[gradstack::kMaxHyper] = {}, scalars[gradstack::kMaxUpdateScalars] = {};
          double c[gradstack::kMaxUpdateConstants] = {};
          for (int i = 0; i < info.n_hyper; ++i) hyper[i] = info.hyper[i].value;
          for (int i = 0; i < info.n_scalars; ++i) scalars[i] = info.scalars[i].value;
          gradstack::rule_constants(id, hyper, 1e-6, 10, scalars, c);
          auto w = random_values<T>(n), g = random_values<T>(n, 2);
          std::vector<std::vector<T>> states(4, std::vector<T>(n, T(1)));
          gradstack::UpdateArgs<T> args{.n = n, .w = w.data(), .g = g.data(), .c = c};
          for (int k = 0; k < info.n_state; ++k) {
            if (gradstack::rule_uses_state(id, hyper, k)) {
              args.state[k] = states[static_cast<std::size_t>(k)].data();
            }
          }
          for (auto _ : state) {
            kernels.update[id](args);
            benchmark::ClobberMemory();
          }
          state.SetItemsProcessed(n * static_cast<std::int64_t>(state.iterations()));
        });
  }
}

template <class T> void add_all() {
  for (const Kernels<T>* kernels : gradstack::available_kernels<T>()) {
    const double peak = gradstack_bench::fma_peak(kernels->name, sizeof(T) == 4);
    benchmark::AddCustomContext(std::string("peak ") + dtype<T>() + " " + kernels->name,
                                std::to_string(peak * 1e-9) + " GFLOP/s");
    add_products(*kernels, peak);
    add_single_sample(*kernels);
    add_layout(*kernels);
    add_tables(*kernels);
  }
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  add_all<float>();
  add_all<double>();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

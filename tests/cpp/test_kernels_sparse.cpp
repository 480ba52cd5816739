// Products with sparse matrices given by their edges, and the lists of edges themselves.
#include <algorithm>
#include <random>
#include <stdexcept>

#include "gradstack/connectivity.hpp"
#include "kernel_cases.hpp"

using namespace kernel_cases;
using gradstack::Connectivity;

namespace {

std::vector<std::int32_t> random_edges(Index out, Index in, double share, unsigned seed) {
  std::mt19937 generator(seed);
  std::bernoulli_distribution present(share);
  std::vector<std::pair<std::int32_t, std::int32_t>> pairs;
  for (Index i = 0; i < out; ++i)
    for (Index j = 0; j < in; ++j)
      if (present(generator))
        pairs.emplace_back(static_cast<std::int32_t>(i), static_cast<std::int32_t>(j));
  if (pairs.empty()) pairs.emplace_back(0, 0);
  std::shuffle(pairs.begin(), pairs.end(), generator);
  std::vector<std::int32_t> edges;
  for (const auto& [i, j] : pairs) {
    edges.push_back(i);
    edges.push_back(j);
  }
  return edges;
}

template <class T>
gradstack::SparseRows<T> rows_of(const gradstack::Terms& terms, Index rows, Index lanes, const T* w,
                                 const T* x, T* y) {
  gradstack::SparseRows<T> p;
  p.rows = rows;
  p.lanes = lanes;
  p.begin = terms.begin.data();
  p.other = terms.other.data();
  p.edge = terms.edge.data();
  p.w = w;
  p.x = x;
  p.y = y;
  return p;
}

}  // namespace

TEST_CASE_TEMPLATE("sparse rows: both directions, with and without bias, added or not", T, float,
                   double) {
  for (const Index lanes : {Index(1), kLanes}) {
    for (const Index out : {1, 5, 33}) {
      for (const Index in : {1, 7, 64}) {
        CAPTURE(lanes);
        CAPTURE(out);
        CAPTURE(in);
        const Connectivity edges(out, in, random_edges(out, in, 0.3, 1));
        const auto w = random_array<T>(edges.size(), 2);
        for (const bool forward : {true, false}) {
          const auto& terms = forward ? edges.by_out() : edges.by_in();
          const Index rows = forward ? out : in, others = forward ? in : out;
          const auto x = random_array<T>(others * lanes, 3), bias = random_array<T>(rows, 4),
                     start = random_array<T>(rows * lanes, 5);
          const auto wide_w = to_double(w), wide_x = to_double(x), wide_bias = to_double(bias);
          const auto magnitude_w = absolute(wide_w), magnitude_x = absolute(wide_x),
                     magnitude_bias = absolute(wide_bias);
          for (const bool accumulate : {false, true}) {
            Guarded<double> want = to_double(start), bound = absolute(want);
            auto p = rows_of(terms, rows, lanes, wide_w.data(), wide_x.data(), want.data());
            p.accumulate = accumulate;
            if (!accumulate) p.bias = wide_bias.data();
            oracle().sparse_rows(p);
            auto b =
                rows_of(terms, rows, lanes, magnitude_w.data(), magnitude_x.data(), bound.data());
            b.accumulate = accumulate;
            if (!accumulate) b.bias = magnitude_bias.data();
            oracle().sparse_rows(b);
            for_each_kernels<T>([&](const Kernels<T>& kernels) {
              Guarded<T> got = start;
              auto q = rows_of(terms, rows, lanes, w.data(), x.data(), got.data());
              q.accumulate = accumulate;
              if (!accumulate) q.bias = bias.data();
              kernels.sparse_rows(q);
              CHECK(worst_error(got, want, bound, static_cast<double>(others + 2)) <= 1.0);
              CHECK(got.guards_intact());
            });
          }
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("sparse products: one sum over blocks and lanes for each edge", T, float,
                   double) {
  const Index out = 13, in = 9;
  const auto list = random_edges(out, in, 0.4, 6);
  const Index n = static_cast<Index>(list.size()) / 2;
  for (const Index lanes : {Index(1), kLanes}) {
    for (const Index segments : {1, 2, 5}) {
      const auto a = random_array<T>(segments * out * lanes, 7),
                 b = random_array<T>(segments * in * lanes, 8), start = random_array<T>(n, 9);
      for (const bool accumulate : {false, true}) {
        CAPTURE(lanes);
        CAPTURE(segments);
        Guarded<double> want = to_double(start), bound = absolute(want);
        for (Index e = 0; e < n; ++e) {
          double sum = 0, magnitude = 0;
          for (Index s = 0; s < segments; ++s)
            for (Index l = 0; l < lanes; ++l) {
              const double product =
                  static_cast<double>(
                      a[(s * out + list[static_cast<std::size_t>(2 * e)]) * lanes + l]) *
                  static_cast<double>(
                      b[(s * in + list[static_cast<std::size_t>(2 * e + 1)]) * lanes + l]);
              sum += product;
              magnitude += std::abs(product);
            }
          want[e] = accumulate ? want[e] + sum : sum;
          bound[e] += magnitude;
        }
        for_each_kernels<T>([&](const Kernels<T>& kernels) {
          Guarded<T> got = start;
          gradstack::SparseProducts<T> p;
          p.n = n;
          p.lanes = lanes;
          p.segments = segments;
          p.edges = list.data();
          p.a = a.data();
          p.a_segment = out * lanes;
          p.b = b.data();
          p.b_segment = in * lanes;
          p.out = got.data();
          p.accumulate = accumulate;
          kernels.sparse_products(p);
          CHECK(worst_error(got, want, bound, static_cast<double>(segments * lanes + 2)) <= 1.0);
          CHECK(got.guards_intact());
        });
      }
    }
  }
}

TEST_CASE("connectivity: both groupings hold every edge once, bad edges are named") {
  const auto list = random_edges(12, 8, 0.3, 3);
  const Connectivity edges(12, 8, list);
  std::vector<int> seen(list.size() / 2);
  for (std::size_t i = 0; i < 12; ++i)
    for (Index t = edges.by_out().begin[i]; t < edges.by_out().begin[i + 1]; ++t) {
      const auto e = static_cast<std::size_t>(edges.by_out().edge[static_cast<std::size_t>(t)]);
      CHECK(list[2 * e] == static_cast<std::int32_t>(i));
      CHECK(list[2 * e + 1] == edges.by_out().other[static_cast<std::size_t>(t)]);
      ++seen[e];
    }
  for (std::size_t j = 0; j < 8; ++j)
    for (Index t = edges.by_in().begin[j]; t < edges.by_in().begin[j + 1]; ++t) {
      const auto e = static_cast<std::size_t>(edges.by_in().edge[static_cast<std::size_t>(t)]);
      CHECK(list[2 * e + 1] == static_cast<std::int32_t>(j));
      ++seen[e];
    }
  CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 2; }));
  CHECK_THROWS_WITH_AS(Connectivity(3, 4, {0, 0, 3, 1}),
                       "edges[1] is (3, 1), expected units below (3, 4)", std::invalid_argument);
  CHECK_THROWS_WITH_AS(Connectivity(3, 4, {2, 1, 0, 0, 2, 1}),
                       "edges[2] is (2, 1), which occurs before", std::invalid_argument);
}

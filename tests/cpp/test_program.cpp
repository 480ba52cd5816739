// Programs and linearisations of random block diagrams against a naive interpreter: predictions,
// products with the Jacobian from both sides, for every dtype and every set of kernels.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "gradstack/program.hpp"
#include "support/interpreter.hpp"
#include "support/random_graphs.hpp"

using namespace test;
using gradstack::CallOptions;
using gradstack::Kernels;
using gradstack::Linearization;
using gradstack::Program;

namespace {

// A graph at a point, a direction and a cotangent, with what the oracle says about them.
struct Problem {
  std::shared_ptr<const Graph> graph;
  Index count;
  Values w, dw;
  std::vector<Values> xs, dxs, us;  // us: per output
  std::vector<std::vector<Real>> outputs;
  std::vector<std::vector<Real>> along_x, along_w;  // J (dx, 0) and J (0, dw)
  Real u_along_x = 0, u_along_w = 0;                // their products with u

  Problem(std::shared_ptr<const Graph> g, Index n, unsigned seed) : graph(std::move(g)), count(n) {
    w = random_parameters(*graph, seed);
    dw = random_values(graph->n_params(), seed + 100);
    xs = random_inputs(*graph, count, seed + 200);
    dxs = random_inputs(*graph, count, seed + 300);
    const Outputs x = interpret(*graph, w, xs, count, dxs, {});
    outputs = x.values;
    along_x = x.tangents;
    along_w = interpret(*graph, w, xs, count, {}, dw).tangents;
    for (std::size_t k = 0; k < outputs.size(); ++k) {
      us.push_back(random_values(static_cast<Index>(outputs[k].size()),
                                 seed + 400 + static_cast<unsigned>(k)));
      for (std::size_t i = 0; i < us[k].size(); ++i) {
        u_along_x += us[k][i] * along_x[k][i];
        u_along_w += us[k][i] * along_w[k][i];
      }
    }
  }
};

template <class T>
std::vector<std::vector<T>> empty_like(const std::vector<std::vector<Real>>& rows) {
  std::vector<std::vector<T>> result;
  for (const auto& r : rows) result.emplace_back(r.size(), T(-77));
  return result;
}

template <class T> std::vector<T*> pointers(std::vector<std::vector<T>>& rows) {
  std::vector<T*> result;
  for (auto& r : rows) result.push_back(r.data());
  return result;
}

template <class T> std::vector<const T*> const_pointers(const std::vector<std::vector<T>>& rows) {
  std::vector<const T*> result;
  for (const auto& r : rows) result.push_back(r.data());
  return result;
}

template <class T> struct Answers {
  std::vector<std::vector<T>> forward, outputs, along_x, along_w, dxs;
  std::vector<T> dw;
};

template <class T> Answers<T> answer(const Problem& p, const Kernels<T>& kernels, int threads) {
  const std::vector<T> w = cast<T>(p.w), dw = cast<T>(p.dw);
  const auto xs = cast_all<T>(p.xs), dxs = cast_all<T>(p.dxs), us = cast_all<T>(p.us);
  const CallOptions options{.threads = threads};
  Answers<T> a;
  a.forward = a.outputs = a.along_x = a.along_w = empty_like<T>(p.outputs);
  Program<T>(p.graph, kernels)
      .forward(w.data(), row_sources(xs, p.count), p.count, pointers(a.forward), options);
  Linearization<T> line(p.graph, kernels, w.data(), row_sources(xs, p.count), p.count, true,
                        options);
  for (std::size_t k = 0; k < a.outputs.size(); ++k) line.output(k, a.outputs[k].data());
  const std::vector<const T*> nothing(dxs.size(), nullptr);
  line.jvp(const_pointers(dxs), nullptr, pointers(a.along_x));
  line.jvp(nothing, dw.data(), pointers(a.along_w));
  a.dw.assign(w.size(), T(-77));
  for (const auto& x : xs) a.dxs.emplace_back(x.size(), T(-77));
  line.vjp(const_pointers(us), pointers(a.dxs), a.dw.data());
  // A pullback can be called again, for a part of the answer, and after other calls.
  std::vector<T> dw_again(w.size(), T(5));
  std::vector<std::vector<T>> dxs_again = a.dxs;
  line.vjp(std::vector<const T*>(us.size(), nullptr), std::vector<T*>(xs.size(), nullptr),
           dw_again.data());
  CHECK(std::all_of(dw_again.begin(), dw_again.end(), [](T d) { return d == T(0); }));
  line.vjp(const_pointers(us), std::vector<T*>(xs.size(), nullptr), dw_again.data());
  line.vjp(const_pointers(us), pointers(dxs_again), nullptr);
  CHECK(same_bits(dw_again, a.dw));
  for (std::size_t i = 0; i < xs.size(); ++i) CHECK(same_bits(dxs_again[i], a.dxs[i]));
  return a;
}

// Errors are in units of eps times the scale of the result; a graph of a dozen blocks rounds a few
// hundred times on the way.
constexpr double kTolerance = 300;

template <class T> void check_against_oracle(const Problem& p, const Answers<T>& a) {
  for (std::size_t k = 0; k < p.outputs.size(); ++k) {
    CAPTURE(k);
    CHECK(worst_error(a.forward[k], p.outputs[k]) < kTolerance);
    CHECK(worst_error(a.outputs[k], p.outputs[k]) < kTolerance);
    CHECK(worst_error(a.along_x[k], p.along_x[k]) < kTolerance);
    CHECK(worst_error(a.along_w[k], p.along_w[k]) < kTolerance);
  }
  // <J^T u, v> = <u, J v>
  Inner x, w;
  for (std::size_t i = 0; i < p.dxs.size(); ++i) x.add(a.dxs[i], p.dxs[i]);
  w.add(a.dw, p.dw);
  CHECK(x.template error<T>(p.u_along_x) < kTolerance);
  CHECK(w.template error<T>(p.u_along_w) < kTolerance);
}

template <class T> void check_same(const Answers<T>& a, const Answers<T>& b) {
  const auto same = [](const std::vector<std::vector<T>>& u, const std::vector<std::vector<T>>& v) {
    for (std::size_t i = 0; i < u.size(); ++i) CHECK(same_bits(u[i], v[i]));
  };
  same(a.forward, b.forward);
  same(a.outputs, b.outputs);
  same(a.along_x, b.along_x);
  same(a.along_w, b.along_w);
  same(a.dxs, b.dxs);
  CHECK(same_bits(a.dw, b.dw));
}

template <class T> void check(const Problem& p) {
  for (const Kernels<T>* kernels : gradstack::available_kernels<T>()) {
    const std::string name = kernels->name;
    CAPTURE(name);
    const Answers<T> alone = answer(p, *kernels, 1);
    check_against_oracle(p, alone);
    check_same(alone, answer(p, *kernels, 3));
  }
}

const Index kBatches[] = {1, 2, 3, 4, 31, 32, 33, 64, 100, 130};

}  // namespace

TEST_CASE("the oracle's derivatives are those of its values") {
  // Central differences of fourth order, on smooth blocks.
  Net net;
  const std::string x = net.input({3}), h = net.pointwise(net.linear(x, 5), "gelu");
  const std::string positive =
      net.pointwise(net.pointwise(h, "softplus", {1.0, 20.0}), "affine", {1.0, 0.5});
  const std::string q = net.binary(Kind::Div, net.pointwise(h, "elu", {0.7}), positive);
  const std::string both =
      net.concat({net.softmax(q), net.softmax(net.pointwise(q, "sine"), true)});
  const auto graph = net.finish({net.binary(Kind::Mul, both, net.pointwise(both, "silu"))});
  const Values w = random_parameters(*graph, 1), dw = random_values(graph->n_params(), 2);
  const std::vector<Values> xs = random_inputs(*graph, 2, 3), dxs = random_inputs(*graph, 2, 4);
  const auto derivative = interpret(*graph, w, xs, 2, dxs, dw).tangents[0];
  // Offsets are powers of two, so that moved points are exact in double.
  const auto moved = [&](double step) {
    Values to = w, at_x = xs[0];
    for (std::size_t i = 0; i < w.size(); ++i) to[i] += step * dw[i];
    for (std::size_t i = 0; i < at_x.size(); ++i) at_x[i] += step * dxs[0][i];
    return interpret(*graph, to, {at_x}, 2)[0];
  };
  const double h1 = 0x1p-10;
  const auto p1 = moved(h1), m1 = moved(-h1), p2 = moved(2 * h1), m2 = moved(-2 * h1);
  for (std::size_t i = 0; i < derivative.size(); ++i) {
    const Real difference = (8 * (p1[i] - m1[i]) - (p2[i] - m2[i])) / (12 * h1);
    CHECK(std::abs(static_cast<double>(difference - derivative[i])) < 1e-9);
  }
}

TEST_CASE("random block diagrams") {
  for (unsigned seed = 1; seed <= 32; ++seed) {
    CAPTURE(seed);
    const Index count = kBatches[seed % std::size(kBatches)];
    CAPTURE(count);
    const Problem problem(RandomGraph(seed).build(), count, seed);
    check<float>(problem);
    check<double>(problem);
  }
}

TEST_CASE("one diagram with everything, at every batch size") {
  Net net;
  const std::string x = net.input({17}), u = net.input({1, 3}), idle = net.input({2});
  const std::string a = net.pointwise(net.linear(x, 33), "tanh");
  const std::string b = net.linear(a, 33, {.mask = random_mask(33, 33, 0.3, 5)});
  const std::string c =
      net.linear(net.pointwise(b, "relu"), 33, {.mask = random_mask(33, 33, 0.3, 5), .share = b});
  const std::string residual = net.binary(Kind::Add, a, c);
  const std::string squared = net.binary(Kind::Mul, residual, residual);
  const std::string halves =
      net.concat({net.slice(squared, 0, 20), net.slice(squared, 10, 33), net.reshape(u, {3})});
  const std::string p = net.softmax(halves), logp = net.softmax(halves, true);
  const std::string entropy = net.linear(net.binary(Kind::Mul, p, logp), 1, {.bias = false});
  net.unused_parameter("spare", {3, 2});
  // An input that is an output, an output used inside, the same output twice.
  const auto graph = net.finish({entropy, residual, u, residual, idle});
  for (const Index count : kBatches) {
    CAPTURE(count);
    const Problem problem(graph, count, 7);
    check<float>(problem);
    check<double>(problem);
  }
}

TEST_CASE("parameters that no output depends on have gradient zero") {
  Net net;
  const std::string x = net.input({4});
  const std::string y = net.linear(x, 3);
  net.linear(x, 2);
  net.unused_parameter("spare", {5});
  const auto graph = net.finish({y});
  const Index live = 4 * 3 + 3;
  const Values w = random_parameters(*graph, 1), x0 = random_values(8, 2);
  Linearization<double> line(graph, best_kernels<double>(), w.data(), {rows(x0, 2)}, 2, false, {});
  const Values u = random_values(6, 3);
  Values dw(at(graph->n_params()), 9.0);
  line.vjp({u.data()}, {nullptr}, dw.data());
  for (Index i = 0; i < graph->n_params(); ++i) CHECK((dw[at(i)] == 0) == (i >= live));
}

TEST_CASE("a linearisation belongs to its own point") {
  const auto graph = gradstack::mlp({5, 9, 2}, "tanh");
  Values w = random_parameters(*graph, 1), x = random_values(15, 2);
  const Values u = random_values(6, 3);
  Linearization<double> line(graph, best_kernels<double>(), w.data(), {rows(x, 3)}, 3, false, {});
  Values before(w.size()), after(w.size()), dx(x.size());
  line.vjp({u.data()}, {dx.data()}, before.data());
  std::fill(w.begin(), w.end(), 0.0);
  std::fill(x.begin(), x.end(), 0.0);
  line.vjp({u.data()}, {dx.data()}, after.data());
  CHECK(same_bits(before, after));
}

TEST_CASE("predictions do not depend on how the batch is cut, nor on where the rows lie") {
  const auto graph = gradstack::mlp({17, 33, 5}, "gelu");
  const Index count = 300;
  const std::vector<float> w = cast<float>(random_parameters(*graph, 1));
  const std::vector<float> x = cast<float>(random_values(count * 17, 2));
  for (const Kernels<float>* kernels : gradstack::available_kernels<float>()) {
    Program<float> program(graph, *kernels);
    std::vector<float> whole(at(count * 5)), other(whole.size());
    program.forward(w.data(), {rows(x, count)}, count, {whole.data()}, {.threads = 1});
    for (const int threads : {2, 5}) {
      program.forward(w.data(), {rows(x, count)}, count, {other.data()}, {.threads = threads});
      CHECK(same_bits(whole, other));
    }
    // In pieces of more than one sample (one sample alone sums in another order).
    for (const Index piece : {Index{7}, Index{128}, Index{150}}) {
      for (Index first = 0; first < count; first += piece) {
        const Index n = std::min(piece, count - first);
        const std::vector<float> part(x.begin() + first * 17, x.begin() + (first + n) * 17);
        program.forward(w.data(), {rows(part, n)}, n, {other.data() + first * 5}, {.threads = 1});
      }
      CHECK(same_bits(whole, other));
    }
    // Columns of a larger array, backwards, as doubles; and the same row for every sample.
    std::vector<double> wide(at(count * 20));
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < 17; ++j)
        wide[at((count - 1 - i) * 20 + j)] = static_cast<double>(x[at(i * 17 + j)]);
    gradstack::RowSource backwards =
        gradstack::rows_of(wide.data() + (count - 1) * 20, count, Index{17});
    backwards.row_stride = -20 * 8;
    program.forward(w.data(), {backwards}, count, {other.data()}, {.threads = 3});
    CHECK(same_bits(whole, other));
    gradstack::RowSource reversed = rows(x, count);
    reversed.data += (count - 1) * reversed.row_stride;
    reversed.row_stride *= -1;
    program.forward(w.data(), {reversed}, count, {other.data()}, {.threads = 3});
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < 5; ++j)
        CHECK(other[at(i * 5 + j)] == whole[at((count - 1 - i) * 5 + j)]);
    gradstack::RowSource same = rows(x, count);
    same.row_stride = 0;
    program.forward(w.data(), {same}, count, {other.data()}, {.threads = 3});
    for (Index i = 0; i < count * 5; ++i) CHECK(other[at(i)] == whole[at(i % 5)]);
    // Misaligned rows, as in a memory map with an odd header.
    std::vector<char> bytes(x.size() * sizeof(float) + 1);
    std::memcpy(bytes.data() + 1, x.data(), x.size() * sizeof(float));
    gradstack::RowSource misaligned = rows(x, count);
    misaligned.data = bytes.data() + 1;
    program.forward(w.data(), {misaligned}, count, {other.data()}, {.threads = 3});
    CHECK(same_bits(whole, other));
  }
}

TEST_CASE("an empty batch is an empty answer") {
  const auto graph = gradstack::mlp({3, 2}, "relu");
  const Values w = random_parameters(*graph, 1);
  Program<double> program(graph, best_kernels<double>());
  double untouched = 4;
  program.forward(w.data(), {gradstack::rows_of(&untouched, 0, Index{3})}, 0, {&untouched}, {});
  CHECK(untouched == 4);
}

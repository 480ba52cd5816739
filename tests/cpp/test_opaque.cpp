// Opaque blocks (the user's code) and dropout inside programs.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "gradstack/program.hpp"
#include "support/interpreter.hpp"

using namespace test;
using gradstack::CallOptions;
using gradstack::Kernels;
using gradstack::Linearization;
using gradstack::Program;

namespace {

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// y_i = x_i x_{i+1} (indices modulo d_in), i < d_out. Fails in the calls named by `fail`.
class Products final : public gradstack::OpaqueFunction {
 public:
  mutable std::atomic<int> calls{0};
  mutable Index samples = 0;
  std::string fail;

  void forward(Index n, Index d, Index out, const float* x, float* y) const override {
    value(n, d, out, x, y);
  }
  void forward(Index n, Index d, Index out, const double* x, double* y) const override {
    value(n, d, out, x, y);
  }
  void vjp(Index n, Index d, Index out, const float* x, const float* dy, float* dx) const override {
    pull(n, d, out, x, dy, dx);
  }
  void vjp(Index n, Index d, Index out, const double* x, const double* dy,
           double* dx) const override {
    pull(n, d, out, x, dy, dx);
  }
  void jvp(Index n, Index d, Index out, const float* x, const float* dx, float* dy) const override {
    push(n, d, out, x, dx, dy);
  }
  void jvp(Index n, Index d, Index out, const double* x, const double* dx,
           double* dy) const override {
    push(n, d, out, x, dx, dy);
  }

 private:
  void enter(const char* call, Index n) const {
    ++calls;
    samples = n;
    if (fail == call) throw Failure(call);
  }
  template <class T> void value(Index n, Index d, Index out, const T* x, T* y) const {
    enter("forward", n);
    for (Index i = 0; i < n * out; ++i) {
      const T* row = x + i / out * d;
      y[i] = row[i % out] * row[(i % out + 1) % d];
    }
  }
  template <class T> void pull(Index n, Index d, Index out, const T* x, const T* dy, T* dx) const {
    enter("vjp", n);
    for (Index i = 0; i < n * d; ++i) dx[i] = 0;
    for (Index i = 0; i < n * out; ++i) {
      const T* row = x + i / out * d;
      T* to = dx + i / out * d;
      to[i % out] += dy[i] * row[(i % out + 1) % d];
      to[(i % out + 1) % d] += dy[i] * row[i % out];
    }
  }
  template <class T> void push(Index n, Index d, Index out, const T* x, const T* dx, T* dy) const {
    enter("jvp", n);
    for (Index i = 0; i < n * out; ++i) {
      const Index a = i / out * d + i % out, b = i / out * d + (i % out + 1) % d;
      dy[i] = dx[a] * x[b] + x[a] * dx[b];
    }
  }
};

struct Twins {
  std::shared_ptr<Products> products = std::make_shared<Products>();
  std::shared_ptr<const Graph> opaque, transparent;

  // The same function with an opaque block in the middle, and with known blocks. Its input is used
  // elsewhere too, so gradients are added to.
  Twins() {
    for (const bool hidden : {true, false}) {
      Net net;
      const std::string x = net.input({4}), h = net.pointwise(net.linear(x, 7), "tanh");
      const std::string turned = net.concat({net.slice(h, 1, 7), net.slice(h, 0, 1)});
      const std::string z =
          hidden ? net.opaque(h, 5, products) : net.slice(net.binary(Kind::Mul, h, turned), 0, 5);
      const std::string y = net.binary(Kind::Add, net.linear(z, 3), net.linear(h, 3));
      (hidden ? opaque : transparent) = net.finish({y});
    }
  }
};

// All there is to ask of a graph at a point, in one row.
template <class T>
std::vector<T> ask(const std::shared_ptr<const Graph>& graph, const Kernels<T>& kernels,
                   Index count, int threads) {
  const std::vector<T> w = cast<T>(random_parameters(*graph, 1)),
                       dw = cast<T>(random_values(graph->n_params(), 2));
  const std::vector<T> x = cast<T>(random_values(count * 4, 3)),
                       dx = cast<T>(random_values(count * 4, 4));
  const std::vector<T> u = cast<T>(random_values(count * 3, 5));
  const CallOptions options{.threads = threads};
  std::vector<T> y(u.size()), dy(u.size()), gx(x.size()), gw(w.size());
  Program<T>(graph, kernels).forward(w.data(), {rows(x, count)}, count, {y.data()}, options);
  Linearization<T> line(graph, kernels, w.data(), {rows(x, count)}, count, true, options);
  line.jvp({dx.data()}, dw.data(), {dy.data()});
  line.vjp({u.data()}, {gx.data()}, gw.data());
  for (const auto* part : {&dy, &gx, &gw}) y.insert(y.end(), part->begin(), part->end());
  return y;
}

}  // namespace

TEST_CASE_TEMPLATE("an opaque block is any other block", T, float, double) {
  const Twins twins;
  for (const Kernels<T>* kernels : gradstack::available_kernels<T>())
    for (const Index count : {1, 2, 31, 32, 33, 100, 300}) {
      CAPTURE(count);
      const std::vector<T> seen = ask(twins.transparent, *kernels, count, 1);
      const std::vector<T> hidden = ask(twins.opaque, *kernels, count, 1);
      CHECK(worst_error(hidden, seen) < 50);
      CHECK(same_bits(hidden, ask(twins.opaque, *kernels, count, 4)));
      CHECK(twins.products->samples == count);  // it sees all samples at once
    }
}

TEST_CASE("what an opaque block throws comes out unchanged, and nothing hangs") {
  const Twins twins;
  const auto& kernels = best_kernels<float>();
  const Index count = 70;
  const std::vector<float> w = cast<float>(random_parameters(*twins.opaque, 1));
  const std::vector<float> x = cast<float>(random_values(count * 4, 3)),
                           u = cast<float>(random_values(count * 3, 5));
  std::vector<float> y(u.size()), dx(x.size()), dw(w.size());
  const std::vector<float> expected = ask(twins.opaque, kernels, count, 1);
  for (const int threads : {1, 4}) {
    CAPTURE(threads);
    const CallOptions options{.threads = threads};
    Program<float> program(twins.opaque, kernels);
    Linearization<float> line(twins.opaque, kernels, w.data(), {rows(x, count)}, count, true,
                              options);
    const auto forward = [&] {
      program.forward(w.data(), {rows(x, count)}, count, {y.data()}, options);
    };
    twins.products->fail = "forward";
    CHECK_THROWS_WITH_AS(forward(), "forward", Failure);
    CHECK_THROWS_WITH_AS(Linearization<float>(twins.opaque, kernels, w.data(), {rows(x, count)},
                                              count, false, options),
                         "forward", Failure);
    twins.products->fail = "vjp";
    CHECK_THROWS_WITH_AS(line.vjp({u.data()}, {dx.data()}, dw.data()), "vjp", Failure);
    twins.products->fail = "jvp";
    CHECK_THROWS_WITH_AS(line.jvp({x.data()}, nullptr, {y.data()}), "jvp", Failure);
    // Everything is usable afterwards.
    twins.products->fail = "";
    forward();
    line.vjp({u.data()}, {dx.data()}, dw.data());
    std::vector<float> answers = y;
    line.jvp({cast<float>(random_values(count * 4, 4)).data()},
             cast<float>(random_values(twins.opaque->n_params(), 2)).data(), {y.data()});
    for (const auto* part : {&y, &dx, &dw})
      answers.insert(answers.end(), part->begin(), part->end());
    CHECK(same_bits(answers, expected));
  }
}

TEST_CASE_TEMPLATE("dropout keeps the right share, scaled, and is off outside training", T, float,
                   double) {
  for (const double rate : {0.0, 0.1, 0.5, 0.9}) {
    CAPTURE(rate);
    Net net;
    const std::string x = net.input({257});
    const auto graph = net.finish({net.dropout(x, rate)});
    const Index count = 200;
    const std::vector<T> ones(at(count * 257), T(1));
    std::vector<T> y(ones.size());
    const T w = 0;
    for (const Kernels<T>* kernels : gradstack::available_kernels<T>()) {
      Program<T> program(graph, *kernels);
      program.forward(&w, {rows(ones, count)}, count, {y.data()}, {});
      CHECK(same_bits(y, ones));
      program.forward(&w, {rows(ones, count)}, count, {y.data()}, {.train = true, .seed = 5});
      double kept = 0;
      for (const T value : y) {
        CHECK((value == T(0) || value == static_cast<T>(1 / (1 - rate))));
        kept += value != T(0);
      }
      // Six standard deviations of a binomial.
      const double n = static_cast<double>(y.size());
      CHECK(std::abs(kept - n * (1 - rate)) <= 6 * std::sqrt(n * rate * (1 - rate)));
      // Rows and columns alike: no feature or sample is systematically kept.
      for (Index j = 0; j < 257; ++j) {
        double column = 0;
        for (Index i = 0; i < count; ++i) column += y[at(i * 257 + j)] != T(0);
        CHECK(std::abs(column - 200 * (1 - rate)) <= 6 * std::sqrt(200 * rate * (1 - rate)));
      }
    }
  }
}

TEST_CASE("dropout depends on seed, step, sample and block alone") {
  Net net;
  const std::string x = net.input({40});
  const auto graph = net.finish({net.dropout(x, 0.5), net.dropout(x, 0.5)});
  const Index count = 300;
  const float w = 0;
  const std::vector<float> ones(at(count * 40), 1.0F);
  using Masks = std::vector<std::vector<float>>;
  const auto masks = [&](const Kernels<float>& kernels, CallOptions options, Index n) {
    options.train = true;
    Masks y(2, std::vector<float>(at(n * 40)));
    Program<float>(graph, kernels)
        .forward(&w, {rows(ones, count)}, n, {y[0].data(), y[1].data()}, options);
    return y;
  };
  const auto& best = best_kernels<float>();
  const Masks m = masks(best, {.seed = 7, .step = 3, .threads = 1}, count);
  CHECK(m == masks(best, {.seed = 7, .step = 3, .threads = 5}, count));
  CHECK(m == masks(gradstack::reference_kernels(float()), {.seed = 7, .step = 3}, count));
  for (const Index n : {Index{1}, Index{33}, Index{128}}) {  // other plans, other cuts
    const Masks part = masks(best, {.seed = 7, .step = 3}, n);
    CHECK(part[0] == std::vector<float>(m[0].begin(), m[0].begin() + n * 40));
  }
  // Two streams agree in half of the entries, up to six standard deviations.
  const auto unrelated = [&](const std::vector<float>& a, const std::vector<float>& b) {
    double same = 0;
    for (std::size_t i = 0; i < a.size(); ++i) same += a[i] == b[i];
    const double n = static_cast<double>(a.size());
    return std::abs(same - n / 2) < 3 * std::sqrt(n);
  };
  CHECK(unrelated(m[0], m[1]));
  CHECK(unrelated(m[0], masks(best, {.seed = 8, .step = 3}, count)[0]));
  CHECK(unrelated(m[0], masks(best, {.seed = 7, .step = 4}, count)[0]));
  const auto shifted = [&](Index from) {
    return std::vector<float>(m[0].begin() + from * 40, m[0].begin() + (from + 100) * 40);
  };
  for (const Index shift : {1, 31, 32, 128}) CHECK(unrelated(shifted(0), shifted(shift)));
}

TEST_CASE_TEMPLATE("the gradient passes where dropout let the value pass", T, float, double) {
  Net net;
  const std::string x = net.input({9});
  const std::string dropped = net.dropout(x, 0.3);
  const auto graph = net.finish({net.binary(Kind::Add, dropped, x)});  // x is used twice
  const T w = 0;
  for (const Index count : {1, 45}) {
    const std::vector<T> ones(at(count * 9), T(1));
    std::vector<T> y(ones.size()), dx(ones.size()), dy(ones.size());
    Linearization<T> line(graph, best_kernels<T>(), &w, {rows(ones, count)}, count, true,
                          {.train = true, .seed = 11, .step = 2});
    line.output(0, y.data());
    line.vjp({ones.data()}, {dx.data()}, nullptr);
    line.jvp({ones.data()}, nullptr, {dy.data()});
    CHECK(same_bits(y, dx));
    CHECK(same_bits(y, dy));
    CHECK(std::count(y.begin(), y.end(), T(1)) > 0);
    CHECK(std::count(y.begin(), y.end(), T(1)) < static_cast<Index>(y.size()));
  }
}

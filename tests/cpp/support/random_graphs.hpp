// Random block diagrams: diamonds, residual sums, variables used twice, shared parameters, several
// inputs and outputs, the same output twice, outputs used inside, blocks nobody uses.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <vector>

#include "support/net.hpp"

namespace test {

class RandomGraph {
 public:
  explicit RandomGraph(unsigned seed) : random_(seed), seed_(seed) {}

  // Several outputs, or (for a cost) exactly one.
  std::shared_ptr<const Graph> build(bool single_output = false) {
    const int n_inputs = 1 + pick(3);
    for (int i = 0; i < n_inputs; ++i) variables_.push_back(net_.input({random_width()}));
    const int n_blocks = 4 + pick(9);
    for (int i = 0; i < n_blocks; ++i) add_block();
    std::vector<std::string> outputs{variables_.back()};
    while (!single_output && pick(2) == 0 && outputs.size() < 4) outputs.push_back(any_variable());
    return net_.finish(outputs, seed_);
  }

 private:
  int pick(int n) { return static_cast<int>(random_() % static_cast<unsigned>(n)); }
  Index random_width() {
    static constexpr Index kWidths[] = {1, 3, 17, 33, 65, 127};
    return kWidths[pick(6)];
  }
  const std::string& any_variable() {
    return variables_[at(pick(static_cast<int>(variables_.size())))];
  }

  // Another variable of the width of x, made by a Linear if there is none.
  std::string partner(const std::string& x) {
    std::vector<std::string> same;
    for (const std::string& v : variables_)
      if (net_.width(v) == net_.width(x)) same.push_back(v);
    if (same.size() > 1 || pick(2) == 0) return same[at(pick(static_cast<int>(same.size())))];
    return net_.linear(any_variable(), net_.width(x));
  }

  std::string linear(const std::string& x) {
    const Index in = net_.width(x), out = random_width();
    Net::LinearOptions options;
    options.bias = pick(4) > 0;
    if (pick(3) == 0) options.mask = random_mask(out, in, 0.5, seed_ + 1);
    if (pick(3) > 0) return net_.linear(x, out, options);
    const std::string first = net_.linear(x, out, options);
    options.share = first;
    const std::string second = net_.linear(pick(2) == 0 ? x : partner(x), out, options);
    return net_.binary(Kind::Add, first, second);
  }

  std::string pointwise(const std::string& x) {
    switch (pick(9)) {
      case 0:
        return net_.pointwise(x, "relu");
      case 1:
        return net_.pointwise(x, "leaky_relu", {0.1});
      case 2:
        return net_.pointwise(x, "elu", {1.3});
      case 3:
        return net_.pointwise(x, "gelu");
      case 4:
        return net_.pointwise(x, "sine");
      case 5:
        return net_.pointwise(x, "silu");
      case 6:
        return net_.pointwise(x, "sigmoid");
      default:
        return net_.pointwise(x, "tanh");
    }
  }

  void add_block() {
    const std::string x = any_variable();
    std::string z;
    switch (pick(13)) {
      case 0:
      case 1:
        z = linear(x);
        break;
      case 2:
      case 3:
        z = pointwise(linear(x));
        break;  // the pair that is fused
      case 4:
        z = pointwise(x);
        break;
      case 5:
        z = net_.binary(Kind::Add, x, partner(x));
        break;
      case 6:
        z = net_.binary(Kind::Sub, x, partner(x));
        break;
      case 7:
        z = net_.pointwise(net_.binary(Kind::Mul, x, partner(x)), "tanh");
        break;
      case 8: {
        const std::string positive =
            net_.pointwise(net_.pointwise(partner(x), "sigmoid"), "affine", {1, 0.5});
        z = net_.binary(Kind::Div, x, positive);
        break;
      }
      case 9:
        z = net_.concat(pick(2) == 0 ? std::vector{x, any_variable()}
                                     : std::vector{x, any_variable(), x});
        break;
      case 10: {
        const Index n = net_.width(x), begin = pick(static_cast<int>(n));
        z = net_.slice(x, begin, begin + 1 + pick(static_cast<int>(n - begin)));
        break;
      }
      case 11: {
        const Index n = net_.width(x);
        z = net_.pointwise(net_.reshape(x, n % 3 == 0 ? Shape{3, n / 3} : Shape{1, n}), "tanh");
        z = net_.reshape(z, {n});
        break;
      }
      default:
        z = net_.softmax(net_.width(x) > 1 ? x : net_.linear(x, 5), pick(2) == 0);
    }
    variables_.push_back(z);
  }

  Net net_;
  std::mt19937 random_;
  unsigned seed_;
  std::vector<std::string> variables_;
};

}  // namespace test

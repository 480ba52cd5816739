#include "support/interpreter.hpp"

#include <map>
#include <stdexcept>
#include <string>
#include <utility>

namespace test {
namespace {

template <class N> N pointwise(const std::string& op, const std::vector<double>& p, N x) {
  const Real s = value_of(x);
  const Real sigmoid = 1 / (1 + std::exp(-s));
  if (op == "identity") return x;
  if (op == "relu") return s > 0 ? x : chain(x, 0, 0);
  if (op == "leaky_relu") return s > 0 ? x : chain(x, Real(p[0]) * s, Real(p[0]));
  if (op == "elu")
    return s > 0 ? x : chain(x, Real(p[0]) * std::expm1(s), Real(p[0]) * std::exp(s));
  if (op == "tanh") return chain(x, std::tanh(s), 1 - std::tanh(s) * std::tanh(s));
  if (op == "sigmoid") return chain(x, sigmoid, sigmoid * (1 - sigmoid));
  if (op == "silu") return chain(x, s * sigmoid, sigmoid * (1 + s * (1 - sigmoid)));
  if (op == "sine") return chain(x, std::sin(s), std::cos(s));
  if (op == "affine") return chain(x, Real(p[0]) * s + Real(p[1]), Real(p[0]));
  if (op == "softplus") return chain(x, std::log1p(std::exp(s)), sigmoid);  // beta 1, |s| < 20
  if (op == "gelu") {
    const Real phi = std::exp(-s * s / 2) / std::sqrt(2 * std::acos(Real(-1)));
    const Real cdf = std::erfc(-s / std::sqrt(Real(2))) / 2;
    return chain(x, s * cdf, cdf + s * phi);
  }
  throw std::logic_error("the interpreter does not know " + op);
}

// All blocks of one sample. Dropout is not active.
template <class N> class Sample {
 public:
  using Vector = std::vector<N>;

  // w: the flat parameter vector; x: per input, in the graph's order.
  Sample(const Graph& graph, const Vector& w, std::vector<Vector> x) : w_(w) {
    for (const Stage& stage : graph.stages()) stages_[stage.name] = &stage;
    Index offset = 0;
    for (const gradstack::Parameter& p : graph.parameters()) {
      offsets_[p.name] = offset;
      shapes_[p.name] = p.shape;
      for (Index extent = 1, axis = 0; axis <= static_cast<Index>(p.shape.size()); ++axis) {
        if (axis == static_cast<Index>(p.shape.size()))
          offset += extent;
        else
          extent *= p.shape[at(axis)];
      }
    }
    for (std::size_t i = 0; i < x.size(); ++i)
      values_[graph.stage(graph.inputs()[i]).name] = std::move(x[i]);
  }

  const Vector& value(const std::string& name) {
    const auto known = values_.find(name);
    if (known != values_.end()) return known->second;
    Vector result = compute(*stages_.at(name));
    return values_[name] = std::move(result);
  }

 private:
  Vector compute(const Stage& stage) {
    const Vector a = value(stage.inputs.at(0));
    switch (stage.kind) {
      case Kind::Linear:
        return linear(stage, a);
      case Kind::Pointwise:
        return map(a, [&](N x) { return pointwise(stage.op, stage.params, x); });
      case Kind::Add:
        return zip(a, stage, [](N x, N y) { return x + y; });
      case Kind::Sub:
        return zip(a, stage, [](N x, N y) { return x - y; });
      case Kind::Mul:
        return zip(a, stage, [](N x, N y) { return x * y; });
      case Kind::Div:
        return zip(a, stage, [](N x, N y) { return x / y; });
      case Kind::Slice:
        return Vector(a.begin() + stage.begin, a.begin() + stage.end);
      case Kind::Reshape:
      case Kind::Dropout:
        return a;
      case Kind::Softmax:
      case Kind::LogSoftmax:
        return softmax(a, stage.kind == Kind::LogSoftmax);
      case Kind::Concat: {
        Vector all;
        for (const std::string& name : stage.inputs) {
          const Vector part = value(name);
          all.insert(all.end(), part.begin(), part.end());
        }
        return all;
      }
      default:
        throw std::logic_error("the interpreter does not know this kind of block");
    }
  }

  template <class F> Vector map(const Vector& a, F f) const {
    Vector z;
    for (const N& x : a) z.push_back(f(x));
    return z;
  }

  template <class F> Vector zip(const Vector& a, const Stage& stage, F f) {
    const Vector b = value(stage.inputs.at(1));
    Vector z;
    for (std::size_t i = 0; i < a.size(); ++i) z.push_back(f(a[i], b[i]));
    return z;
  }

  Vector linear(const Stage& stage, const Vector& z) const {
    const Shape& shape = shapes_.at(stage.weight);
    const N* w = w_.data() + offsets_.at(stage.weight);
    Vector s;
    for (Index i = 0; i < shape[0]; ++i) {
      N sum = stage.bias.empty() ? N(0) : w_[at(offsets_.at(stage.bias) + i)];
      for (Index j = 0; j < shape[1]; ++j)
        if (!stage.mask || (*stage.mask)[at(i * shape[1] + j)])
          sum = sum + w[i * shape[1] + j] * z[at(j)];
      s.push_back(sum);
    }
    return s;
  }

  Vector softmax(const Vector& s, bool log) const {
    N total(0);
    for (const N& x : s) total = total + exponential(x);
    return map(s, [&](N x) { return log ? x - logarithm(total) : exponential(x) / total; });
  }

  const Vector& w_;
  std::map<std::string, const Stage*> stages_;
  std::map<std::string, Index> offsets_;
  std::map<std::string, Shape> shapes_;
  std::map<std::string, Vector> values_;
};

// Rows of sample i of every input, with tangents where given.
template <class N>
std::vector<std::vector<N>> sample_rows(const std::vector<Values>& xs,
                                        const std::vector<Values>& dxs, Index i, Index count) {
  std::vector<std::vector<N>> rows;
  for (std::size_t k = 0; k < xs.size(); ++k) {
    const std::size_t d = xs[k].size() / at(count);
    std::vector<N> row(d);
    for (std::size_t j = 0; j < d; ++j) {
      row[j] = N(xs[k][at(i) * d + j]);
      if constexpr (std::is_same_v<N, Dual>)
        if (!dxs.empty()) row[j].tangent = dxs[k][at(i) * d + j];
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

Dual apply_op(const std::string& op, const std::vector<double>& p, Dual x) {
  return pointwise(op, p, x);
}

std::vector<Dual> interpret(const Graph& graph, const std::vector<Dual>& w,
                            const std::vector<Dual>& x) {
  return Sample<Dual>(graph, w, {x}).value(graph.stage(graph.outputs()[0]).name);
}

Outputs interpret(const Graph& graph, const Values& w, const std::vector<Values>& xs, Index count,
                  const std::vector<Values>& dxs, const Values& dw) {
  std::vector<Dual> parameters;
  for (std::size_t i = 0; i < w.size(); ++i) parameters.emplace_back(w[i], dw.empty() ? 0 : dw[i]);
  Outputs result;
  result.values.resize(graph.outputs().size());
  result.tangents.resize(graph.outputs().size());
  for (Index i = 0; i < count; ++i) {
    Sample<Dual> sample(graph, parameters, sample_rows<Dual>(xs, dxs, i, count));
    for (std::size_t k = 0; k < graph.outputs().size(); ++k)
      for (const Dual& y : sample.value(graph.stage(graph.outputs()[k]).name)) {
        result.values[k].push_back(y.value);
        result.tangents[k].push_back(y.tangent);
      }
  }
  return result;
}

std::vector<std::vector<Real>> interpret(const Graph& graph, const Values& w,
                                         const std::vector<Values>& xs, Index count) {
  const std::vector<Real> parameters(w.begin(), w.end());
  std::vector<std::vector<Real>> result(graph.outputs().size());
  for (Index i = 0; i < count; ++i) {
    Sample<Real> sample(graph, parameters, sample_rows<Real>(xs, {}, i, count));
    for (std::size_t k = 0; k < result.size(); ++k)
      for (const Real y : sample.value(graph.stage(graph.outputs()[k]).name))
        result[k].push_back(y);
  }
  return result;
}

}  // namespace test

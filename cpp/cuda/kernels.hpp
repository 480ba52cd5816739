// The kernels of a device: what one thread does, as functors for host and device, and the launches
// that DeviceQueue asks for. `Launch` runs them: on a GPU (cuda_launch.hpp), or in a loop on the
// host (emulated.cpp), where the tests of this file's index arithmetic run.
//
//   launch.each(name, n, body)           body(i) for i in 0..n-1, in any order
//   launch.sum(name, n, value, finish)   finish(sum of value(i)), summed in an order that depends
//                                        on n alone
//   launch.rows(name, n, cols, value, finish)   for every row finish(row, sum of value(row, i)),
//                                        summed in an order that depends on cols alone
//
// Nothing here uses atomics: a value has one writer, and sums have one order.
#pragma once

#include "gradstack/costs.hpp"
#include "gradstack/device.hpp"
#include "gradstack/ops.hpp"
#include "gradstack/random.hpp"
#include "row_kernels.hpp"

namespace gradstack::device {

template <class Op> struct Forward {
  Op op;
  const float* s;
  float* z;
  GS_HD void operator()(Index i) const { z[i] = op.h(s[i]); }
};

template <class Op> struct BiasForward {
  Op op;
  Split at;
  const float* bias;  // null: none
  float* s;
  GS_HD void operator()(Index i) const {
    s[i] = op.h(s[i] + (bias ? bias[i - at.row(i) * at.cols] : 0.0F));
  }
};

template <class Op> struct Backward {
  Op op;
  const float *s, *z, *dz;
  float* ds;
  bool accumulate;
  GS_HD void operator()(Index i) const {
    float slope = 0;
    if constexpr (Op::has_d1_from_z) {
      slope = s ? op.d1(s[i]) : op.d1_from_z(z[i]);
    } else {
      slope = op.d1(s[i]);
    }
    put(ds + i, dz[i] * slope, accumulate);
  }
};

struct Binary {
  DeviceBinary kind;
  const float *a, *b;
  float* z;
  GS_HD void operator()(Index i) const {
    switch (kind) {
      case DeviceBinary::Add:
        z[i] = a[i] + b[i];
        break;
      case DeviceBinary::Sub:
        z[i] = a[i] - b[i];
        break;
      case DeviceBinary::Mul:
        z[i] = a[i] * b[i];
        break;
      default:
        z[i] = a[i] / b[i];
    }
  }
};

struct BinaryBackward {
  DeviceBinary kind;
  bool first;
  const float *a, *b, *dz;
  float* to;
  bool accumulate;
  GS_HD void operator()(Index i) const {
    float d = dz[i];
    if (kind == DeviceBinary::Sub && !first) d = -d;
    if (kind == DeviceBinary::Mul) d *= first ? b[i] : a[i];
    if (kind == DeviceBinary::Div) d = first ? d / b[i] : -(d / b[i]) * (a[i] / b[i]);
    put(to + i, d, accumulate);
  }
};

struct Columns {
  DeviceColumns c;
  GS_HD void operator()(Index i) const {
    const Index row = Split{c.cols}.row(i), col = i - row * c.cols;
    const Index from = c.repeats == 1 ? row : Split{c.repeats}.row(row);
    put(c.to + row * c.ld_to + col, c.from[from * c.ld_from + col], c.accumulate);
  }
};

// One thread a row: rows are short, or there are many of them.
struct Softmax {
  Index d;
  const float* s;
  float* z;
  bool log;
  GS_HD void operator()(Index row) const {
    const float* from = s + row * d;
    float* to = z + row * d;
    float peak = from[0];
    for (Index j = 1; j < d; ++j) peak = math::maximum(from[j], peak);
    float sum = 0;
    for (Index j = 0; j < d; ++j) sum += math::exp(from[j] - peak);
    const float log_sum = math::log(sum);
    for (Index j = 0; j < d; ++j)
      to[j] = log ? from[j] - peak - log_sum : math::exp(from[j] - peak) / sum;
  }
};

struct SoftmaxBackward {
  Index d;
  const float *z, *dz;
  float* ds;
  bool log, accumulate;
  GS_HD void operator()(Index row) const {
    const Index at = row * d;
    float sum = 0;
    for (Index j = at; j < at + d; ++j) sum += log ? dz[j] : z[j] * dz[j];
    for (Index j = at; j < at + d; ++j)
      put(ds + j, log ? dz[j] - math::exp(z[j]) * sum : z[j] * (dz[j] - sum), accumulate);
  }
};

struct Dropout {
  DeviceDropout p;
  GS_HD void operator()(Index i) const {
    const Index row = Split{p.d}.row(i), col = i - row * p.d;
    const std::uint64_t key = sample_key(p.seed, p.stream, static_cast<std::uint64_t>(p.at->step),
                                         p.first_sample + static_cast<std::uint64_t>(row));
    const bool keep = uniform_bits(key, static_cast<std::uint32_t>(col)) >= p.threshold;
    put(p.z + i, keep ? p.s[i] * p.scale : 0.0F, p.accumulate);
  }
};

// parts[chunk][j]: the sum over the chunk's rows. With one chunk `parts` is the result.
struct ColumnSums {
  Index rows, d, chunks;
  const float* x;
  float* parts;
  bool accumulate;
  GS_HD void operator()(Index i) const {
    const Index chunk = Split{d}.row(i), j = i - chunk * d;
    const Index end = (chunk + 1) * rows / chunks;
    float sum = 0;
    for (Index row = chunk * rows / chunks; row < end; ++row) sum += x[row * d + j];
    put(parts + i, sum, accumulate);
  }
};

struct Sparse {
  DeviceSparse p;
  GS_HD void operator()(Index i) const {
    const Index row = Split{p.units}.row(i), unit = i - row * p.units;
    float sum = p.accumulate ? p.y[i] : p.bias ? p.bias[unit] : 0.0F;
    for (Index t = p.begin[unit]; t < p.begin[unit + 1]; ++t)
      sum = math::fma(p.w[p.edge[t]], p.x[row * p.other + p.end_unit[t]], sum);
    p.y[i] = sum;
  }
};

struct SparseGradient {
  DeviceSparseGradient p;
  GS_HD void operator()(Index e) const {
    const float* dy = p.dy + p.ends[2 * e];
    const float* x = p.x + p.ends[2 * e + 1];
    float sum = 0;
    for (Index row = 0; row < p.rows; ++row)
      sum = math::fma(dy[row * p.d_out], x[row * p.d_in], sum);
    put(p.dw + e, sum, p.accumulate);
  }
};

struct Nearest {
  Index prototypes, d;
  const float *w, *x;
  float *index, *chosen;
  GS_HD void operator()(Index row) const {
    Index best = 0;
    float least = 0;
    for (Index k = 0; k < prototypes; ++k) {
      float distance = 0;
      for (Index j = 0; j < d; ++j) {
        const float e = x[row * d + j] - w[k * d + j];
        distance = math::fma(e, e, distance);
      }
      if (k == 0 || distance < least) least = distance, best = k;
    }
    index[row] = static_cast<float>(best);
    for (Index j = 0; chosen && j < d; ++j) chosen[row * d + j] = w[best * d + j];
  }
};

struct NearestGradient {
  Index rows, d;
  const float *index, *grad;
  float* dw;
  bool accumulate;
  GS_HD void operator()(Index i) const {
    const Index k = Split{d}.row(i), j = i - k * d;
    float sum = 0;
    for (Index row = 0; row < rows; ++row)
      if (static_cast<Index>(index[row]) == k) sum += grad[row * d + j];
    put(dw + i, sum, accumulate);
  }
};

struct Gather {
  DeviceGather g;
  GS_HD void operator()(Index i) const {
    const Index k = Split{g.cols}.row(i), col = i - k * g.cols;
    const Index row = g.order ? g.order[g.at->first + k] : g.at->first + k;
    if (g.labels_from)
      g.labels_to[k] = g.labels_from[row];
    else
      g.to[i] = g.from[row * g.cols + col];
  }
};

struct SampleWeight {
  const float *weight, *class_weight;
  const std::int64_t* labels;
  GS_HD double operator()(Index i) const {
    const double own = weight ? static_cast<double>(weight[i]) : 1.0;
    return class_weight && labels ? own * static_cast<double>(class_weight[labels[i]]) : own;
  }
};

struct OpenStep {
  DeviceStep* at;
  double sum_factor;
  GS_HD void operator()(double weight) const {
    at->weight = weight;
    at->scale = sum_factor > 0 ? sum_factor : weight == 0 ? 0 : 1 / weight;
  }
};

// One thread a sample: a row is a block of one lane.
template <class C> struct CostOf {
  DeviceCost c;
  GS_HD void operator()(Index i) const {
    const float scale =
        static_cast<float>((c.weight ? static_cast<double>(c.weight[i]) : 1.0) * c.at->scale);
    CostArgs<float> args;
    args.d = c.d;
    args.dy = c.dy;
    args.lanes = 1;
    args.ybar = c.ybar + i * c.d;
    args.y = c.y ? c.y + i * c.dy : nullptr;
    args.label = c.labels ? c.labels + i : nullptr;
    args.weight = c.class_weight;
    args.p = c.p;
    args.scale = &scale;
    args.loss = c.loss + i;
    args.grad = c.grad ? c.grad + i * c.d : nullptr;
    args.v = c.v ? c.v + i * c.d : nullptr;
    args.hv = c.hv ? c.hv + i * c.d : nullptr;
    cost_block<C, float, float>(args);
  }
};

struct WeightedLoss {
  const float *loss, *weight;
  GS_HD double operator()(Index i) const {
    const float own = weight ? weight[i] : 1.0F;
    return own == 0.0F ? 0.0 : static_cast<double>(own) * static_cast<double>(loss[i]);
  }
};

struct CloseLoss {
  DeviceStep* at;
  double* results;
  bool allow_non_finite;
  GS_HD void operator()(double sum) const {
    if (at->failed) return;
    const double loss = sum * at->scale;
    results[2 * at->index] = loss;
    results[2 * at->index + 1] = at->weight;
    if (!allow_non_finite && !(math::abs(loss) <= 1.7976931348623157e308)) at->failed = 1;
  }
};

GS_HD GS_INLINE float clipped(float g, float limit) {
  return limit > 0 ? math::clamp(g, -limit, limit) : g;
}

struct SquaredGradient {
  const float* g;
  const std::uint8_t* what;
  float limit;
  GS_HD double operator()(Index i) const {
    const double x = what[i] ? static_cast<double>(clipped(g[i], limit)) : 0.0;
    return x * x;
  }
};

// The factor min(1, max / (norm + 1e-6)) that PyTorch's clip_grad_norm_ uses.
struct ClipFactor {
  double most;
  double* factor;
  GS_HD void operator()(double squares) const {
    const double f = most / (math::sqrt(squares) + 1e-6);
    *factor = f < 1 ? f : 1;
  }
};

template <class Rule> struct Update {
  DeviceUpdate u;
  const double* factor;  // null: 1
  GS_HD void operator()(Index i) const {
    const std::uint8_t what = u.what[i];
    if (!what || u.at->failed) return;
    const DeviceConstants& c = u.constants[u.at->index];
    const Rule rule((what & kDecays) ? c.with_decay : c.without_decay);
    float g = clipped(u.g[i], u.clip_value);
    if (factor) g *= static_cast<float>(*factor);
    float w = u.w[i];
    float state[kMaxState] = {};
    for (int k = 0; k < Rule::info.n_state; ++k)
      if (u.state[k]) state[k] = u.state[k][i];
    rule(w, g, state);
    if (what & kMoves) u.w[i] = w;
    for (int k = 0; k < Rule::info.n_state; ++k)
      if (u.state[k]) u.state[k][i] = state[k];
  }
};

struct CloseStep {
  DeviceStep* at;
  Index count;
  GS_HD void operator()(Index) const {
    if (at->failed) return;
    ++at->step;
    ++at->index;
    at->first += count;
    if (at->first == at->wrap) at->first = 0;
  }
};

// f.template operator()<Entry>() for entry `id` of a list.
template <template <class...> class List, class First, class... Rest, class F>
void visit_entry(List<First, Rest...>, int id, F&& f) {
  if (id == 0) {
    f.template operator()<First>();
  } else if constexpr (sizeof...(Rest) > 0) {
    visit_entry(List<Rest...>{}, id - 1, static_cast<F&&>(f));
  }
}

// DeviceQueue's kernels by way of `Launch`; memory and matrix products are the derived class's.
template <class Launch> class KernelQueue : public DeviceQueue {
 public:
  void forward(const DeviceOp& op, Index n, const float* s, float* z) override;
  void backward(const DeviceOp& op, Index n, const float* s, const float* z, const float* dz,
                float* ds, bool accumulate) override;
  void binary(DeviceBinary kind, Index n, const float* a, const float* b, float* z) override;
  void binary_backward(DeviceBinary kind, bool first, Index n, const float* a, const float* b,
                       const float* dz, float* to, bool accumulate) override;
  void columns(const DeviceColumns& c) override;
  void softmax(Index rows, Index d, const float* s, float* z, bool log) override;
  void softmax_backward(Index rows, Index d, const float* z, const float* dz, float* ds, bool log,
                        bool accumulate) override;
  void log_softmax_tangent(Index rows, Index d, const float* z, const float* ds,
                           float* dz) override;
  void dropout(const DeviceDropout& d) override;
  void column_sums(Index rows, Index d, const float* x, float* out, bool accumulate) override;
  void sparse(const DeviceSparse& s) override;
  void sparse_gradient(const DeviceSparseGradient& s) override;
  void nearest(Index rows, Index prototypes, Index d, const float* w, const float* x, float* index,
               float* chosen) override;
  void nearest_gradient(Index rows, Index prototypes, Index d, const float* index,
                        const float* grad, float* dw, bool accumulate) override;
  void outer(const DeviceOuter& o, float* to, Index ld, bool accumulate) override;
  void outer_dots(const DeviceOuter& u, const DeviceOuter& v, float factor, float* sums) override;
  void row_dots(const DeviceDots& r) override;
  void transpose(const DeviceTranspose& t) override;
  void mlp_forward(const DeviceMlp& m) override;
  void mlp_backward(const DeviceMlp& m) override;
  void gather(const DeviceGather& g) override;
  void open_step(DeviceStep* at, Index count, const float* weight, const float* class_weight,
                 const std::int64_t* labels, double sum_factor) override;
  void cost(const DeviceCost& c) override;
  void close_loss(DeviceStep* at, Index count, const float* loss, const float* weight,
                  double* results, bool allow_non_finite) override;
  void update(const DeviceUpdate& u) override;
  void close_step(DeviceStep* at, Index count) override;

 protected:
  // In place s = h(s + bias), for products whose library call took neither.
  void bias_forward(const DeviceOp& op, Index rows, Index cols, const float* bias, float* s);

  // Partial sums of columns, and the clip factor behind them.
  static constexpr Index kScratch = Index{1} << 20;  // floats
  Launch launch_;
  float* scratch_ = nullptr;  // kScratch floats
  double* factor_ = nullptr;  // one
};

}  // namespace gradstack::device

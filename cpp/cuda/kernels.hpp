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
// Nothing that is computed depends on chance: a value has one writer, and sums have one order; the
// only atomics build lists whose order nobody sees (permutation_kernels.hpp). T is how activations
// are stored (half.hpp); arithmetic is float32.
#pragma once

#include "elementwise.hpp"
#include "gradstack/costs.hpp"
#include "gradstack/device.hpp"
#include "gradstack/ops.hpp"
#include "gradstack/random.hpp"
#include "permutation_kernels.hpp"
#include "products.hpp"
#include "row_kernels.hpp"

namespace gradstack::device {

// In place of a type that the kernel knows, for kernels that write one value in several types.
GS_HD GS_INLINE void store_at(const DeviceOut& to, Index i, float value) {
  switch (to.type) {
    case DeviceType::BFloat16:
      return store(to.as<BFloat16>() + i, value);
    case DeviceType::Float16:
      return store(to.as<Float16>() + i, value);
    default:
      return store(to.as<float>() + i, value);
  }
}

template <class T> struct Columns {
  DeviceColumns c;
  GS_HD void operator()(Index i) const {
    const Index row = Split{c.cols}.row(i), col = i - row * c.cols;
    const Index from = c.repeats == 1 ? row : Split{c.repeats}.row(row);
    put(c.to.as<T>() + row * c.ld_to + col, load(c.from.as<T>()[from * c.ld_from + col]),
        c.accumulate);
  }
};

// One thread a row: rows are short, or there are many of them.
template <class T> struct Softmax {
  Index d;
  const T* s;
  T* z;
  bool log;
  GS_HD void operator()(Index row) const {
    const T* from = s + row * d;
    T* to = z + row * d;
    float peak = load(from[0]);
    for (Index j = 1; j < d; ++j) peak = math::maximum(load(from[j]), peak);
    float sum = 0;
    for (Index j = 0; j < d; ++j) sum += math::exp(load(from[j]) - peak);
    const float log_sum = math::log(sum);
    for (Index j = 0; j < d; ++j) {
      const float x = load(from[j]) - peak;
      store(to + j, log ? x - log_sum : math::exp(x) / sum);
    }
  }
};

template <class T> struct SoftmaxBackward {
  Index d;
  const T *z, *dz;
  T* ds;
  bool log, accumulate;
  GS_HD void operator()(Index row) const {
    const Index at = row * d;
    float sum = 0;
    for (Index j = at; j < at + d; ++j) sum += log ? load(dz[j]) : load(z[j]) * load(dz[j]);
    for (Index j = at; j < at + d; ++j) {
      const float y = load(z[j]), dy = load(dz[j]);
      put(ds + j, log ? dy - math::exp(y) * sum : y * (dy - sum), accumulate);
    }
  }
};

template <class T> struct Dropout {
  DeviceDropout p;
  GS_HD void operator()(Index i) const {
    const Index row = Split{p.d}.row(i), col = i - row * p.d;
    const std::uint64_t key = sample_key(p.seed, p.stream, static_cast<std::uint64_t>(p.at->step),
                                         p.first_sample + static_cast<std::uint64_t>(row));
    const bool keep = uniform_bits(key, static_cast<std::uint32_t>(col)) >= p.threshold;
    put(p.z.as<T>() + i, keep ? load(p.s.as<T>()[i]) * p.scale : 0.0F, p.accumulate);
  }
};

// parts[chunk][j]: the sum over the chunk's rows. With one chunk `parts` is the result.
template <class T> struct ColumnSums {
  Index rows, d, chunks;
  const T* x;
  float* parts;
  bool accumulate;
  GS_HD void operator()(Index i) const {
    const Index chunk = Split{d}.row(i), j = i - chunk * d;
    const Index end = (chunk + 1) * rows / chunks;
    float sum = 0;
    for (Index row = chunk * rows / chunks; row < end; ++row) sum += load(x[row * d + j]);
    put(parts + i, sum, accumulate);
  }
};

template <class T> struct Sparse {
  DeviceSparse p;
  GS_HD void operator()(Index i) const {
    const Index row = Split{p.units}.row(i), unit = i - row * p.units;
    const T* x = p.x.as<T>() + row * p.other;
    T* y = p.y.as<T>() + i;
    float sum = p.accumulate ? load(*y) : p.bias ? p.bias[unit] : 0.0F;
    for (Index t = p.begin[unit]; t < p.begin[unit + 1]; ++t)
      sum = math::fma(p.w[p.edge[t]], load(x[p.end_unit[t]]), sum);
    store(y, sum);
  }
};

template <class T> struct SparseGradient {
  DeviceSparseGradient p;
  GS_HD void operator()(Index e) const {
    const T* dy = p.dy.as<T>() + p.ends[2 * e];
    const T* x = p.x.as<T>() + p.ends[2 * e + 1];
    float sum = 0;
    for (Index row = 0; row < p.rows; ++row)
      sum = math::fma(load(dy[row * p.d_out]), load(x[row * p.d_in]), sum);
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
      store_at(g.to, i, g.from[row * g.cols + col]);
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
    const float scale = static_cast<float>((c.weight ? static_cast<double>(c.weight[i]) : 1.0) *
                                           c.at->scale * c.at->loss.scale);
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
  const DeviceStep* at;
  float limit;
  GS_HD double operator()(Index i) const {
    const float own = what[i] ? clipped(g[i] * at->loss.inverse, limit) : 0.0F;
    return static_cast<double>(own) * static_cast<double>(own);
  }
};

// All threads that find one write the same.
struct FindOverflow {
  DeviceStep* at;
  const float* g;
  const std::uint8_t* what;
  GS_HD void operator()(Index i) const {
    if (what[i] && !(math::abs(g[i]) <= 3.4028235e38F)) at->loss.overflow = 1;
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
    if (!what || u.at->failed || u.at->loss.overflow) return;
    const DeviceConstants& c = u.constants[u.at->updates];
    const Rule rule((what & kDecays) ? c.with_decay : c.without_decay);
    float g = clipped(u.g[i] * u.at->loss.inverse, u.clip_value);
    if (factor) g *= static_cast<float>(*factor);
    float w = u.w[i];
    float state[kMaxState] = {};
    for (int k = 0; k < Rule::info.n_state; ++k)
      if (u.state[k]) state[k] = u.state[k][i];
    rule(w, g, state);
    if (what & kMoves) {
      u.w[i] = w;
      if (u.copy.data) store_at(u.copy, i, w);
    }
    for (int k = 0; k < Rule::info.n_state; ++k)
      if (u.state[k]) u.state[k][i] = state[k];
  }
};

struct CloseStep {
  DeviceStep* at;
  Index count;
  bool allow_non_finite;
  GS_HD void operator()(Index) const {
    if (at->failed) return;
    DeviceLossScale& loss = at->loss;
    if (loss.overflow) {
      if (loss.scale > kLeastLossScale)
        loss.scale /= 2;
      else if (!allow_non_finite) {
        at->failed = 1;
        return;
      }
      loss.good = 0;
    } else {
      ++at->updates;
      if (loss.adapts && ++loss.good == kLossScaleSteps) {
        if (loss.scale < kMostLossScale) loss.scale *= 2;
        loss.good = 0;
      }
    }
    loss.inverse = static_cast<float>(1 / loss.scale);
    loss.overflow = 0;
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

// DeviceQueue's kernels by way of `Launch`; memory and the library's products are the derived
// class's.
template <class Launch> class KernelQueue : public ProductQueue {
 public:
  void forward(const DeviceOp& op, Index n, DeviceIn s, DeviceOut z) override;
  void backward(const DeviceOp& op, Index n, DeviceIn s, DeviceIn z, DeviceIn dz, DeviceOut ds,
                bool accumulate) override;
  void binary(DeviceBinary kind, Index n, DeviceIn a, DeviceIn b, DeviceOut z) override;
  void binary_backward(DeviceBinary kind, bool first, Index n, DeviceIn a, DeviceIn b, DeviceIn dz,
                       DeviceOut to, bool accumulate) override;
  void columns(const DeviceColumns& c) override;
  void softmax(Index rows, Index d, DeviceIn s, DeviceOut z, bool log) override;
  void softmax_backward(Index rows, Index d, DeviceIn z, DeviceIn dz, DeviceOut ds, bool log,
                        bool accumulate) override;
  void log_softmax_tangent(Index rows, Index d, const float* z, const float* ds,
                           float* dz) override;
  void dropout(const DeviceDropout& d) override;
  void column_sums(Index rows, Index d, DeviceIn x, float* out, bool accumulate) override;
  void convert(Index n, DeviceIn from, DeviceOut to) override;
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
  void permutation(const DevicePermutation& p) override;
  void gather(const DeviceGather& g) override;
  void open_step(DeviceStep* at, Index count, const float* weight, const float* class_weight,
                 const std::int64_t* labels, double sum_factor) override;
  void cost(const DeviceCost& c) override;
  void close_loss(DeviceStep* at, Index count, const float* loss, const float* weight,
                  double* results, bool allow_non_finite) override;
  void find_overflow(DeviceStep* at, Index n, const float* g, const std::uint8_t* what) override;
  void update(const DeviceUpdate& u) override;
  void close_step(DeviceStep* at, Index count, bool allow_non_finite) override;

 protected:
  void bias_forward(const DeviceOp& op, Index rows, Index cols, DeviceIn bias, DeviceOut s,
                    std::uint8_t* bits) override;

  template <class F, class Z, class T, class... Rest>
  void map(const char* name, Index n, const F& f, Z* z, bool accumulate, const T* x,
           const Rest*... rest);

  // Partial sums of columns, and the clip factor behind them.
  static constexpr Index kScratch = Index{1} << 20;  // floats
  Launch launch_;
  float* scratch_ = nullptr;  // kScratch floats
  double* factor_ = nullptr;  // one
};

}  // namespace gradstack::device

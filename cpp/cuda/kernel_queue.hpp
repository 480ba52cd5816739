// The launches of KernelQueue, for the translation unit that instantiates it.
#pragma once

#include "kernels.hpp"

namespace gradstack::device {

template <class L>
void KernelQueue<L>::forward(const DeviceOp& op, Index n, const float* s, float* z) {
  visit_op(op.id, op.p, [&](auto h) {
    launch_.each(decltype(h)::info.name, n, Forward<decltype(h)>{h, s, z});
  });
}

template <class L>
void KernelQueue<L>::backward(const DeviceOp& op, Index n, const float* s, const float* z,
                              const float* dz, float* ds, bool accumulate) {
  visit_op(op.id, op.p, [&](auto h) {
    launch_.each(decltype(h)::info.name, n, Backward<decltype(h)>{h, s, z, dz, ds, accumulate});
  });
}

template <class L>
void KernelQueue<L>::bias_forward(const DeviceOp& op, Index rows, Index cols, const float* bias,
                                  float* s) {
  visit_op(op.id < 0 ? 0 : op.id, op.p, [&](auto h) {  // op 0 is the identity
    launch_.each("bias", rows * cols, BiasForward<decltype(h)>{h, {cols}, bias, s});
  });
}

template <class L>
void KernelQueue<L>::binary(DeviceBinary kind, Index n, const float* a, const float* b, float* z) {
  launch_.each("binary", n, Binary{kind, a, b, z});
}

template <class L>
void KernelQueue<L>::binary_backward(DeviceBinary kind, bool first, Index n, const float* a,
                                     const float* b, const float* dz, float* to, bool accumulate) {
  launch_.each("binary_backward", n, BinaryBackward{kind, first, a, b, dz, to, accumulate});
}

template <class L> void KernelQueue<L>::columns(const DeviceColumns& c) {
  launch_.each("columns", c.rows * c.cols, Columns{c});
}

template <class L>
void KernelQueue<L>::softmax(Index rows, Index d, const float* s, float* z, bool log) {
  launch_.each("softmax", rows, Softmax{d, s, z, log});
}

template <class L>
void KernelQueue<L>::softmax_backward(Index rows, Index d, const float* z, const float* dz,
                                      float* ds, bool log, bool accumulate) {
  launch_.each("softmax_backward", rows, SoftmaxBackward{d, z, dz, ds, log, accumulate});
}

template <class L>
void KernelQueue<L>::log_softmax_tangent(Index rows, Index d, const float* z, const float* ds,
                                         float* dz) {
  launch_.each("log_softmax_tangent", rows, LogSoftmaxTangent{d, z, ds, dz});
}

template <class L> void KernelQueue<L>::dropout(const DeviceDropout& d) {
  launch_.each("dropout", d.rows * d.d, Dropout{d});
}

template <class L>
void KernelQueue<L>::column_sums(Index rows, Index d, const float* x, float* out, bool accumulate) {
  constexpr Index kRows = 32, kMost = 64;  // rows per chunk at least, chunks at most
  Index chunks = (rows + kRows - 1) / kRows;
  if (chunks > kMost) chunks = kMost;
  if (chunks > kScratch / d) chunks = kScratch / d;
  if (chunks <= 1) {
    launch_.each("column_sums", d, ColumnSums{rows, d, 1, x, out, accumulate});
    return;
  }
  launch_.each("column_sums", chunks * d, ColumnSums{rows, d, chunks, x, scratch_, false});
  launch_.each("column_sums", d, ColumnSums{chunks, d, 1, scratch_, out, accumulate});
}

template <class L> void KernelQueue<L>::sparse(const DeviceSparse& s) {
  launch_.each("sparse", s.rows * s.units, Sparse{s});
}

template <class L> void KernelQueue<L>::sparse_gradient(const DeviceSparseGradient& s) {
  launch_.each("sparse_gradient", s.edges, SparseGradient{s});
}

template <class L>
void KernelQueue<L>::nearest(Index rows, Index prototypes, Index d, const float* w, const float* x,
                             float* index, float* chosen) {
  launch_.each("nearest", rows, Nearest{prototypes, d, w, x, index, chosen});
}

template <class L>
void KernelQueue<L>::nearest_gradient(Index rows, Index prototypes, Index d, const float* index,
                                      const float* grad, float* dw, bool accumulate) {
  launch_.each("nearest_gradient", prototypes * d,
               NearestGradient{rows, d, index, grad, dw, accumulate});
}

template <class L>
void KernelQueue<L>::outer(const DeviceOuter& o, float* to, Index ld, bool accumulate) {
  launch_.each("outer", o.rows * o.entries, Outer{o, to, ld, accumulate});
}

template <class L>
void KernelQueue<L>::outer_dots(const DeviceOuter& u, const DeviceOuter& v, float factor,
                                float* sums) {
  launch_.rows("outer_dots", u.rows, u.entries, EntryProduct{u, v},
               FinishDots{nullptr, factor, sums, true});
}

template <class L> void KernelQueue<L>::row_dots(const DeviceDots& r) {
  launch_.rows("row_dots", r.rows, r.d, Product{r.a, r.b, r.d},
               FinishDots{r.times, r.factor, r.sums, r.accumulate});
}

template <class L> void KernelQueue<L>::transpose(const DeviceTranspose& t) {
  launch_.each("transpose", t.count * t.rows * t.cols, Transpose{t});
}

template <class L> void KernelQueue<L>::gather(const DeviceGather& g) {
  launch_.each("gather", g.count * g.cols, Gather{g});
}

template <class L>
void KernelQueue<L>::open_step(DeviceStep* at, Index count, const float* weight,
                               const float* class_weight, const std::int64_t* labels,
                               double sum_factor) {
  launch_.sum("open_step", count, SampleWeight{weight, class_weight, labels},
              OpenStep{at, sum_factor});
}

template <class L> void KernelQueue<L>::cost(const DeviceCost& c) {
  visit_entry(Costs{}, c.id, [&]<class C>() { launch_.each(C::info.name, c.count, CostOf<C>{c}); });
}

template <class L>
void KernelQueue<L>::close_loss(DeviceStep* at, Index count, const float* loss, const float* weight,
                                double* results, bool allow_non_finite) {
  launch_.sum("close_loss", count, WeightedLoss{loss, weight},
              CloseLoss{at, results, allow_non_finite});
}

template <class L> void KernelQueue<L>::update(const DeviceUpdate& u) {
  if (u.clip_norm > 0)
    launch_.sum("gradient_norm", u.n, SquaredGradient{u.g, u.what, u.clip_value},
                ClipFactor{u.clip_norm, factor_});
  visit_entry(UpdateRules{}, u.rule, [&]<class Rule>() {
    launch_.each(Rule::info.name, u.n, Update<Rule>{u, u.clip_norm > 0 ? factor_ : nullptr});
  });
}

template <class L> void KernelQueue<L>::close_step(DeviceStep* at, Index count) {
  launch_.each("close_step", 1, CloseStep{at, count});
}

}  // namespace gradstack::device

// The launches of KernelQueue, for the translation unit that instantiates it.
#pragma once

#include "kernels.hpp"

namespace gradstack::device {

template <class L>
template <class F, class Z, class T, class... Rest>
void KernelQueue<L>::map(const char* name, Index n, const F& f, Z* z, bool accumulate, const T* x,
                         const Rest*... rest) {
  const bool aligned = holds_packs(z) && holds_packs(x) && (holds_packs(rest) && ...);
  launch_.each(name, (n + kPack - 1) / kPack,
               Map<T, Z, 1 + static_cast<int>(sizeof...(Rest)), F>{
                   f, n, {x, rest...}, z, accumulate, aligned});
}

template <class L>
void KernelQueue<L>::forward(const DeviceOp& op, Index n, DeviceIn s, DeviceOut z) {
  visit_type(z.type, [&]<class T>() {
    visit_op(op.id, op.p, [&](auto h) {
      map(decltype(h)::info.name, n, Forward<decltype(h)>{h}, z.as<T>(), false, s.as<T>());
    });
  });
}

template <class L>
void KernelQueue<L>::backward(const DeviceOp& op, Index n, DeviceIn s, DeviceIn z, DeviceIn dz,
                              DeviceOut ds, bool accumulate) {
  const bool from_z = !s;
  visit_type(ds.type, [&]<class T>() {
    visit_op(op.id, op.p, [&](auto h) {
      map(decltype(h)::info.name, n, Backward<decltype(h)>{h, from_z}, ds.as<T>(), accumulate,
          (from_z ? z : s).template as<T>(), dz.as<T>());
    });
  });
}

template <class L>
void KernelQueue<L>::bias_forward(const DeviceOp& op, Index rows, Index cols, DeviceIn bias,
                                  DeviceOut s, std::uint8_t* bits) {
  visit_type(s.type, [&]<class T>() {
    visit_op(op.id < 0 ? 0 : op.id, op.p, [&](auto h) {  // op 0 is the identity
      if constexpr (decltype(h)::info.epilogue == Epilogue::ReLU) {
        if (bits)
          return launch_.each(
              "bias and bits", rows * bytes_of_bits(cols),
              BiasForwardBits<T, decltype(h)>{h, cols, bias.as<T>(), s.as<T>(), bits});
      }
      const BiasForward<T, decltype(h)> f{h, {cols}, bias.as<T>()};
      map("bias", rows * cols, f, s.as<T>(), false, DeviceIn(s).as<T>());
    });
  });
}

template <class L>
void KernelQueue<L>::binary(DeviceBinary kind, Index n, DeviceIn a, DeviceIn b, DeviceOut z) {
  visit_type(z.type, [&]<class T>() {
    map("binary", n, Binary{kind}, z.as<T>(), false, a.as<T>(), b.as<T>());
  });
}

template <class L>
void KernelQueue<L>::binary_backward(DeviceBinary kind, bool first, Index n, DeviceIn a, DeviceIn b,
                                     DeviceIn dz, DeviceOut to, bool accumulate) {
  visit_type(to.type, [&]<class T>() {
    map("binary_backward", n, BinaryBackward{kind, first}, to.as<T>(), accumulate,
        (a ? a : dz).template as<T>(), (b ? b : dz).template as<T>(), dz.as<T>());
  });
}

template <class L> void KernelQueue<L>::columns(const DeviceColumns& c) {
  visit_type(c.to.type,
             [&]<class T>() { launch_.each("columns", c.rows * c.cols, Columns<T>{c}); });
}

template <class L>
void KernelQueue<L>::softmax(Index rows, Index d, DeviceIn s, DeviceOut z, bool log) {
  visit_type(z.type, [&]<class T>() {
    launch_.each("softmax", rows, Softmax<T>{d, s.as<T>(), z.as<T>(), log});
  });
}

template <class L>
void KernelQueue<L>::softmax_backward(Index rows, Index d, DeviceIn z, DeviceIn dz, DeviceOut ds,
                                      bool log, bool accumulate) {
  visit_type(ds.type, [&]<class T>() {
    launch_.each("softmax_backward", rows,
                 SoftmaxBackward<T>{d, z.as<T>(), dz.as<T>(), ds.as<T>(), log, accumulate});
  });
}

template <class L>
void KernelQueue<L>::log_softmax_tangent(Index rows, Index d, const float* z, const float* ds,
                                         float* dz) {
  launch_.each("log_softmax_tangent", rows, LogSoftmaxTangent{d, z, ds, dz});
}

template <class L> void KernelQueue<L>::dropout(const DeviceDropout& d) {
  visit_type(d.z.type, [&]<class T>() { launch_.each("dropout", d.rows * d.d, Dropout<T>{d}); });
}

template <class L>
void KernelQueue<L>::column_sums(Index rows, Index d, DeviceIn x, float* out, bool accumulate) {
  constexpr Index kRows = 32, kMost = 64;  // rows per chunk at least, chunks at most
  Index chunks = (rows + kRows - 1) / kRows;
  if (chunks > kMost) chunks = kMost;
  if (chunks > kScratch / d) chunks = kScratch / d;
  const bool one = chunks <= 1;
  visit_type(x.type, [&]<class T>() {
    launch_.each("column_sums", (one ? 1 : chunks) * d,
                 ColumnSums<T>{rows, d, one ? 1 : chunks, x.as<T>(), one ? out : scratch_,
                               one && accumulate});
  });
  if (!one)
    launch_.each("column_sums", d, ColumnSums<float>{chunks, d, 1, scratch_, out, accumulate});
}

template <class L> void KernelQueue<L>::convert(Index n, DeviceIn from, DeviceOut to) {
  if (from.type == DeviceType::Float32)
    visit_type(to.type,
               [&]<class T>() { map("convert", n, Same{}, to.as<T>(), false, from.as<float>()); });
  else
    visit_type(from.type,
               [&]<class T>() { map("convert", n, Same{}, to.as<float>(), false, from.as<T>()); });
}

template <class L> void KernelQueue<L>::sparse(const DeviceSparse& s) {
  visit_type(s.y.type, [&]<class T>() { launch_.each("sparse", s.rows * s.units, Sparse<T>{s}); });
}

template <class L> void KernelQueue<L>::sparse_gradient(const DeviceSparseGradient& s) {
  visit_type(s.x.type,
             [&]<class T>() { launch_.each("sparse_gradient", s.edges, SparseGradient<T>{s}); });
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

template <class L> void KernelQueue<L>::permutation(const DevicePermutation& p) {
  this->zero(p.first, static_cast<std::size_t>(p.n) * sizeof(Index));
  launch_.each("permutation_lists", p.n, PermutationLists{p});
  launch_.each("permutation_order", p.n, PermutationOrder{p});
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

template <class L>
void KernelQueue<L>::find_overflow(DeviceStep* at, Index n, const float* g,
                                   const std::uint8_t* what) {
  launch_.each("find_overflow", n, FindOverflow{at, g, what});
}

template <class L> void KernelQueue<L>::update(const DeviceUpdate& u) {
  if (u.clip_norm > 0)
    launch_.sum("gradient_norm", u.n, SquaredGradient{u.g, u.what, u.at, u.clip_value},
                ClipFactor{u.clip_norm, factor_});
  visit_entry(UpdateRules{}, u.rule, [&]<class Rule>() {
    launch_.each(Rule::info.name, u.n, Update<Rule>{u, u.clip_norm > 0 ? factor_ : nullptr});
  });
}

template <class L>
void KernelQueue<L>::close_step(DeviceStep* at, Index count, bool allow_non_finite) {
  launch_.each("close_step", 1, CloseStep{at, count, allow_non_finite});
}

}  // namespace gradstack::device

// The op table: every pointwise function z = h(s) of the library, once.
//
// A functor gives h and its first three derivatives as templates over the value type V, which is a
// scalar (reference backend, CUDA) or a SIMD vector (cpu backend). Forward, VJP, JVP, second order,
// Python names, docs, exports and tests are all driven from `PointwiseOps` at the end of this file:
// adding a function is one functor, in ops/ with its family, and one entry in that list.
//
// Rules for functors
//   * constructed from `const double*` parameters (at most kMaxOpParams);
//   * branch-free: `select(mask, a, b)`; both sides are evaluated, so neither may trap;
//   * elementary functions are called unqualified after `using namespace math;` (vectors by ADL);
//   * formulas and derivatives at kinks are PyTorch's (which gives second derivatives at a kink the
//     value 0, or the outer side's); derivatives of every order are finite for finite s;
//   * NaN in s is NaN in h;
//   * `c` is h for `gs.export_c`: the body of a C function of `real s` and of the parameters under
//     their names. Numbers have a point, functions are those of <math.h> for double, from which
//     float's follow. It is as careful as h: no NaN out of infinities, and NaN stays NaN;
//   * `d1_from_z` may be offered where h' is a cheap function of the output z (then s is not kept).
#pragma once

#include <type_traits>

#include "gradstack/ops/arithmetic.hpp"
#include "gradstack/ops/clipped.hpp"
#include "gradstack/ops/gated.hpp"
#include "gradstack/ops/rectifiers.hpp"
#include "gradstack/ops/sigmoids.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace ops {

// What a functor must offer; a missing derivative does not compile.
template <class Op, class V>
concept PointwiseOver = requires(const Op op, const V x) {
  requires std::is_same_v<decltype(op.h(x)), V>;
  requires std::is_same_v<decltype(op.d1(x)), V>;
  requires std::is_same_v<decltype(op.d2(x)), V>;
  requires std::is_same_v<decltype(op.d3(x)), V>;
};

template <class Op>
concept PointwiseOp = PointwiseOver<Op, float> && PointwiseOver<Op, double> &&
                      std::is_constructible_v<Op, const double*> &&
                      std::is_same_v<decltype(Op::info), const OpInfo> &&
                      std::is_same_v<decltype(Op::c), const char* const> &&
                      (Op::info.n_params <= kMaxOpParams) &&
                      (!Op::has_d1_from_z ||
                       requires(const Op op, const double z) { op.d1_from_z(z); });

}  // namespace ops

template <class... Ops> struct OpList {
  static_assert((ops::PointwiseOp<Ops> && ...),
                "an op lacks a derivative, info, its C form or constructor");
  static constexpr int size = static_cast<int>(sizeof...(Ops));
  static constexpr OpInfo info[size] = {Ops::info...};
  static constexpr const char* c[size] = {Ops::c...};
};

// An OpId is a position in this list.
using PointwiseOps =
    OpList<ops::Identity, ops::ReLU, ops::LeakyReLU, ops::ELU, ops::SELU, ops::CELU, ops::GELU,
           ops::GELUTanh, ops::SiLU, ops::Mish, ops::Softplus, ops::Softsign, ops::Sigmoid,
           ops::LogSigmoid, ops::Tanh, ops::Tanhshrink, ops::Hardtanh, ops::ReLU6, ops::Hardsigmoid,
           ops::Hardswish, ops::Sine, ops::Affine, ops::Reciprocal>;

inline constexpr int kNumOps = PointwiseOps::size;

// 0 <= id < kNumOps.
constexpr const OpInfo& op_info(int id) { return PointwiseOps::info[id]; }
constexpr const char* op_c(int id) { return PointwiseOps::c[id]; }

namespace ops {

template <class F, class Op, class... Rest>
GS_INLINE decltype(auto) visit(OpList<Op, Rest...>, int id, const double* p, F&& f) {
  if constexpr (sizeof...(Rest) == 0) {
    return f(Op(p));
  } else {
    if (id == 0) return f(Op(p));
    return visit(OpList<Rest...>{}, id - 1, p, static_cast<F&&>(f));
  }
}

}  // namespace ops

// The OpId of a function name, or -1.
constexpr int find_op(const char* name) { return find_row(PointwiseOps::info, name); }

// f(op) with the functor of `id` built from its parameters p; every f(op) has the same type.
template <class F> GS_INLINE decltype(auto) visit_op(int id, const double* p, F&& f) {
  return ops::visit(PointwiseOps{}, id, p, static_cast<F&&>(f));
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

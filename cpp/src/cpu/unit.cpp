// The cpu backend for one instruction set. Compiled once per set with GRADSTACK_UNIT naming it (v2,
// v3, v4, neon) and the matching -march; everything but the two exported functions lives in that
// unit's own inline namespace. Where the compiler cannot target the set, stub.cpp takes the
// place of this file.
#include "dropout.hpp"
#include "flat.hpp"
#include "gemm.hpp"
#include "kernel_tables.hpp"
#include "layout.hpp"
#include "normal.hpp"
#include "softmax.hpp"
#include "sparse.hpp"
#include "unit_name.hpp"
#include "vector_products.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

template <class T>
inline constexpr Kernels<T> kTable = {
    .name = GS_UNIT_STRING,
    .vector = Vec<T>::size,
    .gemm = gemm<T>,
    .gemv = gemv<T>,
    .gemv_few = gemv_few<T>,
    .gemv_t = gemv_t<T>,
    .ger = ger<T>,
    .sparse_rows = sparse_rows<T>,
    .sparse_products = sparse_products<T>,
    .rows_to_block = rows_to_block<T>,
    .gather_rows = gather_rows<T>,
    .block_to_rows = block_to_rows<T>,
    .sum_lanes = sum_lanes<T>,
    .add = add<T>,
    .mul = mul<T>,
    .div = div<T>,
    .axpy = axpy<T>,
    .softmax = softmax<T>,
    .softmax_backward = softmax_backward<T>,
    .dropout = dropout<T>,
    .normal = normal_values<T>,
    .pointwise = PointwiseTable<T, Pointwise, PointwiseOps>::rows,
    .update = UpdateTable<T, Update, UpdateRules>::rows,
    .cost = CostTable<T, Vec<T>, Costs>::rows,
};

}  // namespace GRADSTACK_UNIT

const Kernels<float>* GS_UNIT_FUNCTION(f32)() { return &kTable<float>; }
#ifndef GRADSTACK_UNIT_SINGLE_ONLY  // a test of the generic code, which half of it covers
const Kernels<double>* GS_UNIT_FUNCTION(f64)() { return &kTable<double>; }
#endif

}  // namespace gradstack

// Moving samples between the caller's rows and a plan's blocks.
#pragma once

#include <vector>

#include "gradstack/data.hpp"
#include "gradstack/plan.hpp"

namespace gradstack {

// Binds samples [first, first + count) of x: where they lie, or gathered into the plan's rows.
template <class T>
void bind_rows(Plan<T>& plan, const std::vector<RowSource>& x, Index first, Index count) {
  plan.set_count(count);
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (is_native<T>(x[i])) {
      plan.bind_input(i, row_of<T>(x[i], first), x[i].row_stride / static_cast<Index>(sizeof(T)));
      continue;
    }
    T* rows = plan.input_rows(i);
    for (Index j = 0; j < count; ++j) gather_row(x[i], first + j, rows + j * x[i].cols);
    plan.bind_input(i, rows, x[i].cols);
  }
}

// One block of d features as rows of stride ld.
template <class T>
void block_out(const Plan<T>& plan, const T* blocks, Index d, Index block, T* rows, Index ld) {
  const Index lanes = plan.lanes();
  plan.kernels().block_to_rows(plan.block_samples(block), d, lanes, blocks + block * d * lanes,
                               rows + block * lanes * ld, ld, false);
}

// Rows (null: zeros) into one block whose padding lanes become zero; entries of a row lie `step`
// apart.
template <class T>
void block_in(const Plan<T>& plan, const T* rows, Index d, Index block, T* blocks, Index ld,
              Index step = 1, bool accumulate = false) {
  const Index lanes = plan.lanes(), n = plan.block_samples(block);
  for (Index j = 0; j < d; ++j)
    for (Index l = 0; l < lanes; ++l) {
      T& to = blocks[(block * d + j) * lanes + l];
      const T value = rows && l < n ? rows[(block * lanes + l) * ld + j * step] : T(0);
      to = accumulate ? to + value : value;
    }
}

// The unit vector e_j for every sample of one block.
template <class T> void block_unit(const Plan<T>& plan, Index j, Index d, Index block, T* blocks) {
  const Index lanes = plan.lanes(), n = plan.block_samples(block);
  T* to = blocks + block * d * lanes;
  for (Index i = 0; i < d * lanes; ++i) to[i] = T(0);
  for (Index l = 0; l < n; ++l) to[j * lanes + l] = T(1);
}

}  // namespace gradstack

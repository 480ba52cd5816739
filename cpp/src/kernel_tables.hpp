// Kernel tables made from the lists of ops, rules and costs, for every backend alike.
//
// A backend brings the loops, as class templates over the element type and one list entry; position
// in a list is position in the table.
#pragma once

#include "gradstack/backend.hpp"
#include "gradstack/costs.hpp"
#include "gradstack/ops.hpp"
#include "gradstack/updates.hpp"

namespace gradstack {
inline namespace GRADSTACK_UNIT {

// Loops<T, Op> has the static functions forward, backward and derivative of PointwiseKernels.
template <class T, template <class, class> class Loops, class List> struct PointwiseTable;

template <class T, template <class, class> class Loops, class... Ops>
struct PointwiseTable<T, Loops, OpList<Ops...>> {
  static constexpr PointwiseKernels<T> rows[] = {{Loops<T, Ops>::forward, Loops<T, Ops>::backward,
                                                  Loops<T, Ops>::derivative,
                                                  Ops::has_d1_from_z}...};
};

// Loops<T, Rule> has the static function apply(const UpdateArgs<T>&).
template <class T, template <class, class> class Loops, class List> struct UpdateTable;

template <class T, template <class, class> class Loops, class... Rules>
struct UpdateTable<T, Loops, RuleList<Rules...>> {
  static constexpr void (*rows[])(const UpdateArgs<T>&) = {Loops<T, Rules>::apply...};
};

// V is what the costs compute with: T, or a vector of T.
template <class T, class V, class List> struct CostTable;

template <class T, class V, class... Cs> struct CostTable<T, V, CostList<Cs...>> {
  static constexpr void (*rows[])(const CostArgs<T>&) = {cost_block<Cs, V, T>...};
};

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

// What a row of the cost table (costs.hpp) says of its cost.
#pragma once

#include "gradstack/config.hpp"
#include "gradstack/table.hpp"

namespace gradstack {

inline constexpr int kMaxCostParams = 3;

enum class TargetKind { kDense, kLabels, kLabelsOrDense, kNone };

struct CostInfo {
  const char* name;  // class name, as in nn.MSELoss
  int n_params = 0;
  Param params[kMaxCostParams] = {};
  TargetKind target = TargetKind::kDense;
  bool mean = true;            // L is a mean over components (else a sum, or row-wise)
  int ybar_per_y = 1;          // d = ybar_per_y * (dy - y_extra) for dense targets; 0: any d
  int y_extra = 0;             // columns of y that stand for no component of ybar
  bool class_weights = false;  // accepts CostArgs::weight
  bool has_second = true;      // false: piecewise linear, the Hessian is 0 wherever it exists
  bool has_gradient = true;    // false: piecewise constant, only zeroth-order methods can use it
};

inline namespace GRADSTACK_UNIT {

// Width of the dense targets that go with outputs of d features, or -1: none do.
constexpr Index target_width(const CostInfo& info, Index d) {
  if (info.ybar_per_y == 0) return info.y_extra;
  return d % info.ybar_per_y == 0 ? d / info.ybar_per_y + info.y_extra : -1;
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

// What a functor of the op table says of itself, and the mathematics that it is written with.
#pragma once

#include "gradstack/config.hpp"
#include "gradstack/math.hpp"
#include "gradstack/table.hpp"

namespace gradstack {

inline constexpr int kMaxOpParams = 2;

struct OpInfo {
  const char* name;    // function name, as in gs.relu
  const char* module;  // module class name, as in nn.ReLU; "" for internal ones and variants
  int n_params = 0;
  Param params[kMaxOpParams] = {};
};

inline namespace GRADSTACK_UNIT {
namespace ops {

using namespace math;

}  // namespace ops
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

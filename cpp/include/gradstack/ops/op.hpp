// What a functor of the op table says of itself, and the mathematics that it is written with.
#pragma once

#include "gradstack/config.hpp"
#include "gradstack/math.hpp"
#include "gradstack/table.hpp"

namespace gradstack {

inline constexpr int kMaxOpParams = 2;

// What the matrix product of a vendor's library can put behind a product in the same call: h, and
// in the backward pass the factor h'.
enum class Epilogue { None, ReLU, GELUTanh };

struct OpInfo {
  const char* name;    // function name, as in gs.relu
  const char* module;  // module class name, as in nn.ReLU; "" for internal ones and variants
  int n_params = 0;
  Param params[kMaxOpParams] = {};
  Epilogue epilogue = Epilogue::None;  // the one that is this function
};

inline namespace GRADSTACK_UNIT {
namespace ops {

using namespace math;

}  // namespace ops
}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

// The vector functions of one instruction set, over arrays.
#pragma once

#include "gradstack/config.hpp"

namespace gradstack {

struct MathFunction {
  const char* name;
  // y[i] = f(x[i]); n is a multiple of every vector's size.
  void (*f32)(const float* x, float* y, Index n);
  void (*f64)(const double* x, double* y, Index n);
};

// Ends with a function without name. Null where the unit was left out of this build.
const MathFunction* v2_math_functions();
const MathFunction* v3_math_functions();
const MathFunction* v4_math_functions();
const MathFunction* neon_math_functions();

}  // namespace gradstack

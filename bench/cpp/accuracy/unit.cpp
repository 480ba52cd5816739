// The vector functions as the kernels of one instruction set have them: compiled once for each,
// with the kernels' flags.
#include "cpu/simd_math.hpp"
#include "functions.hpp"

#define GS_FUNCTIONS_OF(unit) unit##_math_functions
#define GS_FUNCTIONS(unit) GS_FUNCTIONS_OF(unit)

namespace gradstack {
inline namespace GRADSTACK_UNIT {
namespace {

template <class F, class T> void over(const T* x, T* y, Index n) {
  for (Index i = 0; i < n; i += Vec<T>::size) F::of(Vec<T>::load(x + i)).store(y + i);
}

#define GS_FUNCTION(name, function)                 \
  struct name##_of {                                \
    template <class V> static GS_INLINE V of(V x) { \
      using namespace math;                         \
      return function(x);                           \
    }                                               \
  };
#define GS_ROW(name) \
  { #name, over < name##_of, float>, over < name##_of, double> }

GS_FUNCTION(exp, exp)
GS_FUNCTION(expm1, expm1)
GS_FUNCTION(log, log)
GS_FUNCTION(log1p, log1p)
GS_FUNCTION(tanh, tanh)
GS_FUNCTION(sigmoid, sigmoid)
GS_FUNCTION(softplus, log1p_exp)
GS_FUNCTION(erf, erf)
GS_FUNCTION(erfc, erfc)
GS_FUNCTION(sin, sin)
GS_FUNCTION(cos, cos)

const MathFunction functions[] = {GS_ROW(exp),      GS_ROW(expm1), GS_ROW(log),
                                  GS_ROW(log1p),    GS_ROW(tanh),  GS_ROW(sigmoid),
                                  GS_ROW(softplus), GS_ROW(erf),   GS_ROW(erfc),
                                  GS_ROW(sin),      GS_ROW(cos),   {nullptr, nullptr, nullptr}};

}  // namespace
}  // namespace GRADSTACK_UNIT

const MathFunction* GS_FUNCTIONS(GRADSTACK_UNIT)() { return functions; }

}  // namespace gradstack

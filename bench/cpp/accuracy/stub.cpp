// Stands in for unit.cpp where this build does not target the instruction set.
#include "functions.hpp"

#define GS_FUNCTIONS_OF(unit) unit##_math_functions
#define GS_FUNCTIONS(unit) GS_FUNCTIONS_OF(unit)

namespace gradstack {

const MathFunction* GS_FUNCTIONS(GRADSTACK_UNIT)() { return nullptr; }

}  // namespace gradstack

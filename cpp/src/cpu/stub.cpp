// Stands in for unit.cpp where this build does not target the instruction set.
#include "unit_name.hpp"

namespace gradstack {

const Kernels<float>* GS_UNIT_FUNCTION(f32)() { return nullptr; }
const Kernels<double>* GS_UNIT_FUNCTION(f64)() { return nullptr; }

}  // namespace gradstack

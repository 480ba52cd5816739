// Names derived from GRADSTACK_UNIT, and the functions that units export.
#pragma once

#include "gradstack/backend.hpp"

#define GS_STRING_OF(x) #x
#define GS_STRING(x) GS_STRING_OF(x)
#define GS_UNIT_STRING GS_STRING(GRADSTACK_UNIT)

#define GS_KERNELS_OF(unit, dtype) unit##_kernels_##dtype
#define GS_KERNELS(unit, dtype) GS_KERNELS_OF(unit, dtype)
#define GS_UNIT_FUNCTION(dtype) GS_KERNELS(GRADSTACK_UNIT, dtype)

namespace gradstack {

// Null where the unit was left out of this build.
const Kernels<float>* v2_kernels_f32();
const Kernels<double>* v2_kernels_f64();
const Kernels<float>* v3_kernels_f32();
const Kernels<double>* v3_kernels_f64();
const Kernels<float>* v4_kernels_f32();
const Kernels<double>* v4_kernels_f64();
const Kernels<float>* neon_kernels_f32();
const Kernels<double>* neon_kernels_f64();

}  // namespace gradstack

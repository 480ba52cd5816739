// Macros shared by every unit, and the namespace rule that keeps instruction sets apart.
//
// Code that is compiled once per instruction set (op functors, vector maths, kernels) lives in the
// inline namespace GRADSTACK_UNIT. A kernel unit defines GRADSTACK_UNIT before it includes anything
// (v2, v3, v4, neon, ...), so an inline function instantiated under -mavx512f can never be the copy
// that the linker keeps for a baseline unit.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef GRADSTACK_UNIT
#define GRADSTACK_UNIT baseline
#endif

#if defined(__CUDACC__)
#define GS_HD __host__ __device__
#else
#define GS_HD
#endif

#define GS_INLINE inline __attribute__((always_inline))

namespace gradstack {

using Index = std::ptrdiff_t;

// Samples per block: activations are stored [block][feature][kLanes]. 32 lanes are two AVX-512,
// four AVX2 or eight SSE/NEON float vectors: wide enough for register tiles on each of them.
inline constexpr Index kLanes = 32;
// Batches too small to fill such a block get one of half or a quarter of it.
inline constexpr Index kFewestLanes = 8;
// Those that would fill no more than half of the smallest get a block for every sample, of one
// lane.
inline constexpr Index kFewSamples = 4;

// Features per tile where samples are rows, see Variable::tiles.
inline constexpr Index kPanel = 32;

}  // namespace gradstack

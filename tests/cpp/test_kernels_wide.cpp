// The generic kernels with 64-byte vectors, lowered by the compiler to whatever this machine has:
// the tails, packings and tile shapes of AVX-512 are tested everywhere. The kernel tests run it
// next to the real units (kernel_cases.hpp). In single precision: eight lanes, as doubles would
// have, are those of AVX2, and compilers take long for registers they do not have.
#define GRADSTACK_UNIT wide
#define GRADSTACK_UNIT_SINGLE_ONLY
#define GRADSTACK_VEC_BYTES 64

// Vectors wider than the machine's are only passed between inlined functions.
#pragma GCC diagnostic ignored "-Wpsabi"

#include <doctest/doctest.h>

#include "cpu/unit.cpp"

namespace gradstack {

const Kernels<float>* wide_kernels_f32();

}  // namespace gradstack

TEST_CASE("the emulated unit has 64-byte vectors and the tiles of AVX-512") {
  CHECK(gradstack::Vec<float>::size == 16);
  CHECK(doctest::String(gradstack::wide_kernels_f32()->name) == "wide");
  CHECK((gradstack::Tile::kRows == 12 || gradstack::Tile::kRows == 8));
}

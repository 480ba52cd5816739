// Random numbers, the same on every machine.
#pragma once

#include <cstddef>
#include <vector>

namespace test {

// n numbers from [lo, hi).
std::vector<double> uniform(std::size_t n, unsigned seed, double lo, double hi);

}  // namespace test

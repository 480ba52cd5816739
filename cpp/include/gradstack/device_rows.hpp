// Calls of a device that keep samples apart: gradients, products and Jacobians row by row.
#pragma once

#include "gradstack/config.hpp"

namespace gradstack {

// The gradient of a linear block's weights in every row, an outer product that is not formed:
// entry k is mask[k] a[row][i] b[row / repeats][j].
struct DeviceOuter {
  Index rows = 0, m = 0, n = 0;  // features of a and of b
  Index entries = 0;             // m n, or edges
  const float* a = nullptr;      // (rows, m)
  const float* b = nullptr;      // (rows / repeats, n)
  Index repeats = 1;
  const std::int32_t* ends = nullptr;  // i and j of every edge; null: i = k / n, j = k % n
  const float* mask = nullptr;         // (entries,); null: 1
};

// sums[row] (+)= factor times[row] <a[row], b[row]>.
struct DeviceDots {
  Index rows = 0, d = 0;
  const float* a = nullptr;
  const float* b = nullptr;
  const float* times = nullptr;  // (rows,); null: 1
  float factor = 1;
  float* sums = nullptr;
  bool accumulate = false;
};

// Matrices from (rows, cols) each to their transposes, (cols, rows) in rows of ld_to.
struct DeviceTranspose {
  Index count = 0, rows = 0, cols = 0;
  const float* from = nullptr;
  float* to = nullptr;
  Index ld_to = 0;
};

}  // namespace gradstack

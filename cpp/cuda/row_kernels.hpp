// Kernels that keep samples apart (device_rows.hpp).
#pragma once

#include "gradstack/device_rows.hpp"
#include "gradstack/math.hpp"
#include "kernel_tools.hpp"

namespace gradstack::device {

GS_HD GS_INLINE float entry(const DeviceOuter& o, Index row, Index k) {
  Index i = 0, j = 0;
  if (o.ends) {
    i = o.ends[2 * k];
    j = o.ends[2 * k + 1];
  } else {
    i = Split{o.n}.row(k);
    j = k - i * o.n;
  }
  const Index sample = o.repeats == 1 ? row : Split{o.repeats}.row(row);
  const float product = o.a[row * o.m + i] * o.b[sample * o.n + j];
  // A weight that is not there has gradient 0, whatever the product.
  return o.mask && o.mask[k] == 0 ? 0.0F : product;
}

struct Outer {
  DeviceOuter o;
  float* to;
  Index ld;
  bool accumulate;
  GS_HD void operator()(Index i) const {
    const Index row = Split{o.entries}.row(i), k = i - row * o.entries;
    put(to + row * ld + k, entry(o, row, k), accumulate);
  }
};

struct EntryProduct {
  DeviceOuter u, v;
  GS_HD float operator()(Index row, Index k) const { return entry(u, row, k) * entry(v, row, k); }
};

struct Product {
  const float *a, *b;
  Index d;
  GS_HD float operator()(Index row, Index j) const { return a[row * d + j] * b[row * d + j]; }
};

struct FinishDots {
  const float* times;
  float factor;
  float* sums;
  bool accumulate;
  GS_HD void operator()(Index row, float sum) const {
    put(sums + row, factor * (times ? times[row] : 1.0F) * sum, accumulate);
  }
};

struct Transpose {
  DeviceTranspose t;
  GS_HD void operator()(Index i) const {
    const Index line = Split{t.rows}.row(i), row = i - line * t.rows;
    const Index matrix = Split{t.cols}.row(line), col = line - matrix * t.cols;
    t.to[line * t.ld_to + row] = t.from[(matrix * t.rows + row) * t.cols + col];
  }
};

// z = s - log(sum(exp(s))): dz = ds - <softmax(s), ds>, one thread a row.
struct LogSoftmaxTangent {
  Index d;
  const float *z, *ds;
  float* dz;
  GS_HD void operator()(Index row) const {
    const Index at = row * d;
    float sum = 0;
    for (Index j = at; j < at + d; ++j) sum = math::fma(math::exp(z[j]), ds[j], sum);
    for (Index j = at; j < at + d; ++j) dz[j] = ds[j] - sum;
  }
};

}  // namespace gradstack::device

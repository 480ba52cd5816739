// What the kernel tests share: sizes, guarded buffers, and the comparison with the double-precision
// reference. Every case runs for both dtypes on every set of kernels this machine can execute; in
// float32 the reference float kernels are themselves tested against the double ones.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gradstack/backend.hpp"
#include "gradstack/registry.hpp"
#include "support/random.hpp"

namespace gradstack {

// test_kernels_wide.cpp, where GRADSTACK_TEST_WIDE
const Kernels<float>* wide_kernels_f32();

}  // namespace gradstack

namespace kernel_cases {

using gradstack::Index;
using gradstack::Kernels;
using gradstack::kLanes;

// Below, at and above the widths of vectors, tiles and blocks; 784 spans several chunks of a sum.
inline const std::vector<Index> kSizes = {1, 2, 3, 5, 7, 17, 31, 33, 64, 65, 127, 784};
inline const std::vector<Index> kSmallSizes = {1, 2, 3, 5, 7, 17, 33, 64};

// An array of n elements between guard zones, off the natural alignment of vectors. Under
// AddressSanitizer the far guard is left out, so that reads past the end are caught as well.
template <class T> class Guarded {
 public:
  explicit Guarded(Index n, T value = T(0))
      : n_(n), all_(static_cast<std::size_t>(kFront + n + kBack), sentinel()) {
    for (Index i = 0; i < n; ++i) data()[i] = value;
  }

  T* data() { return all_.data() + kFront; }
  const T* data() const { return all_.data() + kFront; }
  Index size() const { return n_; }
  T& operator[](Index i) { return data()[i]; }
  const T& operator[](Index i) const { return data()[i]; }

  bool guards_intact() const {
    const T expected = sentinel();
    for (std::size_t i = 0; i < all_.size(); ++i) {
      const bool guard = i < kFront || i >= static_cast<std::size_t>(kFront + n_);
      if (guard && std::memcmp(&all_[i], &expected, sizeof(T)) != 0) return false;
    }
    return true;
  }

  // Same contents, bit for bit.
  bool same_bits(const Guarded& other) const {
    return n_ == other.n_ &&
           std::memcmp(data(), other.data(), static_cast<std::size_t>(n_) * sizeof(T)) == 0;
  }

 private:
#if GRADSTACK_ADDRESS_SANITIZER
  static constexpr Index kBack = 0;
#else
  static constexpr Index kBack = 67;
#endif
  static constexpr Index kFront = 67;
  static T sentinel() { return T(-1234.5678); }

  Index n_;
  std::vector<T> all_;
};

template <class T> Guarded<T> random_array(Index n, unsigned seed, double lo = -1, double hi = 1) {
  const std::vector<double> values = test::uniform(static_cast<std::size_t>(n), seed, lo, hi);
  Guarded<T> array(n);
  for (Index i = 0; i < n; ++i) array[i] = static_cast<T>(values[static_cast<std::size_t>(i)]);
  return array;
}

template <class T> Guarded<double> to_double(const Guarded<T>& array) {
  Guarded<double> wide(array.size());
  for (Index i = 0; i < array.size(); ++i) wide[i] = static_cast<double>(array[i]);
  return wide;
}

template <class T> Guarded<T> absolute(const Guarded<T>& array) {
  Guarded<T> result(array.size());
  for (Index i = 0; i < array.size(); ++i) result[i] = std::abs(array[i]);
  return result;
}

// The largest |got - want| / (factor eps bound): at most 1 for a kernel that rounds `factor` times
// on the way to values whose terms add up to `bound` in magnitude.
template <class T>
double worst_error(const Guarded<T>& got, const Guarded<double>& want, const Guarded<double>& bound,
                   double factor) {
  const double eps = static_cast<double>(std::numeric_limits<T>::epsilon());
  const double tiny = static_cast<double>(std::numeric_limits<T>::denorm_min());
  double worst = 0;
  for (Index i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, error / (factor * (eps * bound[i] + tiny)));
  }
  return worst;
}

inline Kernels<double> oracle() { return gradstack::reference_kernels(double()); }

// f(kernels) for every usable set of kernels, or for the one that GRADSTACK_ISA names, and for the
// emulated unit with 64-byte vectors (not in sanitizer builds).
template <class T, class F> void for_each_kernels(F&& f) {
  std::vector<const Kernels<T>*> all = gradstack::available_kernels<T>();
  if (std::getenv("GRADSTACK_ISA") != nullptr) all = {&gradstack::active_kernels<T>()};
#if GRADSTACK_TEST_WIDE
  if constexpr (sizeof(T) == 4) all.push_back(gradstack::wide_kernels_f32());
#endif
  for (const Kernels<T>* kernels : all) {
    const std::string name = kernels->name;
    CAPTURE(name);
    f(*kernels);
  }
}

}  // namespace kernel_cases

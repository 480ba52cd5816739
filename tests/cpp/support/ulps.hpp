// The measure of errors of the vector functions, for their test and for bench/cpp/accuracy.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

// |got - want| in units of the last place of T at want; 0 where got is want, correctly rounded.
template <class T, class Wide> double ulps(T got, Wide want) {
  if (std::isnan(want)) return std::isnan(got) ? 0.0 : HUGE_VAL;
  const T rounded = static_cast<T>(want);
  if (got == rounded) return 0.0;
  if (!std::isfinite(got) || std::isinf(rounded)) return HUGE_VAL;
  using Limits = std::numeric_limits<T>;
  int exponent = 0;
  std::frexp(want, &exponent);
  const int lowest = Limits::min_exponent - Limits::digits;
  const Wide ulp = std::ldexp(Wide(1), std::max(exponent - Limits::digits, lowest));
  return static_cast<double>(std::fabs(static_cast<Wide>(got) - want) / ulp);
}

// What kernels share.
#pragma once

#include "half.hpp"

namespace gradstack::device {

// Row and column of element i: 32-bit division where it suffices, as 64-bit division is a call.
struct Split {
  Index cols;
  GS_HD Index row(Index i) const {
    if (i <= 0xffffffffLL && cols <= 0xffffffffLL)
      return static_cast<Index>(static_cast<std::uint32_t>(i) / static_cast<std::uint32_t>(cols));
    return i / cols;
  }
};

template <class T> GS_HD GS_INLINE void put(T* to, float value, bool accumulate) {
  store(to, accumulate ? load(*to) + value : value);
}

// Threads that add up a row of `cols` values.
constexpr int kNarrowRow = 32, kWideRow = 256;
constexpr Index kNarrow = 512;  // columns
constexpr int row_threads(Index cols) { return cols <= kNarrow ? kNarrowRow : kWideRow; }

}  // namespace gradstack::device

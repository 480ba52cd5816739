// Views of the caller's data: any real scalar type, any strides, never copied as a whole. Rows are
// converted as they are gathered.
#pragma once

#include <vector>

#include "gradstack/config.hpp"

namespace gradstack {

enum class Scalar : std::uint8_t { Bool, I8, I16, I32, I64, U8, U16, U32, U64, F16, F32, F64 };

template <class T> constexpr Scalar scalar_of() {
  return sizeof(T) == sizeof(float) ? Scalar::F32 : Scalar::F64;
}

struct RowSource {
  const char* data = nullptr;
  Index rows = 0, cols = 0;
  Index row_stride = 0, col_stride = 0;  // bytes
  Scalar type = Scalar::F32;
};

// The rows of `source` are values of T, contiguous within a row and aligned: they can be used where
// they lie.
template <class T> bool is_native(const RowSource& source) {
  return source.type == scalar_of<T>() &&
         (source.cols <= 1 || source.col_stride == static_cast<Index>(sizeof(T))) &&
         source.row_stride % static_cast<Index>(sizeof(T)) == 0 &&
         reinterpret_cast<std::uintptr_t>(source.data) % alignof(T) == 0;
}

// Where a row of a native source lies.
template <class T> const T* row_of(const RowSource& source, Index row) {
  return reinterpret_cast<const T*>(source.data + row * source.row_stride);
}

template <class T> void gather_row(const RowSource& source, Index row, T* out);

// Labels of type int64 from any integer column.
std::int64_t label_at(const RowSource& source, Index row);

// The first row in [begin, end) with a NaN or an infinity (also a value too large for T), or -1.
template <class T> Index first_non_finite(const RowSource& source, Index begin, Index end);

// Where the samples of a batch come from: rows index[first..] (or first.. themselves when index is
// null) of the sources.
struct Batch {
  std::vector<RowSource> x;
  RowSource y;  // dense targets (rows, dy), or labels (rows, 1); data null: none
  bool labels = false;
  RowSource weight;  // sample weights (rows, 1); data null: none
  const Index* index = nullptr;
  Index first = 0;
  Index count = 0;

  Index row(Index i) const { return index ? index[first + i] : first + i; }
};

}  // namespace gradstack

#include "gradstack/data.hpp"

#include <cmath>
#include <cstring>

namespace gradstack {
namespace {

// Half precision, read as bits so that no compiler support for the type is needed.
struct Half {
  std::uint16_t bits;
  explicit operator float() const {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value;
    if (exponent == 31)
      value = fraction ? std::nanf("") : INFINITY;
    else if (exponent == 0)
      value = std::ldexp(static_cast<float>(fraction), -24);
    else
      value = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return bits & 0x8000 ? -value : value;
  }
  explicit operator double() const { return static_cast<float>(*this); }
  explicit operator std::int64_t() const {
    return static_cast<std::int64_t>(static_cast<float>(*this));
  }
};

// f(S{}) for the C++ type S behind a Scalar.
template <class F> decltype(auto) visit(Scalar type, F&& f) {
  switch (type) {
    case Scalar::Bool:
    case Scalar::U8:
      return f(std::uint8_t{});
    case Scalar::I8:
      return f(std::int8_t{});
    case Scalar::I16:
      return f(std::int16_t{});
    case Scalar::I32:
      return f(std::int32_t{});
    case Scalar::I64:
      return f(std::int64_t{});
    case Scalar::U16:
      return f(std::uint16_t{});
    case Scalar::U32:
      return f(std::uint32_t{});
    case Scalar::U64:
      return f(std::uint64_t{});
    case Scalar::F16:
      return f(Half{});
    case Scalar::F32:
      return f(float{});
    default:
      return f(double{});
  }
}

template <class S> S read(const char* p) {  // memory-mapped columns need not be aligned
  S value;
  std::memcpy(&value, p, sizeof(S));
  return value;
}

const char* row_begin(const RowSource& source, Index row) {
  return source.data + row * source.row_stride;
}

}  // namespace

template <class T> void gather_row(const RowSource& source, Index row, T* out) {
  const char* p = row_begin(source, row);
  if (is_native<T>(source)) {
    std::memcpy(out, p, static_cast<std::size_t>(source.cols) * sizeof(T));
    return;
  }
  visit(source.type, [&](auto zero) {
    using S = decltype(zero);
    for (Index j = 0; j < source.cols; ++j)
      out[j] = static_cast<T>(read<S>(p + j * source.col_stride));
  });
}

std::int64_t label_at(const RowSource& source, Index row) {
  return visit(source.type, [&](auto zero) {
    return static_cast<std::int64_t>(read<decltype(zero)>(row_begin(source, row)));
  });
}

template <class T> Index first_non_finite(const RowSource& source, Index begin, Index end) {
  if (source.type < Scalar::F16) return -1;
  return visit(source.type, [&](auto zero) -> Index {
    using S = decltype(zero);
    for (Index row = begin; row < end; ++row) {
      const char* p = row_begin(source, row);
      // x - x is 0 for finite x and NaN otherwise; the sum keeps any NaN.
      T sum = 0;
      for (Index j = 0; j < source.cols; ++j) {
        const T x = static_cast<T>(read<S>(p + j * source.col_stride));
        sum += x - x;
      }
      if (sum != T(0)) return row;
    }
    return -1;
  });
}

template void gather_row(const RowSource&, Index, float*);
template void gather_row(const RowSource&, Index, double*);
template Index first_non_finite<float>(const RowSource&, Index, Index);
template Index first_non_finite<double>(const RowSource&, Index, Index);

}  // namespace gradstack

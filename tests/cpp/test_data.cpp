// Rows of any type and stride.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "gradstack/data.hpp"
#include "support/numbers.hpp"

using namespace test;
using gradstack::RowSource;
using gradstack::Scalar;

namespace {

// Half precision from its definition: sign, 5 bits of exponent biased by 15, 10 bits of fraction.
double half_value(std::uint16_t bits) {
  const double sign = bits >> 15 ? -1 : 1;
  const int exponent = (bits >> 10) % 32;
  const double fraction = bits % 1024;
  if (exponent == 31)
    return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  if (exponent == 0) return sign * fraction / 16777216.0;  // 2^-24
  double value = sign * (1 + fraction / 1024);
  for (int e = exponent; e < 15; ++e) value /= 2;
  for (int e = exponent; e > 15; --e) value *= 2;
  return value;
}

template <class S> constexpr Scalar scalar_code();
template <> constexpr Scalar scalar_code<bool>() { return Scalar::Bool; }
template <> constexpr Scalar scalar_code<std::int8_t>() { return Scalar::I8; }
template <> constexpr Scalar scalar_code<std::int16_t>() { return Scalar::I16; }
template <> constexpr Scalar scalar_code<std::int32_t>() { return Scalar::I32; }
template <> constexpr Scalar scalar_code<std::int64_t>() { return Scalar::I64; }
template <> constexpr Scalar scalar_code<std::uint8_t>() { return Scalar::U8; }
template <> constexpr Scalar scalar_code<std::uint16_t>() { return Scalar::U16; }
template <> constexpr Scalar scalar_code<std::uint32_t>() { return Scalar::U32; }
template <> constexpr Scalar scalar_code<std::uint64_t>() { return Scalar::U64; }
template <> constexpr Scalar scalar_code<float>() { return Scalar::F32; }
template <> constexpr Scalar scalar_code<double>() { return Scalar::F64; }

template <class S> S extreme(Index i) {
  const S values[] = {S(0),  S(1), std::numeric_limits<S>::max(), std::numeric_limits<S>::lowest(),
                      S(17), S(3)};
  return values[i % 6];
}

// Every layout of a 4 x 3 array: element (i, j) at base + i * row + j * column bytes. `shift` moves
// the array off its alignment.
template <class S, class T> void check_layouts() {
  constexpr Index kRows = 4, kCols = 3;
  const Index s = sizeof(S);
  struct Layout {
    Index row, col;
  };
  const Layout layouts[] = {{kCols * s, s},  {10 * s, 2 * s},  {s, kRows * s},
                            {-kCols * s, s}, {kCols * s, -s},  {0, s},
                            {s, 0},          {-s, -kRows * s}, {10 * s + 1, s + 2}};
  for (const Layout& layout : layouts)
    for (const Index shift : {0, 1}) {
      std::vector<char> memory(800, 0x55);
      char* base = memory.data() + 400 + shift;
      for (Index i = 0; i < kRows; ++i)
        for (Index j = 0; j < kCols; ++j) {
          const S value = extreme<S>(i * kCols + j);
          std::memcpy(base + i * layout.row + j * layout.col, &value, sizeof(S));
        }
      const RowSource source{base, kRows, kCols, layout.row, layout.col, scalar_code<S>()};
      for (Index i = 0; i < kRows; ++i) {
        T out[kCols + 1] = {0, 0, 0, T(-7)};
        gradstack::gather_row(source, i, out);
        for (Index j = 0; j < kCols; ++j) {
          S value;
          std::memcpy(&value, base + i * layout.row + j * layout.col, sizeof(S));
          CHECK(out[j] == static_cast<T>(value));
        }
        CHECK(out[kCols] == T(-7));
      }
    }
}

template <class T> void check_all_types() {
  check_layouts<bool, T>();
  check_layouts<std::int8_t, T>();
  check_layouts<std::int16_t, T>();
  check_layouts<std::int32_t, T>();
  check_layouts<std::int64_t, T>();
  check_layouts<std::uint8_t, T>();
  check_layouts<std::uint16_t, T>();
  check_layouts<std::uint32_t, T>();
  check_layouts<std::uint64_t, T>();
  check_layouts<float, T>();
}

template <class S> RowSource column(const std::vector<S>& values) {
  return {reinterpret_cast<const char*>(values.data()),
          static_cast<Index>(values.size()),
          1,
          sizeof(S),
          sizeof(S),
          scalar_code<S>()};
}

}  // namespace

TEST_CASE("rows of every type, layout and alignment") {
  check_all_types<float>();
  check_all_types<double>();
  check_layouts<double, double>();
}

TEST_CASE("doubles become floats, the too large ones infinity") {
  const std::vector<double> values = {1.5, 0.1, 1e-60, 3.4e38, 1e39, -1e300, std::nan("")};
  for (std::size_t i = 0; i < values.size(); ++i) {
    float out = -1;
    gradstack::gather_row(column(values), static_cast<Index>(i), &out);
    if (std::isnan(values[i]))
      CHECK(std::isnan(out));
    else if (std::abs(values[i]) > 1e38 * 3.5)
      CHECK(out == std::copysign(HUGE_VALF, static_cast<float>(values[i])));
    else
      CHECK(std::abs(static_cast<double>(out) - values[i]) <= 6e-8 * std::abs(values[i]) + 1e-45);
  }
}

TEST_CASE("all values of half precision") {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  const RowSource source{reinterpret_cast<const char*>(bits.data()), 65536, 1, 2, 2, Scalar::F16};
  std::vector<float> f32(bits.size());
  std::vector<double> f64(bits.size());
  RowSource one_row = source;
  one_row.rows = 1;
  one_row.cols = 65536;
  gradstack::gather_row(one_row, 0, f32.data());
  gradstack::gather_row(one_row, 0, f64.data());
  Index wrong = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const double expected = half_value(bits[i]);
    const bool negative_zero = bits[i] == 0x8000;
    if (std::isnan(expected)) {
      wrong += !std::isnan(f32[i]) || !std::isnan(f64[i]);
    } else {
      wrong += f64[i] != expected || static_cast<double>(f32[i]) != expected;
      wrong += negative_zero && !(std::signbit(f32[i]) && std::signbit(f64[i]));
    }
    const Index row = static_cast<Index>(i);
    wrong += (gradstack::first_non_finite<float>(source, row, row + 1) == row) !=
             !std::isfinite(expected);
  }
  CHECK(wrong == 0);
}

TEST_CASE("labels from any integer column") {
  const auto check = [](auto zero) {
    using S = decltype(zero);
    const std::vector<S> labels = {S(0), S(3), S(100), S(7)};
    for (std::size_t i = 0; i < labels.size(); ++i)
      CHECK(gradstack::label_at(column(labels), static_cast<Index>(i)) ==
            static_cast<std::int64_t>(labels[i]));
  };
  check(std::int8_t{});
  check(std::int16_t{});
  check(std::int32_t{});
  check(std::int64_t{});
  check(std::uint8_t{});
  check(std::uint16_t{});
  check(std::uint32_t{});
  check(std::uint64_t{});
  check(float{});
  check(double{});
  const std::vector<std::int64_t> values = {-5, std::numeric_limits<std::int64_t>::max()};
  CHECK(gradstack::label_at(gradstack::labels_of(values.data(), 2), 0) == -5);
  CHECK(gradstack::label_at(gradstack::labels_of(values.data(), 2), 1) == values[1]);
}

TEST_CASE("the first row that is not finite") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  for (const double bad : {inf, -inf, nan}) {
    std::vector<double> values(40, 1e30);
    const RowSource source = gradstack::rows_of(values.data(), 10, Index{4});
    CHECK(gradstack::first_non_finite<float>(source, 0, 10) == -1);
    for (const Index where : {0, 3, 17, 39}) {
      values[at(where)] = bad;
      CHECK(gradstack::first_non_finite<float>(source, 0, 10) == where / 4);
      CHECK(gradstack::first_non_finite<double>(source, 0, 10) == where / 4);
      CHECK(gradstack::first_non_finite<double>(source, where / 4 + 1, 10) == -1);
      CHECK(gradstack::first_non_finite<double>(source, 0, where / 4) == -1);
      values[at(where)] = 0;
    }
  }
  // Finite, but too large for the net's dtype; large values whose sum overflows are fine.
  const std::vector<double> large = {1e39, 0, -1e39, 0};
  CHECK(gradstack::first_non_finite<float>(column(large), 0, 4) == 0);
  CHECK(gradstack::first_non_finite<float>(column(large), 1, 4) == 2);
  CHECK(gradstack::first_non_finite<double>(column(large), 0, 4) == -1);
  const std::vector<float> huge(4, 3e38F);
  CHECK(gradstack::first_non_finite<float>(gradstack::rows_of(huge.data(), 1, Index{4}), 0, 1) ==
        -1);
  const std::vector<std::uint64_t> integers(4, std::numeric_limits<std::uint64_t>::max());
  CHECK(gradstack::first_non_finite<float>(column(integers), 0, 4) == -1);
}

TEST_CASE("rows are used where they lie only if they can be") {
  const std::vector<float> values(60, 1.0F);
  RowSource source = gradstack::rows_of(values.data(), 5, Index{12});
  CHECK(gradstack::is_native<float>(source));
  CHECK_FALSE(gradstack::is_native<double>(source));
  for (const Index stride : {Index{-48}, Index{0}, Index{4}, Index{96}}) {
    source.row_stride = stride;
    CHECK(gradstack::is_native<float>(source));
  }
  source.row_stride = 50;
  CHECK_FALSE(gradstack::is_native<float>(source));
  source.row_stride = 48;
  source.col_stride = 8;
  CHECK_FALSE(gradstack::is_native<float>(source));
  source.cols = 1;
  CHECK(gradstack::is_native<float>(source));
  source.data += 1;  // off its alignment
  CHECK_FALSE(gradstack::is_native<float>(source));
}

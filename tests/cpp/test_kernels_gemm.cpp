// The matrix product: every shape, stride and split against the double reference.
#include "kernel_cases.hpp"

using namespace kernel_cases;
using gradstack::Gemm;

namespace {

enum class Form { kForward, kTransposed, kStrided };

struct Case {
  Index m, n, k;
  Index segments = 1, blocks = 1;
  Form form = Form::kForward;
  Index pad = 0;         // added to the row strides of A, B and C
  Index row_stride = 0;  // of A in memory; 0: as short as possible
};

// Operands of one case, in T and in double.
template <class T> struct Problem {
  explicit Problem(const Case& c, unsigned seed = 1) {
    const Index width = c.form == Form::kTransposed ? c.m : c.k;
    const Index ld = c.row_stride > 0 ? c.row_stride : width + c.pad;
    const Index step = c.form == Form::kStrided ? 2 : 1;
    const Index height = c.form == Form::kTransposed ? c.k : c.m;
    const Index a_seg = height * ld * step, b_seg = c.k * (c.n + c.pad);
    a = random_array<T>(c.segments * a_seg, seed);
    b = random_array<T>(c.blocks * c.segments * b_seg, seed + 1);
    bias = random_array<T>(c.m, seed + 2);
    start = random_array<T>(c.blocks * c.m * (c.n + c.pad), seed + 3);
    shape = {.m = c.m, .n = c.n, .k = c.k, .segments = c.segments};
    shape.a_row = c.form == Form::kTransposed ? 1 : ld * step;
    shape.a_col = c.form == Form::kTransposed ? ld : step;
    shape.a_seg = a_seg;
    shape.ldb = c.n + c.pad;
    shape.b_seg = b_seg;
    shape.ldc = c.n + c.pad;
    shape.blocks = c.blocks;
    shape.b_block = c.segments * b_seg;
    shape.c_block = c.m * shape.ldc;
  }

  template <class U>
  Gemm<U> on(const Guarded<U>& a_data, const Guarded<U>& b_data, const U* bias_data, Guarded<U>& c,
             bool accumulate) const {
    Gemm<U> g = {.m = shape.m,
                 .n = shape.n,
                 .k = shape.k,
                 .segments = shape.segments,
                 .a = a_data.data(),
                 .a_row = shape.a_row,
                 .a_col = shape.a_col,
                 .a_seg = shape.a_seg,
                 .b = b_data.data(),
                 .ldb = shape.ldb,
                 .b_seg = shape.b_seg,
                 .c = c.data(),
                 .ldc = shape.ldc,
                 .blocks = shape.blocks,
                 .b_block = shape.b_block,
                 .c_block = shape.c_block,
                 .bias = bias_data,
                 .accumulate = accumulate};
    return g;
  }

  Guarded<T> a{0}, b{0}, bias{0}, start{0};
  Gemm<T> shape;
};

template <class T> void check(const Case& c) {
  CAPTURE(c.m);
  CAPTURE(c.n);
  CAPTURE(c.k);
  CAPTURE(c.segments);
  CAPTURE(c.blocks);
  CAPTURE(static_cast<int>(c.form));
  CAPTURE(c.pad);
  const Problem<T> p(c);
  for (const int init : {0, 1, 2}) {
    CAPTURE(init);
    const bool with_bias = init == 1, accumulate = init == 2;

    Guarded<double> want = to_double(p.start), bound = to_double(absolute(p.start));
    const auto a = to_double(p.a), b = to_double(p.b), bias = to_double(p.bias);
    const auto abs_bias = absolute(bias);
    oracle().gemm(p.on(a, b, with_bias ? bias.data() : nullptr, want, accumulate));
    oracle().gemm(
        p.on(absolute(a), absolute(b), with_bias ? abs_bias.data() : nullptr, bound, accumulate));

    for_each_kernels<T>([&](const Kernels<T>& kernels) {
      Guarded<T> got = p.start;
      kernels.gemm(p.on(p.a, p.b, with_bias ? p.bias.data() : nullptr, got, accumulate));
      const double factor = static_cast<double>(c.k * c.segments + 2);
      CHECK(worst_error(got, want, bound, factor) <= 1.0);
      CHECK(got.guards_intact());
      // Columns between the rows of C belong to somebody else.
      bool untouched = true;
      for (Index i = 0; i < got.size(); ++i) {
        if (i % p.shape.ldc >= c.n) untouched = untouched && got[i] == p.start[i];
      }
      CHECK(untouched);
    });
  }
}

// Rows of B in any order, some twice.
template <class T> void check_gathered(Index m, Index n, Index k) {
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  const Index rows = 2 * k + 1, ldb = n + 3;
  const auto a = random_array<T>(m * k, 1), b = random_array<T>(rows * ldb, 2);
  std::vector<Index> at;
  for (Index i = 0; i < k; ++i) at.push_back((i * i + 5 * i) % rows * ldb);
  const auto product = [&](const auto& a_data, const auto& b_data, auto& c) {
    using U = std::remove_reference_t<decltype(c[0])>;
    return Gemm<U>{.m = m,
                   .n = n,
                   .k = k,
                   .a = a_data.data(),
                   .a_row = k,
                   .b = b_data.data(),
                   .b_rows = at.data(),
                   .c = c.data(),
                   .ldc = n};
  };
  Guarded<double> want(m * n, 0.0), bound(m * n, 0.0);
  oracle().gemm(product(to_double(a), to_double(b), want));
  const auto a_size = to_double(absolute(a)), b_size = to_double(absolute(b));
  oracle().gemm(product(a_size, b_size, bound));
  for_each_kernels<T>([&](const Kernels<T>& kernels) {
    Guarded<T> got(m * n, T(9));
    kernels.gemm(product(a, b, got));
    CHECK(worst_error(got, want, bound, static_cast<double>(k + 2)) <= 1.0);
    CHECK(got.guards_intact());
  });
}

// Any split of m, n and blocks over calls gives the bits of one call.
template <class T> void check_splits(const Case& c) {
  CAPTURE(c.m);
  CAPTURE(c.n);
  CAPTURE(c.k);
  CAPTURE(static_cast<int>(c.form));
  const Problem<T> p(c, 7);
  for_each_kernels<T>([&](const Kernels<T>& kernels) {
    Guarded<T> whole = p.start;
    kernels.gemm(p.on(p.a, p.b, p.bias.data(), whole, false));
    for (const Index m_step : {Index(1), Index(2), Index(5), Index(24), c.m}) {
      for (const Index n_step : {Index(1), Index(3), Index(8), Index(13), c.n}) {
        Guarded<T> pieces = p.start;
        for (Index block = 0; block < c.blocks; ++block) {
          for (Index m0 = 0; m0 < c.m; m0 += m_step) {
            for (Index n0 = 0; n0 < c.n; n0 += n_step) {
              Gemm<T> g = p.on(p.a, p.b, p.bias.data() + m0, pieces, false);
              g.m = std::min(m_step, c.m - m0);
              g.n = std::min(n_step, c.n - n0);
              g.blocks = 1;
              g.a += m0 * g.a_row;
              g.b += block * g.b_block + n0;
              g.c += block * g.c_block + m0 * g.ldc + n0;
              kernels.gemm(g);
            }
          }
        }
        CAPTURE(m_step);
        CAPTURE(n_step);
        CHECK(pieces.same_bits(whole));
      }
    }
  });
}

}  // namespace

TEST_CASE_TEMPLATE("gemm: gathered rows of B", T, float, double) {
  for (const Index m : {1, 2, 5, 10, 13, 50})
    for (const Index n : {1, 7, 32, 37, 130})
      for (const Index k : {0, 1, 3, 60, 200, 401}) check_gathered<T>(m, n, k);
}

TEST_CASE_TEMPLATE("gemm: forward and its transpose on a block of samples", T, float, double) {
  for (const Index out : kSizes) {
    for (const Index in : kSizes) {
      if (out * in > 100 * 784) continue;
      check<T>({.m = out, .n = kLanes, .k = in});
      check<T>({.m = out, .n = kLanes, .k = in, .form = Form::kTransposed});
    }
  }
}

TEST_CASE_TEMPLATE("gemm: weight gradients, one segment per block of samples", T, float, double) {
  for (const Index out : kSmallSizes) {
    for (const Index in : kSizes) {
      for (const Index segments : {1, 3, 8}) {
        check<T>({.m = out, .n = in, .k = kLanes, .segments = segments});
      }
    }
  }
}

TEST_CASE_TEMPLATE("gemm: odd columns, padded rows, several blocks", T, float, double) {
  for (const Form form : {Form::kForward, Form::kTransposed, Form::kStrided}) {
    for (const Index m : {1, 3, 13, 31, 97}) {
      for (const Index n : {1, 2, 7, 9, 15, 17, 32, 33, 70}) {
        for (const Index k : {1, 4, 33, 250}) {
          check<T>({.m = m, .n = n, .k = k, .blocks = 3, .form = form, .pad = 3});
        }
        check<T>({.m = m, .n = n, .k = 33, .segments = 2, .blocks = 2, .form = form, .pad = 5});
        check<T>({.m = m, .n = n, .k = 7, .segments = 60, .form = form});
      }
    }
  }
}

TEST_CASE_TEMPLATE("gemm: sums of a few terms", T, float, double) {
  for (const Form form : {Form::kForward, Form::kTransposed, Form::kStrided}) {
    for (const Index k : {1, 2, 3, 4, 5, 6, 7, 8, 9}) {
      for (const Index m : {1, 2, 3, 6, 12, 13, 65}) {
        for (const Index n : {8, 24, 32, 48, 49})
          check<T>({.m = m, .n = n, .k = k, .blocks = 2, .form = form, .pad = 5});
      }
    }
  }
}

TEST_CASE_TEMPLATE("gemm: rows of A a page apart", T, float, double) {
  for (const Form form : {Form::kForward, Form::kTransposed}) {
    for (const Index k : {40, 200, 784}) {
      check<T>({.m = 61, .n = 32, .k = k, .blocks = 2, .form = form, .row_stride = 1024});
      check<T>({.m = 17, .n = 32, .k = 60, .segments = 5, .form = form, .row_stride = 1024});
    }
  }
}

TEST_CASE_TEMPLATE("gemm: empty sums and empty results", T, float, double) {
  for (const Form form : {Form::kForward, Form::kTransposed}) {
    check<T>({.m = 5, .n = 32, .k = 0, .form = form});
    check<T>({.m = 5, .n = 3, .k = 4, .segments = 0, .form = form});
    check<T>({.m = 0, .n = 32, .k = 4, .form = form});
    check<T>({.m = 5, .n = 0, .k = 4, .form = form});
    check<T>({.m = 5, .n = 32, .k = 4, .blocks = 0, .form = form});
  }
}

TEST_CASE_TEMPLATE("gemm: bits do not depend on how the result is divided", T, float, double) {
  for (const Form form : {Form::kForward, Form::kTransposed}) {
    check_splits<T>({.m = 65, .n = 32, .k = 127, .blocks = 2, .form = form});
    check_splits<T>({.m = 50, .n = 32, .k = 500, .form = form, .row_stride = 1024});
    check_splits<T>({.m = 26, .n = 133, .k = 32, .segments = 9, .form = form, .pad = 4});
  }
}

TEST_CASE_TEMPLATE("gemm: nan and inf reach exactly the elements they belong to", T, float,
                   double) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for (const Form form : {Form::kForward, Form::kTransposed}) {
    Problem<T> p({.m = 19, .n = 37, .k = 70, .form = form}, 3);
    p.a[7 * p.shape.a_row + 11 * p.shape.a_col] = nan;
    p.b[69 * p.shape.ldb + 36] = inf;
    for_each_kernels<T>([&](const Kernels<T>& kernels) {
      Guarded<T> got = p.start;
      kernels.gemm(p.on(p.a, p.b, p.bias.data(), got, false));
      int wrong = 0;
      for (Index i = 0; i < 19; ++i) {
        for (Index j = 0; j < 37; ++j) {
          const T value = got[i * p.shape.ldc + j];
          const bool right = i == 7    ? std::isnan(value)
                             : j == 36 ? std::isinf(value)
                                       : std::isfinite(value);
          wrong += right ? 0 : 1;
        }
      }
      CHECK(wrong == 0);
    });
  }
}

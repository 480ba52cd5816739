// Kernels over flat ranges: arithmetic, pointwise functions, update rules. The functions themselves
// are tested with the op and update tables; here it is loops, tails, aliasing and dispatch.
#include "gradstack/ops.hpp"
#include "gradstack/random.hpp"
#include "gradstack/updates.hpp"
#include "kernel_cases.hpp"

using namespace kernel_cases;

namespace {

constexpr Index kRange = 131;  // whole vectors and a tail for every vector width

// Outputs of vector functions differ from the C library's by some ulps, more after cancellation.
template <class T> double function_error(const Guarded<T>& got, const Guarded<double>& want) {
  Guarded<double> bound(want.size());
  for (Index i = 0; i < want.size(); ++i) bound[i] = 1 + std::abs(want[i]);
  return worst_error(got, want, bound, 32);
}

std::vector<double> defaults(const gradstack::OpInfo& info) {
  std::vector<double> p(gradstack::kMaxOpParams);
  for (int i = 0; i < info.n_params; ++i) p[static_cast<std::size_t>(i)] = info.params[i].value;
  return p;
}

}  // namespace

TEST_CASE_TEMPLATE("add, mul, div, axpy are exact elementwise", T, float, double) {
  for (const Index n : {Index(0), Index(1), Index(3), Index(16), Index(31), kRange}) {
    const auto a = random_array<T>(n, 1), b = random_array<T>(n, 2, 0.5, 2),
               start = random_array<T>(n, 3);
    for_each_kernels<T>([&](const Kernels<T>& kernels) {
      CAPTURE(n);
      Guarded<T> sum(n), product(n), quotient(n), scaled(n);
      kernels.add(n, a.data(), b.data(), sum.data());
      kernels.mul(n, a.data(), b.data(), product.data(), false);
      kernels.div(n, a.data(), b.data(), quotient.data());
      kernels.axpy(n, T(1.7), a.data(), scaled.data(), false);
      int wrong = 0;
      for (Index i = 0; i < n; ++i) {
        wrong += sum[i] != a[i] + b[i];
        wrong += product[i] != a[i] * b[i];
        wrong += quotient[i] != a[i] / b[i];
        wrong += scaled[i] != T(1.7) * a[i];
      }
      CHECK(wrong == 0);

      // Accumulation may round once (FMA) or twice.
      Guarded<T> mul_sum = start, axpy_sum = start;
      kernels.mul(n, a.data(), b.data(), mul_sum.data(), true);
      kernels.axpy(n, T(1.7), a.data(), axpy_sum.data(), true);
      Guarded<double> want_mul(n), want_axpy(n), bound(n);
      for (Index i = 0; i < n; ++i) {
        want_mul[i] = static_cast<double>(start[i]) + static_cast<double>(a[i]) * b[i];
        want_axpy[i] = start[i] + static_cast<double>(T(1.7)) * a[i];
        bound[i] = std::abs(start[i]) + 2 * std::abs(a[i]);
      }
      CHECK(worst_error(mul_sum, want_mul, bound, 2) <= 1.0);
      CHECK(worst_error(axpy_sum, want_axpy, bound, 2) <= 1.0);
      for (const auto* array : {&sum, &product, &quotient, &scaled, &mul_sum, &axpy_sum}) {
        CHECK(array->guards_intact());
      }

      // In place.
      Guarded<T> in_place = a;
      kernels.add(n, in_place.data(), b.data(), in_place.data());
      CHECK(in_place.same_bits(sum));
    });
  }
}

TEST_CASE_TEMPLATE("pointwise: every op, order, tail and alias", T, float, double) {
  const auto s = random_array<T>(kRange, 1, -4, 4), dz = random_array<T>(kRange, 2);
  const auto s2 = to_double(s), dz2 = to_double(dz);
  for (int id = 0; id < gradstack::kNumOps; ++id) {
    const gradstack::OpInfo& info = gradstack::op_info(id);
    const std::string op = info.name;
    CAPTURE(op);
    const std::vector<double> p = defaults(info);
    const auto& reference = oracle().pointwise[id];
    // 1/s and its derivatives grow without bound towards 0.
    const bool singular = op == "reciprocal";
    const auto at = singular ? random_array<T>(kRange, 1, 1, 4) : s;
    const auto at2 = to_double(at);

    for_each_kernels<T>([&](const Kernels<T>& kernels) {
      const auto& kernel = kernels.pointwise[id];
      CHECK(kernel.has_d1_from_z == reference.has_d1_from_z);
      for (const int order : {0, 1, 2, 3}) {
        CAPTURE(order);
        Guarded<T> got(kRange), piece(kRange);
        Guarded<double> want(kRange);
        kernel.derivative(kRange, p.data(), order, at.data(), got.data());
        reference.derivative(kRange, p.data(), order, at2.data(), want.data());
        CHECK(function_error(got, want) <= 1.0);
        CHECK(got.guards_intact());
        // An element's bits do not depend on where it stands.
        for (Index i = 0; i < kRange; i += 7) {
          kernel.derivative(std::min<Index>(7, kRange - i), p.data(), order, at.data() + i,
                            piece.data() + i);
        }
        CHECK(piece.same_bits(got));
      }

      Guarded<T> z(kRange), in_place = at;
      kernel.forward(kRange, p.data(), at.data(), z.data());
      kernel.forward(kRange, p.data(), in_place.data(), in_place.data());
      CHECK(in_place.same_bits(z));
      Guarded<double> want(kRange);
      reference.forward(kRange, p.data(), at2.data(), want.data());
      CHECK(function_error(z, want) <= 1.0);

      Guarded<T> ds(kRange), from_z(kRange), alias = dz;
      Guarded<double> want_ds(kRange);
      kernel.backward(kRange, p.data(), at.data(), nullptr, dz.data(), ds.data());
      reference.backward(kRange, p.data(), at2.data(), nullptr, dz2.data(), want_ds.data());
      CHECK(function_error(ds, want_ds) <= 1.0);
      kernel.backward(kRange, p.data(), at.data(), nullptr, alias.data(), alias.data());
      CHECK(alias.same_bits(ds));
      kernel.backward(kRange, p.data(), kernel.has_d1_from_z ? nullptr : at.data(), z.data(),
                      dz.data(), from_z.data());
      CHECK(function_error(from_z, want_ds) <= 1.0);
      for (const auto* array : {&z, &in_place, &ds, &from_z, &alias}) {
        CHECK(array->guards_intact());
      }
    });
  }
}

TEST_CASE_TEMPLATE("pointwise: nan stays nan", T, float, double) {
  Guarded<T> s(37, T(0.25));
  s[0] = s[20] = s[36] = std::numeric_limits<T>::quiet_NaN();
  for (int id = 0; id < gradstack::kNumOps; ++id) {
    const std::string op = gradstack::op_info(id).name;
    CAPTURE(op);
    const std::vector<double> p = defaults(gradstack::op_info(id));
    for_each_kernels<T>([&](const Kernels<T>& kernels) {
      Guarded<T> z(37);
      kernels.pointwise[id].forward(37, p.data(), s.data(), z.data());
      int wrong = 0;
      for (Index i = 0; i < 37; ++i) wrong += std::isnan(z[i]) != std::isnan(s[i]);
      CHECK(wrong == 0);
    });
  }
}

TEST_CASE_TEMPLATE("updates: every rule, tail and absent state", T, float, double) {
  for (int id = 0; id < gradstack::kNumRules; ++id) {
    const gradstack::UpdateInfo& info = gradstack::rule_info(id);
    const std::string rule = info.name;
    CAPTURE(rule);
    double hyper[gradstack::kMaxHyper] = {}, scalars[gradstack::kMaxUpdateScalars] = {};
    double constants[gradstack::kMaxUpdateConstants] = {};
    for (int i = 0; i < info.n_hyper; ++i) hyper[i] = info.hyper[i].value;
    for (int i = 0; i < info.n_scalars; ++i) scalars[i] = info.scalars[i].value;
    gradstack::rule_constants(id, hyper, 0.05, 3, scalars, constants);

    const auto w = random_array<T>(kRange, 1), g = random_array<T>(kRange, 2);
    const auto g2 = to_double(g);
    std::vector<Guarded<T>> state;
    for (int i = 0; i < info.n_state; ++i) {
      state.push_back(random_array<T>(kRange, 3 + static_cast<unsigned>(i), 0.1, 1));
    }
    const auto run = [&]<class U>(const Kernels<U>& kernels, const Guarded<U>& gradient, Index step,
                                  Guarded<U>& weights, std::vector<Guarded<U>>& states) {
      for (Index i = 0; i < kRange; i += step) {
        gradstack::UpdateArgs<U> args;
        args.n = std::min(step, kRange - i);
        args.w = weights.data() + i;
        args.g = gradient.data() + i;
        args.c = constants;
        for (int k = 0; k < info.n_state; ++k) {
          const bool used = gradstack::rule_uses_state(id, hyper, k);
          args.state[k] = used ? states[static_cast<std::size_t>(k)].data() + i : nullptr;
        }
        kernels.update[id](args);
      }
    };
    // Rows of 29 values, their gradient an outer product.
    constexpr Index kRow = 29, kRows = kRange / kRow;
    const auto outer = [&](const Kernels<T>& kernels, const T* y, const T* x, Guarded<T>& weights,
                           std::vector<Guarded<T>>& states) {
      gradstack::UpdateArgs<T> args;
      args.n = kRow;
      args.w = weights.data();
      args.g = x;
      args.c = constants;
      args.factor = y;
      args.rows = kRows;
      for (int k = 0; k < info.n_state; ++k)
        if (gradstack::rule_uses_state(id, hyper, k))
          args.state[k] = states[static_cast<std::size_t>(k)].data();
      kernels.update[id](args);
    };

    Guarded<double> want = to_double(w);
    std::vector<Guarded<double>> want_state;
    for (const auto& s : state) want_state.push_back(to_double(s));
    run(oracle(), g2, kRange, want, want_state);

    for_each_kernels<T>([&](const Kernels<T>& kernels) {
      Guarded<T> got = w, pieces = w;
      std::vector<Guarded<T>> got_state = state, piece_state = state;
      run(kernels, g, kRange, got, got_state);
      run(kernels, g, 13, pieces, piece_state);
      CHECK(function_error(got, want) <= 1.0);
      CHECK(got.guards_intact());
      CHECK(pieces.same_bits(got));
      CHECK(!got.same_bits(w));
      for (std::size_t k = 0; k < state.size(); ++k) {
        CAPTURE(k);
        CHECK(function_error(got_state[k], want_state[k]) <= 1.0);
        CHECK(got_state[k].guards_intact());
        CHECK(piece_state[k].same_bits(got_state[k]));
      }

      // The same bits as with the outer product written down.
      Guarded<T> product = g, written = w, direct = w;
      for (Index i = 0; i < kRows * kRow; ++i) product[i] = g[i / kRow] * g[i % kRow + kRows];
      std::vector<Guarded<T>> written_state = state, direct_state = state;
      run(kernels, product, kRow, written, written_state);
      outer(kernels, g.data(), g.data() + kRows, direct, direct_state);
      for (Index i = kRows * kRow; i < kRange; ++i) {  // not in the rows
        CHECK(direct[i] == w[i]);
        direct[i] = written[i];
        for (std::size_t k = 0; k < state.size(); ++k) direct_state[k][i] = written_state[k][i];
      }
      CHECK(direct.same_bits(written));
      for (std::size_t k = 0; k < state.size(); ++k)
        CHECK(direct_state[k].same_bits(written_state[k]));
    });
  }
}

TEST_CASE_TEMPLATE("normal values: the same for any vector, distributed as they should be", T,
                   float, double) {
  const std::uint64_t key = 0x123456789abcdefULL;
  for (const Index n : kSizes) {
    Guarded<double> want(n);
    oracle().normal(n, key, 77, want.data());
    Guarded<double> bound(n);
    for (Index i = 0; i < n; ++i) bound[i] = 1 + std::abs(want[i]);
    for_each_kernels<T>([&](const Kernels<T>& kernels) {
      Guarded<T> got(n), parts(n);
      kernels.normal(n, key, 77, got.data());
      CHECK(worst_error(got, want, bound, 32) <= 1.0);
      CHECK(got.guards_intact());
      // A value depends on its number alone.
      const Index half = n / 2;
      kernels.normal(half, key, 77, parts.data());
      kernels.normal(n - half, key, static_cast<std::uint32_t>(77 + half), parts.data() + half);
      CHECK(parts.same_bits(got));
    });
  }
  constexpr Index kMany = 1 << 20;
  Guarded<T> x(kMany);
  gradstack::available_kernels<T>().back()->normal(kMany, key, 0, x.data());
  // Against the distribution function, at points whose counts scatter by sqrt(n p (1 - p)).
  for (const double edge : {-4.0, -3.0, -2.0, -1.0, -0.3, 0.0, 0.5, 1.5, 2.5, 3.5}) {
    double below = 0;
    for (Index i = 0; i < kMany; ++i) below += static_cast<double>(x[i]) < edge;
    const double p = 0.5 * std::erfc(-edge / std::sqrt(2.0)), n = static_cast<double>(kMany);
    CAPTURE(edge);
    CHECK(std::abs(below - n * p) <= 5 * std::sqrt(n * p * (1 - p)));
  }
}

TEST_CASE("normal_tail: the quantile of the normal distribution") {
  for (double q = 0.5; q > 1e-10; q *= 0.7) {
    const double x = gradstack::normal_tail(q);
    CAPTURE(q);
    CHECK(0.5 * std::erfc(x / std::sqrt(2.0)) == doctest::Approx(q).epsilon(2e-5));
  }
}

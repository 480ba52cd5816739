// Kernels over the features of a block: softmax, dropout, costs.
#include "gradstack/costs.hpp"
#include "gradstack/random.hpp"
#include "kernel_cases.hpp"

using namespace kernel_cases;

namespace {

// Errors of exp and log are some ulps of 1 plus what the argument's own rounding is worth.
template <class T>
double softmax_error(const Guarded<T>& got, const Guarded<double>& want, Index d) {
  Guarded<double> bound(want.size());
  for (Index i = 0; i < want.size(); ++i) bound[i] = 8 + std::abs(want[i]);
  return worst_error(got, want, bound, static_cast<double>(d + 8));
}

struct CostCase {
  int id;
  bool labels, weighted;
  Index d, dy, lanes;
};

// The inputs of one cost on one block.
template <class T> struct CostInputs {
  explicit CostInputs(const CostCase& c) {
    const std::string name = gradstack::cost_info(c.id).name;
    const bool probability = name == "BCELoss" || name == "KLDivLoss";
    ybar = random_array<T>(c.d * c.lanes, 1, probability ? 0.1 : -2, probability ? 0.9 : 2);
    // Away from the kinks, where rounding decides between two gradients.
    y = random_array<T>(c.dy * c.lanes, 2, 0.1, 0.9);
    if (name == "HingeEmbeddingLoss") {
      for (Index i = 0; i < y.size(); ++i) y[i] = i % 3 == 0 ? T(1) : T(-1);
    }
    if (name == "GaussianNLLLoss") {
      for (Index i = c.dy * c.lanes; i < ybar.size(); ++i) ybar[i] = T(0.5) + std::abs(ybar[i]);
    }
    if (name.rfind("Categorical", 0) == 0) {  // the action comes first
      for (Index l = 0; l < c.lanes; ++l) y[l] = static_cast<T>((l * 7 + 3) % c.d);
    }
    weight = random_array<T>(c.d, 3, 0.5, 2);
    scale = random_array<T>(c.lanes, 4, 0.5, 2);
    v = random_array<T>(c.d * c.lanes, 5);
    for (Index l = 0; l < c.lanes; ++l) label.push_back((l * 7 + 3) % c.d);
  }
  CostInputs() = default;

  Guarded<T> ybar{0}, y{0}, weight{0}, scale{0}, v{0};
  std::vector<std::int64_t> label;
};

template <class T> struct CostOutputs {
  explicit CostOutputs(const CostCase& c) : loss(c.lanes), grad(c.d * c.lanes), hv(c.d * c.lanes) {}
  Guarded<T> loss, grad, hv;
};

template <class T>
void run_cost(const Kernels<T>& kernels, const CostCase& c, const CostInputs<T>& in, int wanted,
              CostOutputs<T>& out) {
  double p[gradstack::kMaxCostParams] = {};
  const auto& info = gradstack::cost_info(c.id);
  for (int i = 0; i < info.n_params; ++i) p[i] = info.params[i].value;
  gradstack::CostArgs<T> args;
  args.d = c.d;
  args.dy = c.dy;
  args.lanes = c.lanes;
  args.ybar = in.ybar.data();
  args.y = c.labels ? nullptr : in.y.data();
  args.label = c.labels ? in.label.data() : nullptr;
  args.weight = c.weighted ? in.weight.data() : nullptr;
  args.p = p;
  args.scale = in.scale.data();
  args.loss = wanted & 1 ? out.loss.data() : nullptr;
  args.grad = wanted & 2 ? out.grad.data() : nullptr;
  args.v = in.v.data();
  args.hv = wanted & 4 ? out.hv.data() : nullptr;
  kernels.cost[c.id](args);
}

template <class T> void check_cost(const CostCase& c) {
  const std::string cost = gradstack::cost_info(c.id).name;
  CAPTURE(cost);
  CAPTURE(c.labels);
  CAPTURE(c.weighted);
  CAPTURE(c.d);
  CAPTURE(c.lanes);
  const CostInputs<T> in(c);
  CostInputs<double> in2;
  in2.ybar = to_double(in.ybar);
  in2.y = to_double(in.y);
  in2.weight = to_double(in.weight);
  in2.scale = to_double(in.scale);
  in2.v = to_double(in.v);
  in2.label = in.label;
  CostOutputs<double> want(c);
  run_cost(oracle(), c, in2, 7, want);

  for_each_kernels<T>([&](const Kernels<T>& kernels) {
    CostOutputs<T> all(c);
    run_cost(kernels, c, in, 7, all);
    CHECK(softmax_error(all.loss, want.loss, 4 * c.d) <= 1.0);
    CHECK(softmax_error(all.grad, want.grad, 4 * c.d) <= 1.0);
    CHECK(softmax_error(all.hv, want.hv, 4 * c.d) <= 1.0);
    CHECK(all.loss.guards_intact());
    CHECK(all.grad.guards_intact());
    CHECK(all.hv.guards_intact());
    // What is computed does not depend on what else is asked for.
    CostOutputs<T> loss(c), grad(c);
    run_cost(kernels, c, in, 1, loss);
    run_cost(kernels, c, in, 2, grad);
    CHECK(loss.loss.same_bits(all.loss));
    CHECK(grad.grad.same_bits(all.grad));
    CHECK(loss.grad.same_bits(CostOutputs<T>(c).grad));
  });
}

}  // namespace

TEST_CASE_TEMPLATE("softmax and log-softmax with their derivatives", T, float, double) {
  for (const Index lanes : {Index(1), kLanes}) {
    for (const Index d : kSizes) {
      const Index n = d * lanes;
      const auto s = random_array<T>(n, 1, -8, 8), dz = random_array<T>(n, 2),
                 start = random_array<T>(n, 3);
      for (const bool log : {false, true}) {
        CAPTURE(lanes);
        CAPTURE(d);
        CAPTURE(log);
        Guarded<double> want_z(n), want_ds(n);
        oracle().softmax(d, lanes, to_double(s).data(), want_z.data(), log);
        oracle().softmax_backward(d, lanes, want_z.data(), to_double(dz).data(), want_ds.data(),
                                  log, false);
        for_each_kernels<T>([&](const Kernels<T>& kernels) {
          Guarded<T> z(n), in_place = s, ds(n), sum = start;
          kernels.softmax(d, lanes, s.data(), z.data(), log);
          CHECK(softmax_error(z, want_z, d) <= 1.0);
          kernels.softmax(d, lanes, in_place.data(), in_place.data(), log);
          CHECK(in_place.same_bits(z));

          kernels.softmax_backward(d, lanes, z.data(), dz.data(), ds.data(), log, false);
          CHECK(softmax_error(ds, want_ds, 2 * d) <= 1.0);
          kernels.softmax_backward(d, lanes, z.data(), dz.data(), sum.data(), log, true);
          int wrong = 0;
          for (Index i = 0; i < n; ++i) wrong += sum[i] != start[i] + ds[i];
          CHECK(wrong == 0);
          for (const auto* array : {&z, &in_place, &ds, &sum}) CHECK(array->guards_intact());
        });
      }
    }
  }
}

TEST_CASE_TEMPLATE("softmax: huge, infinite and nan entries", T, float, double) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  for_each_kernels<T>([&](const Kernels<T>& kernels) {
    for (const Index lanes : {Index(1), kLanes}) {
      for (const Index d : {3, 19}) {
        Guarded<T> s(d * lanes, T(-3e30)), z(d * lanes);
        for (Index l = 0; l < lanes; ++l) s[(d - 1) * lanes + l] = T(3e30);
        kernels.softmax(d, lanes, s.data(), z.data(), false);
        CHECK(z[0] == T(0));
        CHECK(z[(d - 1) * lanes] == T(1));

        s = Guarded<T>(d * lanes, T(1));
        s[lanes] = -inf;
        kernels.softmax(d, lanes, s.data(), z.data(), false);
        CHECK(z[lanes] == T(0));
        CHECK(z[0] == doctest::Approx(1.0 / static_cast<double>(d - 1)));
        kernels.softmax(d, lanes, s.data(), z.data(), true);
        CHECK(z[lanes] == -inf);

        // One bad entry spoils its own distribution, all of it, and no other.
        for (const T bad : {nan, inf}) {
          s[(d - 2) * lanes] = bad;
          for (const bool log : {false, true}) {
            kernels.softmax(d, lanes, s.data(), z.data(), log);
            int spoiled = 0;
            for (Index i = 0; i < z.size(); ++i) spoiled += std::isnan(z[i]);
            CAPTURE(d);
            CAPTURE(lanes);
            CAPTURE(log);
            if (std::isnan(bad)) CHECK(spoiled == d);
            if (std::isinf(bad)) CHECK(std::isnan(z[(d - 2) * lanes]));
            for (Index l = 1; l < lanes; ++l) CHECK(!std::isnan(z[l]));
          }
        }
      }
    }
  });
}

TEST_CASE_TEMPLATE("dropout: the same mask everywhere, and the expected share of zeros", T, float,
                   double) {
  const Kernels<T>& reference = gradstack::reference_kernels(T());
  for (const Index lanes : {Index(1), kLanes}) {
    for (const Index d : kSizes) {
      CAPTURE(lanes);
      CAPTURE(d);
      std::vector<std::uint64_t> key;
      for (Index l = 0; l < lanes; ++l) {
        key.push_back(gradstack::sample_key(3, 1, 5, static_cast<std::uint64_t>(l)));
      }
      const auto s = random_array<T>(d * lanes, 1), start = random_array<T>(d * lanes, 2);
      for (const double p : {0.0, 0.1, 0.5, 0.9}) {
        const std::uint32_t threshold = gradstack::probability_threshold(p);
        const T scale = static_cast<T>(1 / (1 - p));
        for (const bool accumulate : {false, true}) {
          Guarded<T> want = start;
          reference.dropout(d, lanes, key.data(), threshold, scale, s.data(), want.data(),
                            accumulate);
          for_each_kernels<T>([&](const Kernels<T>& kernels) {
            Guarded<T> got = start;
            kernels.dropout(d, lanes, key.data(), threshold, scale, s.data(), got.data(),
                            accumulate);
            CHECK(got.same_bits(want));
            CHECK(got.guards_intact());
          });
          if (accumulate || d < 64 || lanes == 1) continue;
          double zeros = 0;
          for (Index i = 0; i < want.size(); ++i) zeros += want[i] == T(0);
          const auto n = static_cast<double>(want.size());
          CHECK(std::abs(zeros / n - p) <= 5 * std::sqrt(p * (1 - p) / n));
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("costs: every cost on blocks and single samples", T, float, double) {
  for (int id = 0; id < gradstack::kNumCosts; ++id) {
    const gradstack::CostInfo& info = gradstack::cost_info(id);
    const bool labels = info.target == gradstack::TargetKind::kLabels ||
                        info.target == gradstack::TargetKind::kLabelsOrDense;
    const bool dense = info.target != gradstack::TargetKind::kLabels;
    for (const Index lanes : {Index(1), kLanes}) {
      for (const Index n : {1, 2, 5, 17, 65}) {
        const Index d = n * std::max(1, info.ybar_per_y);
        const Index dy = gradstack::target_width(info, d);
        for (const bool weighted : {false, true}) {
          if (weighted && !info.class_weights) continue;
          if (dense) check_cost<T>({id, false, weighted, d, dy, lanes});
          if (labels) check_cost<T>({id, true, weighted, d, 0, lanes});
        }
      }
    }
  }
}

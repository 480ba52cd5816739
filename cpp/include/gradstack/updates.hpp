// The table of update rules: every first-order optimiser of the library, once.
//
// A rule is host arithmetic that turns hyper-parameters, learning rate and step number into a few
// constants, and a functor that moves one weight (or a vector of them) with those constants. Plain
// flat ranges of w, g and state are all it sees, so kernels fuse it wherever a gradient is at hand.
// Formulas and defaults are PyTorch's; Lion is its paper's. Adding a rule is one functor and one
// entry in `UpdateRules` at the end of this file.
//
// Rules for functors
//   * `constants` may be called several times in a step (ranges with and without weight decay) and
//     depends on nothing but its arguments; what a rule carries from step to step on top of its
//     state vectors is in `scalars`, which it advances once per step number;
//   * `uses_state` says which state vectors the hyper-parameters need; for the others the caller
//     passes anything and drops what comes back;
//   * a rule that needs no state with some hyper-parameters may offer `stateless`, the same
//   without;
//   * decaying averages are flushed to 0 before they reach the denormals.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gradstack/config.hpp"
#include "gradstack/math.hpp"
#include "gradstack/table.hpp"

namespace gradstack {

inline constexpr int kMaxHyper = 6;
inline constexpr int kMaxState = 4;
inline constexpr int kMaxUpdateScalars = 2;
inline constexpr int kMaxUpdateConstants = 8;

// What an update may do to an entry of w; an entry without bits is left alone, state and all.
enum EntryUpdate : std::uint8_t { kUpdatesState = 1, kMoves = 2, kDecays = 4 };

struct UpdateInfo {
  const char* name;        // as in find_rule("adam")
  const char* class_name;  // as in optim.Adam
  double lr;               // default learning rate
  int n_hyper = 0;
  Param hyper[kMaxHyper] = {};
  int n_state = 0;
  const char* state[kMaxState] = {};
  int n_scalars = 0;
  Param scalars[kMaxUpdateScalars] = {};  // with the values before the first step
};

inline namespace GRADSTACK_UNIT {
namespace updates {

using namespace math;

// Shared by rules that need no exception.
struct RuleDefaults {
  static bool uses_state(const double*, int) { return true; }
  static double state_init(const double*, int) { return 0.0; }
};

class SGD : public RuleDefaults {
 public:
  static constexpr UpdateInfo info{
      .name = "sgd",
      .class_name = "SGD",
      .lr = 1e-3,
      .n_hyper = 4,
      .hyper = {{"momentum", 0.0}, {"dampening", 0.0}, {"weight_decay", 0.0}, {"nesterov", 0.0}},
      .n_state = 1,
      .state = {"momentum_buffer"}};
  static bool uses_state(const double* hyper, int) { return hyper[0] != 0.0; }
  static void constants(const double* hyper, double lr, std::int64_t t, double*, double* c) {
    c[0] = lr;
    c[1] = hyper[2];
    c[2] = hyper[0];
    // The buffer starts as the first gradient: dampening sets in at the second step. Without
    // momentum this makes the buffer the gradient itself.
    c[3] = t == 1 || hyper[0] == 0.0 ? 1.0 : 1.0 - hyper[1];
    c[4] = hyper[3];
  }

  GS_HD explicit SGD(const double* c)
      : lr_(c[0]), decay_(c[1]), momentum_(c[2]), keep_(c[3]), nesterov_(c[4] != 0.0) {}
  template <class V> GS_HD GS_INLINE void operator()(V& w, V g, V* state) const {
    const V d = fma(V(decay_), w, g);
    const V buffer = flush_denormal(fma(V(momentum_), state[0], V(keep_) * d));
    state[0] = buffer;
    w = w - V(lr_) * (nesterov_ ? fma(V(momentum_), buffer, d) : buffer);
  }

  bool stateless() const { return momentum_ == 0.0; }
  template <class V> GS_INLINE V stateless(V w, V g) const {
    return w - V(lr_) * fma(V(decay_), w, g);
  }

 private:
  double lr_, decay_, momentum_, keep_;
  bool nesterov_;
};

// Adam and AdamW differ in where the weight decay goes: into the gradient, or straight to w.
class AdamFamily : public RuleDefaults {
 public:
  static bool uses_state(const double* hyper, int i) { return i < 2 || hyper[4] != 0.0; }

  GS_HD explicit AdamFamily(const double* c)
      : step_(c[0]),
        decay_(c[1]),
        shrink_(c[2]),
        beta1_rest_(c[3]),
        beta2_(c[4]),
        root_scale_(c[5]),
        eps_(c[6]),
        amsgrad_(c[7] != 0.0) {}
  template <class V> GS_HD GS_INLINE void operator()(V& w, V g, V* state) const {
    const V d = fma(V(decay_), w, g);
    const V m = flush_denormal(fma(V(beta1_rest_), d - state[0], state[0]));
    const V v = flush_denormal(fma(V(beta2_), state[1], V(1 - beta2_) * d * d));
    state[0] = m;
    state[1] = v;
    V v_used = v;
    if (amsgrad_) state[2] = v_used = maximum(state[2], v);
    const V root = fma(sqrt(v_used), V(root_scale_), V(eps_));
    w = V(shrink_) * w - V(step_) * m / root;
  }

 protected:
  static void constants(const double* hyper, double lr, std::int64_t t, bool decoupled, double* c) {
    const double time = static_cast<double>(t);
    c[0] = lr / (1.0 - __builtin_pow(hyper[0], time));
    c[1] = decoupled ? 0.0 : hyper[3];
    c[2] = decoupled ? 1.0 - lr * hyper[3] : 1.0;
    c[3] = 1.0 - hyper[0];
    c[4] = hyper[1];
    c[5] = 1.0 / __builtin_sqrt(1.0 - __builtin_pow(hyper[1], time));
    c[6] = hyper[2];
    c[7] = hyper[4];
  }

 private:
  double step_, decay_, shrink_, beta1_rest_, beta2_, root_scale_, eps_;
  bool amsgrad_;
};

class Adam : public AdamFamily {
 public:
  static constexpr UpdateInfo info{.name = "adam",
                                   .class_name = "Adam",
                                   .lr = 1e-3,
                                   .n_hyper = 5,
                                   .hyper = {{"beta1", 0.9},
                                             {"beta2", 0.999},
                                             {"eps", 1e-8},
                                             {"weight_decay", 0.0},
                                             {"amsgrad", 0.0}},
                                   .n_state = 3,
                                   .state = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}};
  using AdamFamily::AdamFamily;
  static void constants(const double* hyper, double lr, std::int64_t t, double*, double* c) {
    AdamFamily::constants(hyper, lr, t, false, c);
  }
};

class AdamW : public AdamFamily {
 public:
  static constexpr UpdateInfo info{.name = "adamw",
                                   .class_name = "AdamW",
                                   .lr = 1e-3,
                                   .n_hyper = 5,
                                   .hyper = {{"beta1", 0.9},
                                             {"beta2", 0.999},
                                             {"eps", 1e-8},
                                             {"weight_decay", 1e-2},
                                             {"amsgrad", 0.0}},
                                   .n_state = 3,
                                   .state = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}};
  using AdamFamily::AdamFamily;
  static void constants(const double* hyper, double lr, std::int64_t t, double*, double* c) {
    AdamFamily::constants(hyper, lr, t, true, c);
  }
};

class RMSprop : public RuleDefaults {
 public:
  static constexpr UpdateInfo info{.name = "rmsprop",
                                   .class_name = "RMSprop",
                                   .lr = 1e-2,
                                   .n_hyper = 5,
                                   .hyper = {{"alpha", 0.99},
                                             {"eps", 1e-8},
                                             {"weight_decay", 0.0},
                                             {"momentum", 0.0},
                                             {"centered", 0.0}},
                                   .n_state = 3,
                                   .state = {"square_avg", "momentum_buffer", "grad_avg"}};
  static bool uses_state(const double* hyper, int i) {
    return i == 0 || (i == 1 ? hyper[3] > 0.0 : hyper[4] != 0.0);
  }
  static void constants(const double* hyper, double lr, std::int64_t, double*, double* c) {
    c[0] = lr;
    c[1] = hyper[2];
    c[2] = hyper[0];
    c[3] = hyper[1];
    c[4] = hyper[3];
    c[5] = hyper[4];
  }

  GS_HD explicit RMSprop(const double* c)
      : lr_(c[0]),
        decay_(c[1]),
        alpha_(c[2]),
        eps_(c[3]),
        momentum_(c[4]),
        centered_(c[5] != 0.0) {}
  template <class V> GS_HD GS_INLINE void operator()(V& w, V g, V* state) const {
    const V d = fma(V(decay_), w, g);
    const V square = flush_denormal(fma(V(alpha_), state[0], V(1 - alpha_) * d * d));
    state[0] = square;
    V variance = square;
    if (centered_) {
      const V mean = flush_denormal(fma(V(1 - alpha_), d - state[2], state[2]));
      state[2] = mean;
      // Rounding can take the difference of a constant gradient below 0.
      variance = maximum(V(0), square - mean * mean);
    }
    V step = d / (sqrt(variance) + V(eps_));
    if (momentum_ > 0.0) state[1] = step = flush_denormal(fma(V(momentum_), state[1], step));
    w = w - V(lr_) * step;
  }

 private:
  double lr_, decay_, alpha_, eps_, momentum_;
  bool centered_;
};

class Adagrad : public RuleDefaults {
 public:
  static constexpr UpdateInfo info{.name = "adagrad",
                                   .class_name = "Adagrad",
                                   .lr = 1e-2,
                                   .n_hyper = 4,
                                   .hyper = {{"lr_decay", 0.0},
                                             {"weight_decay", 0.0},
                                             {"initial_accumulator_value", 0.0},
                                             {"eps", 1e-10}},
                                   .n_state = 1,
                                   .state = {"sum"}};
  static double state_init(const double* hyper, int) { return hyper[2]; }
  static void constants(const double* hyper, double lr, std::int64_t t, double*, double* c) {
    c[0] = lr / (1.0 + static_cast<double>(t - 1) * hyper[0]);
    c[1] = hyper[1];
    c[2] = hyper[3];
  }

  GS_HD explicit Adagrad(const double* c) : lr_(c[0]), decay_(c[1]), eps_(c[2]) {}
  template <class V> GS_HD GS_INLINE void operator()(V& w, V g, V* state) const {
    const V d = fma(V(decay_), w, g);
    const V sum = fma(d, d, state[0]);
    state[0] = sum;
    w = w - V(lr_) * d / (sqrt(sum) + V(eps_));
  }

 private:
  double lr_, decay_, eps_;
};

class Adadelta : public RuleDefaults {
 public:
  static constexpr UpdateInfo info{.name = "adadelta",
                                   .class_name = "Adadelta",
                                   .lr = 1.0,
                                   .n_hyper = 3,
                                   .hyper = {{"rho", 0.9}, {"eps", 1e-6}, {"weight_decay", 0.0}},
                                   .n_state = 2,
                                   .state = {"square_avg", "acc_delta"}};
  static void constants(const double* hyper, double lr, std::int64_t, double*, double* c) {
    c[0] = lr;
    c[1] = hyper[2];
    c[2] = hyper[0];
    c[3] = hyper[1];
  }

  GS_HD explicit Adadelta(const double* c) : lr_(c[0]), decay_(c[1]), rho_(c[2]), eps_(c[3]) {}
  template <class V> GS_HD GS_INLINE void operator()(V& w, V g, V* state) const {
    const V d = fma(V(decay_), w, g);
    const V square = flush_denormal(fma(V(rho_), state[0], V(1 - rho_) * d * d));
    const V delta = sqrt(state[1] + V(eps_)) / sqrt(square + V(eps_)) * d;
    state[0] = square;
    state[1] = flush_denormal(fma(V(rho_), state[1], V(1 - rho_) * delta * delta));
    w = w - V(lr_) * delta;
  }

 private:
  double lr_, decay_, rho_, eps_;
};

class NAdam : public RuleDefaults {
 public:
  static constexpr UpdateInfo info{.name = "nadam",
                                   .class_name = "NAdam",
                                   .lr = 2e-3,
                                   .n_hyper = 6,
                                   .hyper = {{"beta1", 0.9},
                                             {"beta2", 0.999},
                                             {"eps", 1e-8},
                                             {"weight_decay", 0.0},
                                             {"momentum_decay", 4e-3},
                                             {"decoupled_weight_decay", 0.0}},
                                   .n_state = 2,
                                   .state = {"exp_avg", "exp_avg_sq"},
                                   .n_scalars = 2,
                                   .scalars = {{"mu_product", 1.0}, {"step", 0.0}}};
  static void constants(const double* hyper, double lr, std::int64_t t, double* scalars,
                        double* c) {
    const double time = static_cast<double>(t);
    const double mu = momentum_at(hyper, time), mu_next = momentum_at(hyper, time + 1.0);
    if (scalars[1] < time) {  // the first call of this step
      scalars[0] *= mu;
      scalars[1] = time;
    }
    const bool decoupled = hyper[5] != 0.0;
    c[0] = lr * (1.0 - mu) / (1.0 - scalars[0]);
    c[1] = lr * mu_next / (1.0 - scalars[0] * mu_next);
    c[2] = decoupled ? 0.0 : hyper[3];
    c[3] = decoupled ? 1.0 - lr * hyper[3] : 1.0;
    c[4] = 1.0 - hyper[0];
    c[5] = hyper[1];
    c[6] = 1.0 / __builtin_sqrt(1.0 - __builtin_pow(hyper[1], time));
    c[7] = hyper[2];
  }

  GS_HD explicit NAdam(const double* c)
      : grad_step_(c[0]),
        average_step_(c[1]),
        decay_(c[2]),
        shrink_(c[3]),
        beta1_rest_(c[4]),
        beta2_(c[5]),
        root_scale_(c[6]),
        eps_(c[7]) {}
  template <class V> GS_HD GS_INLINE void operator()(V& w, V g, V* state) const {
    const V d = fma(V(decay_), w, g);
    const V m = flush_denormal(fma(V(beta1_rest_), d - state[0], state[0]));
    const V v = flush_denormal(fma(V(beta2_), state[1], V(1 - beta2_) * d * d));
    state[0] = m;
    state[1] = v;
    const V root = fma(sqrt(v), V(root_scale_), V(eps_));
    w = V(shrink_) * w - fma(V(grad_step_), d, V(average_step_) * m) / root;
  }

 private:
  static double momentum_at(const double* hyper, double time) {
    return hyper[0] * (1.0 - 0.5 * __builtin_pow(0.96, time * hyper[4]));
  }

  double grad_step_, average_step_, decay_, shrink_, beta1_rest_, beta2_, root_scale_, eps_;
};

// Chen et al., Symbolic Discovery of Optimization Algorithms (2023); weight decay is decoupled.
class Lion : public RuleDefaults {
 public:
  static constexpr UpdateInfo info{
      .name = "lion",
      .class_name = "Lion",
      .lr = 1e-4,
      .n_hyper = 3,
      .hyper = {{"beta1", 0.9}, {"beta2", 0.99}, {"weight_decay", 0.0}},
      .n_state = 1,
      .state = {"exp_avg"}};
  static void constants(const double* hyper, double lr, std::int64_t, double*, double* c) {
    c[0] = lr;
    c[1] = 1.0 - lr * hyper[2];
    c[2] = 1.0 - hyper[0];
    c[3] = 1.0 - hyper[1];
  }

  GS_HD explicit Lion(const double* c)
      : lr_(c[0]), shrink_(c[1]), beta1_rest_(c[2]), beta2_rest_(c[3]) {}
  template <class V> GS_HD GS_INLINE void operator()(V& w, V g, V* state) const {
    const V m = state[0];
    w = V(shrink_) * w - V(lr_) * sign(fma(V(beta1_rest_), g - m, m));
    state[0] = flush_denormal(fma(V(beta2_rest_), g - m, m));
  }

 private:
  double lr_, shrink_, beta1_rest_, beta2_rest_;
};

template <class Rule>
concept UpdateRule = std::is_same_v<decltype(Rule::info), const UpdateInfo> &&
    std::is_constructible_v<Rule, const double*> &&
    requires(const Rule rule, double x, double* p, const double* hyper, std::int64_t t) {
  Rule::constants(hyper, x, t, p, p);
  requires std::is_same_v<decltype(Rule::uses_state(hyper, 0)), bool>;
  requires std::is_same_v<decltype(Rule::state_init(hyper, 0)), double>;
  rule(x, x, p);
};

}  // namespace updates

template <class... Rules> struct RuleList {
  static_assert((updates::UpdateRule<Rules> && ...), "a rule lacks a part");
  static constexpr int size = static_cast<int>(sizeof...(Rules));
  static constexpr UpdateInfo info[size] = {Rules::info...};
  static constexpr void (*constants[size])(const double*, double, std::int64_t, double*,
                                           double*) = {&Rules::constants...};
  static constexpr bool (*uses_state[size])(const double*, int) = {&Rules::uses_state...};
  static constexpr double (*state_init[size])(const double*, int) = {&Rules::state_init...};
};

// A RuleId is a position in this list.
using UpdateRules = RuleList<updates::SGD, updates::Adam, updates::AdamW, updates::RMSprop,
                             updates::Adagrad, updates::Adadelta, updates::NAdam, updates::Lion>;

inline constexpr int kNumRules = UpdateRules::size;

// 0 <= id < kNumRules in all of these.
constexpr const UpdateInfo& rule_info(int id) { return UpdateRules::info[id]; }

// The RuleId of a name such as "adam", or -1.
constexpr int find_rule(const char* name) { return find_row(UpdateRules::info, name); }

// Constants c[kMaxUpdateConstants] of step t (the first is 1) for hyper-parameters in the order of
// UpdateInfo::hyper. scalars[kMaxUpdateScalars] are advanced by the first call with a new t.
inline void rule_constants(int id, const double* hyper, double lr, std::int64_t t, double* scalars,
                           double* c) {
  UpdateRules::constants[id](hyper, lr, t, scalars, c);
}

// Is state vector i needed with these hyper-parameters? Otherwise UpdateArgs::state[i] may be null.
inline bool rule_uses_state(int id, const double* hyper, int i) {
  return UpdateRules::uses_state[id](hyper, i);
}

// What every entry of state vector i holds before the first step.
inline double rule_state_init(int id, const double* hyper, int i) {
  return UpdateRules::state_init[id](hyper, i);
}

}  // namespace GRADSTACK_UNIT
}  // namespace gradstack

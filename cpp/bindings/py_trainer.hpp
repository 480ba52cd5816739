// Trainers of every kind of device as Python sees them.
#pragma once

#include <algorithm>

#include "bind.hpp"
#include "gradstack/trainer.hpp"
#include "short_call.hpp"
#include "signals.hpp"

namespace gradstack::bindings {

inline std::vector<char> frozen_parameters(const Graph& graph,
                                           const std::vector<std::string>& names) {
  std::vector<char> frozen(graph.parameters().size(), 0);
  for (const std::string& name : names) {
    const auto& parameters = graph.parameters();
    const auto found = std::find_if(parameters.begin(), parameters.end(),
                                    [&](const Parameter& p) { return p.name == name; });
    if (found == parameters.end())
      throw py::value_error("frozen: the net has no parameter '" + name + "'");
    frozen[static_cast<std::size_t>(found - parameters.begin())] = 1;
  }
  return frozen;
}

// Core is Trainer<T> or has its members.
template <class T, class Core> class PyTrainer {
 public:
  template <class... A>
  explicit PyTrainer(std::shared_ptr<Cost<T>> cost, A&&... arguments)
      : cost_(std::move(cost)),
        trainer_(std::forward<A>(arguments)...),
        user_code_(has_user_code(trainer_.graph()) || !cost_->by_block()) {}

  double step(const py::object& w, const std::vector<py::object>& xs, const py::object& y,
              const py::object& sample_weight, double lr, int threads, bool train,
              std::uint64_t seed) {
    T* weights = vector_view<T>(w, "w", trainer_.graph().n_params(), true);
    const auto [batch, target] = make_batch(trainer_.graph(), xs, y, sample_weight, *cost_);
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return trainer_.step(weights, batch, target, lr, threads, train, seed);
  }
  // With the GIL held; for a Core that waits for no device.
  double short_step(T* w, const Batch& batch, TargetSpec target, double lr, int threads,
                    std::uint64_t seed) {
    const double flops = 6.0 * static_cast<double>(graph().n_params() * batch.count);
    if (flops < kHeldFlops && !user_code_) {
      const auto lock = lock_with_gil(mutex_);
      return trainer_.step(w, batch, target, lr, threads, true, seed);
    }
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return trainer_.step(w, batch, target, lr, threads, true, seed);
  }

  void begin(const py::object& w, const std::vector<py::object>& X, const py::object& y,
             const py::object& sample_weight, Index batch_size, bool shuffle, std::uint64_t seed,
             int threads, bool check_finite, bool allow_nonfinite_loss) {
    T* weights = vector_view<T>(w, "w", trainer_.graph().n_params(), true);
    const auto [data, target] = make_batch(trainer_.graph(), X, y, sample_weight, *cost_);
    kept_ = py::make_tuple(w, X, y, sample_weight);  // the core reads them while it runs
    FitOptions options;
    options.batch_size = batch_size;
    options.shuffle = shuffle;
    options.seed = seed;
    options.threads = threads;
    options.check_finite = check_finite;
    options.allow_non_finite = allow_nonfinite_loss;
    const py::gil_scoped_release release;  // a device is waited for
    trainer_.begin(weights, data, target, options);
  }

  std::vector<double> run(
      const py::array_t<double, py::array::c_style | py::array::forcecast>& lrs) {
    const double* rates = lrs.data();
    const Index n = lrs.size();
    return interruptible([&](const std::function<bool()>& interrupted) {
      return trainer_.run(rates, n, interrupted);
    });
  }

  py::dict position() const {
    const Position& p = trainer_.position;
    py::dict state;
    state["epoch"] = p.epoch;
    state["step_in_epoch"] = p.step_in_epoch;
    state["step"] = p.step;
    state["loss_sum"] = p.loss_sum;
    state["weight_sum"] = p.weight_sum;
    if constexpr (requires { trainer_.scales_losses(); })
      if (trainer_.scales_losses()) {
        state["loss_scale"] = trainer_.loss_scale();
        state["good_steps"] = trainer_.good_steps();
      }
    return state;
  }

  void seek(const py::dict& state) {
    Position p;
    p.epoch = state["epoch"].cast<std::int64_t>();
    p.step_in_epoch = state["step_in_epoch"].cast<std::int64_t>();
    p.step = state["step"].cast<std::int64_t>();
    p.loss_sum = state["loss_sum"].cast<double>();
    p.weight_sum = state["weight_sum"].cast<double>();
    if (p.epoch < 0 || p.step < 0 || p.step_in_epoch < 0 ||
        p.step_in_epoch >= trainer_.steps_per_epoch())
      throw py::value_error("seek: the position lies outside the epoch");
    if constexpr (requires { trainer_.scales_losses(); })
      if (trainer_.scales_losses())
        trainer_.set_loss_scale(state["loss_scale"].cast<double>(),
                                state["good_steps"].cast<std::int64_t>());
    trainer_.position = p;
  }

  const Core& core() const { return trainer_; }
  Core& core() { return trainer_; }
  const Graph& graph() const { return trainer_.graph(); }

 private:
  std::shared_ptr<Cost<T>> cost_;
  Core trainer_;
  bool user_code_;
  std::mutex mutex_;
  py::object kept_;
};

template <class Tr> void def_trainer(py::class_<Tr>& trainer) {
  using py::arg;
  trainer
      .def("step", &Tr::step, arg("w"), arg("xs"), arg("y"), arg("sample_weight"), arg("lr"),
           arg("threads") = 0, arg("train") = true, arg("seed") = 0)
      .def("begin", &Tr::begin, arg("w"), arg("X"), arg("y"), arg("sample_weight"), py::kw_only(),
           arg("batch_size"), arg("shuffle"), arg("seed"), arg("threads"), arg("check_finite"),
           arg("allow_nonfinite_loss"))
      .def("run", &Tr::run, arg("lrs"))
      .def_property_readonly("position", &Tr::position)
      .def("seek", &Tr::seek, arg("position"))
      .def_property_readonly("epoch", [](const Tr& t) { return t.core().position.epoch; })
      .def_property_readonly("step_in_epoch",
                             [](const Tr& t) { return t.core().position.step_in_epoch; })
      .def_property_readonly("global_step", [](const Tr& t) { return t.core().position.step; })
      .def_property_readonly("steps_per_epoch",
                             [](const Tr& t) { return t.core().steps_per_epoch(); })
      .def_property_readonly("last_loss", [](const Tr& t) { return t.core().last_loss; });
}

}  // namespace gradstack::bindings

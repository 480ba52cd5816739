#include <algorithm>
#include <cmath>

#include "bind.hpp"
#include "gradstack/registry.hpp"
#include "gradstack/trainer.hpp"
#include "short_call.hpp"
#include "signals.hpp"

namespace gradstack::bindings {
namespace {

template <class T>
std::shared_ptr<Optimizer<T>> make_optimizer(const std::string& rule, std::vector<double> hyper,
                                             Index n_params, std::optional<double> clip_norm,
                                             std::optional<double> clip_value, bool decay_bias) {
  OptimizerOptions options;
  const auto positive = [](std::optional<double> value, const char* name) {
    if (value && !(*value > 0))
      throw py::value_error(std::string(name) + ": got " + std::to_string(*value) +
                            ", expected a number > 0");
    return value.value_or(0.0);
  };
  options.clip_norm = positive(clip_norm, "clip_norm");
  options.clip_value = positive(clip_value, "clip_value");
  options.decay_bias = decay_bias;
  return std::make_shared<Optimizer<T>>(rule, std::move(hyper), n_params, options);
}

// A view into memory that `owner` keeps alive.
template <class S>
py::array_t<S> view(std::vector<py::ssize_t> shape, S* data, const py::object& owner) {
  return py::array_t<S>(std::move(shape), data, owner);
}

std::vector<char> frozen_parameters(const Graph& graph, const std::vector<std::string>& names) {
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

// Steps of an optimiser with gradients that the caller has computed.
template <class T> class PyUpdater {
 public:
  PyUpdater(std::shared_ptr<Graph> graph, std::shared_ptr<Optimizer<T>> optimizer,
            const std::vector<std::string>& frozen)
      : graph_(std::move(graph)),
        optimizer_(std::move(optimizer)),
        updater_(*graph_, active_kernels<T>(), *optimizer_, frozen_parameters(*graph_, frozen)) {}

  void step(const py::object& w, const py::object& dw, double lr) {
    T* weights = vector_view<T>(w, "w", graph_->n_params(), true);
    const T* given = vector_view<T>(dw, "dw", graph_->n_params(), false);
    gradient_.assign(given, given + graph_->n_params());  // clipping works in place
    if (!std::all_of(gradient_.begin(), gradient_.end(), [](T g) { return std::isfinite(g); }))
      throw NonFiniteLoss("dw holds NaN or infinity; no update was made");
    const FlushDenormals flush;
    updater_.begin(weights, lr);
    updater_.apply_all(Worker{}, gradient_.data());
  }

 private:
  std::shared_ptr<Graph> graph_;
  std::shared_ptr<Optimizer<T>> optimizer_;
  Updater<T> updater_;
  std::vector<T> gradient_;
};

template <class T> class PyTrainer {
 public:
  PyTrainer(const std::shared_ptr<Graph>& graph, std::shared_ptr<Cost<T>> cost,
            std::shared_ptr<Optimizer<T>> optimizer, const std::vector<std::string>& frozen)
      : cost_(std::move(cost)),
        user_code_(has_user_code(*graph) || !cost_->by_block()),
        trainer_(graph, active_kernels<T>(), cost_, std::move(optimizer),
                 frozen_parameters(*graph, frozen)) {}

  double step(const py::object& w, const std::vector<py::object>& xs, const py::object& y,
              const py::object& sample_weight, double lr, int threads, bool train,
              std::uint64_t seed) {
    T* weights = vector_view<T>(w, "w", trainer_.graph().n_params(), true);
    const auto [batch, target] = make_batch(trainer_.graph(), xs, y, sample_weight, *cost_);
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return trainer_.step(weights, batch, target, lr, threads, train, seed);
  }
  // With the GIL held.
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
    trainer_.position = p;
  }

  const Trainer<T>& core() const { return trainer_; }
  const Graph& graph() const { return trainer_.graph(); }
  const Cost<T>& cost() const { return *cost_; }

 private:
  std::shared_ptr<Cost<T>> cost_;
  bool user_code_;
  Trainer<T> trainer_;
  std::mutex mutex_;
  py::object kept_;
};

// Steps on batches like the one before: f(x, y, sample_weight, lr) -> loss.
template <class T> class StepCall final : public ShortCall {
 public:
  // y: what the targets were converted to in the step before.
  StepCall(const py::object& trainer, const py::object& w, const py::object& y, int threads,
           std::uint64_t seed)
      : owner_(trainer),
        trainer_(trainer.cast<PyTrainer<T>&>()),
        w_(w),
        weights_(vector_view<T>(w, "w", trainer_.graph().n_params(), true)),
        threads_(threads),
        seed_(seed),
        reader_(trainer_.graph(), y) {}

  py::object call(PyObject* const* args, std::size_t n, PyObject* names) override {
    if (n != 4 || names) return py::none();
    Batch batch;
    if (!reader_.read(args[0], args[1], args[2], &batch)) return py::none();
    const double lr = PyFloat_AsDouble(args[3]);
    if (lr == -1.0 && PyErr_Occurred()) throw py::error_already_set();
    return py::float_(trainer_.short_step(weights_, batch, reader_.target(), lr, threads_, seed_));
  }

 private:
  py::object owner_;
  PyTrainer<T>& trainer_;
  py::object w_;
  T* weights_;
  int threads_;
  std::uint64_t seed_;
  BatchReader<T> reader_;
};

}  // namespace

template <class T> void bind_trainer(py::module_& m) {
  using py::arg;
  using Opt = Optimizer<T>;
  py::class_<Opt, std::shared_ptr<Opt>>(m, "Optimizer")
      .def(py::init(&make_optimizer<T>), arg("rule"), arg("hyper"), arg("n_params"), py::kw_only(),
           arg("clip_norm") = py::none(), arg("clip_value") = py::none(), arg("decay_bias") = true)
      .def_property_readonly("state",
                             [](py::object self) {
                               Opt& o = self.cast<Opt&>();
                               return view<T>({o.n_state(), o.n_params()}, o.state().data(), self);
                             })
      .def_property_readonly("scalars",
                             [](py::object self) {
                               Opt& o = self.cast<Opt&>();
                               return view<double>({static_cast<py::ssize_t>(o.scalars().size())},
                                                   o.scalars().data(), self);
                             })
      .def_readwrite("t", &Opt::steps);
  using Up = PyUpdater<T>;
  py::class_<Up>(m, "Updater")
      .def(
          py::init<std::shared_ptr<Graph>, std::shared_ptr<Opt>, const std::vector<std::string>&>(),
          arg("graph"), arg("optimizer"), py::kw_only(), arg("frozen") = std::vector<std::string>{})
      .def("step", &Up::step, arg("w"), arg("dw"), arg("lr"));
  using Tr = PyTrainer<T>;
  py::class_<Tr>(m, "Trainer")
      .def(py::init<const std::shared_ptr<Graph>&, std::shared_ptr<Cost<T>>, std::shared_ptr<Opt>,
                    const std::vector<std::string>&>(),
           arg("graph"), arg("cost"), arg("optimizer"), py::kw_only(),
           arg("frozen") = std::vector<std::string>{})
      .def("step", &Tr::step, arg("w"), arg("xs"), arg("y"), arg("sample_weight"), arg("lr"),
           arg("threads") = 0, arg("train") = true, arg("seed") = 0)
      .def(
          "short_call",
          [](const py::object& self, const py::object& w, const py::object& y, int threads,
             std::uint64_t seed) {
            return make_short_call(std::make_unique<StepCall<T>>(self, w, y, threads, seed));
          },
          arg("w"), arg("y"), arg("threads"), arg("seed"))
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

template void bind_trainer<float>(py::module_&);
template void bind_trainer<double>(py::module_&);

}  // namespace gradstack::bindings
